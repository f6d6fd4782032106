//! The output tensors, and how a request picks them.

use serde::Serialize;

use crate::answer::{ranked, softmax};
use crate::registry::Model;
use crate::server::classify::Classified;
use crate::server::error::{Error, Kind};
use crate::text::shortened;

/// An output of every model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Output {
    /// FP32 `[N, C]`.
    Logits,
    /// FP32 `[N, C]`, the softmax of the logits; with `top_k` FP32 `[N, top_k]`, the greatest first.
    Probabilities,
    /// INT32 `[N]`, the most probable class; with `top_k` INT32 `[N, top_k]`, the most probable first.
    Class,
    /// UINT8 `[N, K]`, 1 for each block kept.
    Mask,
    /// INT32 `[N]`, blocks kept.
    Blocks,
    /// INT64 `[N]`, FLOPs of policy and path together.
    Flops,
}

impl Output {
    pub(in crate::server) const ALL: [Self; 6] =
        [Self::Logits, Self::Probabilities, Self::Class, Self::Mask, Self::Blocks, Self::Flops];

    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Self::Logits => "logits",
            Self::Probabilities => "probabilities",
            Self::Class => "class",
            Self::Mask => "mask",
            Self::Blocks => "blocks",
            Self::Flops => "flops",
        }
    }

    pub(super) fn datatype(self) -> &'static str {
        match self {
            Self::Logits | Self::Probabilities => "FP32",
            Self::Class | Self::Blocks => "INT32",
            Self::Mask => "UINT8",
            Self::Flops => "INT64",
        }
    }

    /// What follows the batch in its shape.
    pub(super) fn width(self, model: &Model) -> Option<usize> {
        match self {
            Self::Logits | Self::Probabilities => Some(model.engine.bundle().labels.len()),
            Self::Mask => Some(model.engine.costs().blocks.len()),
            Self::Class | Self::Blocks | Self::Flops => None,
        }
    }
}

/// An output that a request asks for.
#[derive(Debug, Clone, Copy)]
pub(in crate::server) struct Wanted {
    pub(in crate::server) output: Output,
    /// As the classification extension's `value:index:label` of so many classes.
    pub(in crate::server) classification: Option<usize>,
    /// In the binary part of the answer, where the transport has one.
    pub(in crate::server) binary: bool,
}

impl Wanted {
    /// All outputs, for a request that names none.
    pub(in crate::server) fn all(binary: bool) -> Vec<Self> {
        Output::ALL.map(|output| Self { output, classification: None, binary }).into()
    }

    /// The output called `name`.
    ///
    /// # Errors
    /// There is no such output, or it has no classes to classify into.
    pub(in crate::server) fn new(name: &str, classification: Option<usize>, binary: bool) -> Result<Self, Error> {
        let wrong = |problem: String| Error::new(Kind::InvalidParameter, format!("outputs: {problem}"));
        let output = Output::ALL.into_iter().find(|output| output.name() == name).ok_or_else(|| {
            let known = Output::ALL.map(Output::name).join(", ");
            wrong(format!("found '{}', expected some of {known}", shortened(name)))
        })?;
        let classification = classification.filter(|&classes| classes > 0);
        if classification.is_some() && !matches!(output, Output::Logits | Output::Probabilities) {
            return Err(wrong(format!("found classification of '{name}', expected it of logits or probabilities")));
        }
        Ok(Self { output, classification, binary })
    }

    /// Checks that no output is asked for twice.
    ///
    /// # Errors
    /// One is.
    pub(in crate::server) fn distinct(wanted: &[Self]) -> Result<(), Error> {
        let twice = |(at, one): (usize, &Self)| wanted[..at].iter().any(|other| other.output == one.output);
        match wanted.iter().enumerate().find(|(at, one)| twice((*at, one))) {
            None => Ok(()),
            Some((_, twice)) => {
                let name = twice.output.name();
                Err(Error::new(Kind::InvalidParameter, format!("outputs: found '{name}' twice, expected it once")))
            }
        }
    }
}

/// An output of an answer.
#[derive(Debug, Clone)]
pub(in crate::server) struct Tensor {
    pub(in crate::server) name: &'static str,
    pub(in crate::server) shape: Vec<usize>,
    pub(in crate::server) data: Data,
    /// In the binary part of the answer, where the transport has one.
    pub(in crate::server) binary: bool,
}

/// A tensor's values, row by row.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(in crate::server) enum Data {
    Fp32(Vec<f32>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Uint8(Vec<u8>),
    Bytes(Vec<String>),
}

impl Data {
    pub(in crate::server) fn datatype(&self) -> &'static str {
        match self {
            Self::Fp32(_) => "FP32",
            Self::Int32(_) => "INT32",
            Self::Int64(_) => "INT64",
            Self::Uint8(_) => "UINT8",
            Self::Bytes(_) => "BYTES",
        }
    }

    /// The binary form: little endian; of BYTES each element's length, a 32-bit number, and then its bytes.
    pub(in crate::server) fn raw(&self) -> Vec<u8> {
        match self {
            Self::Fp32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Int32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Int64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Uint8(values) => values.clone(),
            Self::Bytes(texts) => {
                let mut raw = Vec::new();
                for text in texts {
                    let length = u32::try_from(text.len()).expect("a label is shorter than 4 GiB");
                    raw.extend_from_slice(&length.to_le_bytes());
                    raw.extend_from_slice(text.as_bytes());
                }
                raw
            }
        }
    }
}

/// The output that is `wanted`, of all `images` of a request.
pub(super) fn tensor(model: &Model, images: &[Classified], wanted: Wanted, top_k: Option<usize>) -> Tensor {
    let (labels, costs) = (&model.engine.bundle().labels, model.engine.costs());
    let output = wanted.output;
    let scores = |image: &Classified| match output {
        Output::Probabilities => softmax(&image.answer.logits),
        _ => image.answer.logits.clone(),
    };
    let greatest = |image: &Classified, most: usize| {
        let mut classes = ranked(&image.answer.logits);
        classes.truncate(most);
        classes
    };
    let of = |most: usize| most.min(labels.len());
    let (width, data) = match (output, wanted.classification) {
        (_, Some(most)) => {
            let each = images.iter().flat_map(|image| {
                let scores = scores(image);
                let text = move |class: usize| format!("{:.6}:{class}:{}", scores[class], labels[class]);
                greatest(image, most).into_iter().map(text)
            });
            (Some(of(most)), Data::Bytes(each.collect()))
        }
        (Output::Logits, None) => (output.width(model), Data::Fp32(images.iter().flat_map(scores).collect())),
        (Output::Probabilities, None) => match top_k {
            None => (output.width(model), Data::Fp32(images.iter().flat_map(scores).collect())),
            Some(most) => {
                let each = images.iter().flat_map(|image| {
                    let scores = scores(image);
                    greatest(image, most).into_iter().map(move |class| scores[class])
                });
                (Some(of(most)), Data::Fp32(each.collect()))
            }
        },
        (Output::Class, None) => {
            let each = images.iter().flat_map(|image| greatest(image, top_k.unwrap_or(1)));
            let each = each.map(|class| i32::try_from(class).expect("a bundle has fewer classes"));
            (top_k.map(of), Data::Int32(each.collect()))
        }
        (Output::Mask, None) => {
            let each = images.iter().flat_map(|image| image.answer.mask.iter().map(u8::from));
            (output.width(model), Data::Uint8(each.collect()))
        }
        (Output::Blocks, None) => {
            let each = images.iter().map(|image| i32::try_from(image.answer.mask.kept()).expect("few blocks"));
            (None, Data::Int32(each.collect()))
        }
        (Output::Flops, None) => {
            let each = images.iter().map(|image| costs.spent(&image.answer.mask, image.answer.policy_ran));
            (None, Data::Int64(each.map(|flops| i64::try_from(flops).unwrap_or(i64::MAX)).collect()))
        }
    };
    let shape = std::iter::once(images.len()).chain(width).collect();
    Tensor { name: output.name(), shape, data, binary: wanted.binary }
}
