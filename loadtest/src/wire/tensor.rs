//! Outputs of the inference protocol to facts about images.

use super::judge::{Facts, mask_hash};
use super::outcome::Problem;
use crate::record::{Flops, Stages};

/// What is asked of an arm's model, by the names that its metadata has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The output with a value for each class, or the class itself. Without it no output is named in requests, and the
    /// first of the answer is taken.
    pub(super) score: Option<String>,
    /// blockdrop's `class`, beside its probabilities: with `top_k` those are not in the order of the classes.
    pub(super) class: bool,
    pub(super) mask: bool,
    pub(super) blocks: bool,
    pub(super) flops: bool,
}

/// What a model's metadata tells of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) datatype: String,
    #[serde(default)]
    pub(super) shape: Vec<i64>,
}

const CLASS: &str = "class";
const MASK: &str = "mask";
const BLOCKS: &str = "blocks";
const FLOPS: &str = "flops";
const PROBABILITIES: &str = "probabilities";

impl Wanted {
    /// What to ask of a model with these `outputs`: the one `chosen`, else blockdrop's `probabilities`, else the first. For
    /// the facts that blockdrop alone tells, names and datatypes have to be its own.
    ///
    /// # Errors
    /// No output has the `chosen` name, or it holds neither numbers nor classes: what was found, and what was expected.
    pub(super) fn of(outputs: &[Described], chosen: Option<&str>) -> Result<Self, (String, String)> {
        let is = |name: &str, datatype: &str| outputs.iter().any(|at| at.name == name && at.datatype == datatype);
        if outputs.is_empty() {
            return Ok(Self { score: chosen.map(str::to_owned), ..Self::default() });
        }
        let name = match chosen {
            Some(name) => name,
            None if is(PROBABILITIES, "FP32") => PROBABILITIES,
            None => &outputs[0].name,
        };
        let listed = || outputs.iter().map(shown).collect::<Vec<_>>().join(", ");
        let Some(output) = outputs.iter().find(|output| output.name == name) else {
            return Err((format!("outputs {}", listed()), format!("one named '{name}'")));
        };
        if width(&output.datatype).is_none() {
            return Err((format!("output {}", shown(output)), "FP16, FP32, FP64 or integers".to_owned()));
        }
        Ok(Self {
            score: Some(name.to_owned()),
            class: chosen.is_none() && name == PROBABILITIES && is(CLASS, "INT32"),
            mask: name != MASK && is(MASK, "UINT8"),
            blocks: name != BLOCKS && is(BLOCKS, "INT32"),
            flops: name != FLOPS && is(FLOPS, "INT64"),
        })
    }

    /// The outputs to name in a request; none where all are to come.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let extra = [(self.class, CLASS), (self.mask, MASK), (self.blocks, BLOCKS), (self.flops, FLOPS)];
        self.score.as_deref().into_iter().chain(extra.into_iter().filter(|(asked, _)| *asked).map(|(_, name)| name))
    }

    /// Whether an answer's output is of use, it being the one at `place`.
    pub(super) fn takes(&self, name: &str, place: usize) -> bool {
        match &self.score {
            None => place == 0,
            Some(_) => self.names().any(|wanted| wanted == name),
        }
    }

    /// The facts of `count` images from the outputs that were [taken](Self::takes).
    ///
    /// # Errors
    /// An output is missing, or does not fit.
    pub(super) fn facts(&self, outputs: &[Tensor], count: usize) -> Result<Vec<Facts>, Problem> {
        let find = |name: &str| {
            let missing = || Problem::wrong_answer(format!("the answer has no output '{name}'"));
            outputs.iter().find(|output| output.name == name).ok_or_else(missing)
        };
        let score = match &self.score {
            Some(name) => find(name)?,
            None => outputs.first().ok_or_else(|| Problem::wrong_answer("the answer has no outputs"))?,
        };
        let class = self.class.then(|| find(CLASS)).transpose()?;
        let mask = self.mask.then(|| find(MASK)).transpose()?;
        let blocks = self.blocks.then(|| find(BLOCKS)).transpose()?;
        let flops = self.flops.then(|| find(FLOPS)).transpose()?;
        let facts = |image: usize| {
            let row = score.row(image, count)?;
            let (best, second) =
                best(row).ok_or_else(|| Problem::wrong_answer(format!("output '{}' holds no numbers", score.name)))?;
            let of = match class {
                Some(class) => class.first(image, count)?,
                None if score.whole => row[0],
                None => best as f64,
            };
            let scored = |at: Option<usize>| at.map(|at| row[at]).filter(|_| !score.whole);
            let first = |tensor: Option<&Tensor>| tensor.map(|tensor| tensor.first(image, count)).transpose();
            let mask = mask.map(|mask| mask.row(image, count)).transpose()?;
            Ok(Facts {
                class: integer(of).ok_or_else(|| Problem::wrong_answer(format!("class {of}, expected 0 or more")))?,
                score: scored(Some(best)),
                second: scored(second),
                mask: mask.map(|bits| mask_hash(bits.iter().map(|bit| *bit != 0.0))),
                blocks: first(blocks)?.map(|blocks| blocks as u16),
                flops: first(flops)?.map(|flops| Flops { spent: flops as u64, full: 0 }),
                stages: None,
            })
        };
        (0..count).map(facts).collect()
    }
}

/// A tensor as messages name it: `x FP32 [-1,10]`.
pub(super) fn shown(tensor: &Described) -> String {
    let sizes: Vec<String> = tensor.shape.iter().take(8).map(i64::to_string).collect();
    format!("{} {} [{}]", tensor.name, tensor.datatype, sizes.join(","))
}

/// A number from 0 that is whole.
fn integer(value: f64) -> Option<u32> {
    (value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value)).then_some(value as u32)
}

/// Where the greatest number is, and the next.
fn best(row: &[f64]) -> Option<(usize, Option<usize>)> {
    let (mut best, mut second) = (None, None);
    for (at, value) in row.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
        let beats = |other: Option<usize>| other.is_none_or(|other: usize| *value > row[other]);
        if beats(best) {
            (second, best) = (best, Some(at));
        } else if beats(second) {
            second = Some(at);
        }
    }
    best.map(|best| (best, second))
}

/// An output of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    name: String,
    /// Of integers.
    whole: bool,
    shape: Vec<i64>,
    values: Vec<f64>,
}

impl Tensor {
    pub(super) fn new(name: &str, datatype: &str, shape: Vec<i64>, values: Vec<f64>) -> Self {
        let whole = datatype.contains("INT") || datatype == "BOOL";
        Self { name: name.to_owned(), whole, shape, values }
    }

    /// From little-endian bytes.
    ///
    /// # Errors
    /// It is of a type without numbers, or the bytes are cut off.
    pub(super) fn raw(name: &str, datatype: &str, shape: Vec<i64>, bytes: &[u8]) -> Result<Self, Problem> {
        let misfit = || Problem::wrong_answer(format!("output '{name}' has {} bytes of {datatype}", bytes.len()));
        let values = numbers(datatype, bytes).ok_or_else(misfit)?;
        Ok(Self::new(name, datatype, shape, values))
    }

    fn row(&self, image: usize, count: usize) -> Result<&[f64], Problem> {
        let Self { name, shape, values, .. } = self;
        let each = values.len() / count;
        // Of one image the batch may be left out.
        let batched =
            count == 1 && shape.len() <= 1 || shape.first().is_some_and(|size| usize::try_from(*size) == Ok(count));
        if each == 0 || each * count != values.len() || !batched {
            let found = values.len();
            return Err(Problem::wrong_answer(format!(
                "output '{name}' has {found} values for {count} images, of shape {shape:?}"
            )));
        }
        Ok(&values[image * each..][..each])
    }

    fn first(&self, image: usize, count: usize) -> Result<f64, Problem> {
        Ok(self.row(image, count)?[0])
    }
}

/// Bytes of a value of a datatype that has numbers.
fn width(datatype: &str) -> Option<usize> {
    Some(match datatype {
        "BOOL" | "UINT8" | "INT8" => 1,
        "UINT16" | "INT16" | "FP16" | "BF16" => 2,
        "UINT32" | "INT32" | "FP32" => 4,
        "UINT64" | "INT64" | "FP64" => 8,
        _ => return None,
    })
}

fn numbers(datatype: &str, bytes: &[u8]) -> Option<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
        let (chunks, rest) = bytes.as_chunks::<N>();
        rest.is_empty().then(|| chunks.iter().map(|chunk| value(*chunk)).collect())
    }
    match datatype {
        "BOOL" | "UINT8" => each(bytes, |[byte]| f64::from(byte)),
        "INT8" => each(bytes, |byte| f64::from(i8::from_le_bytes(byte))),
        "UINT16" => each(bytes, |two| f64::from(u16::from_le_bytes(two))),
        "INT16" => each(bytes, |two| f64::from(i16::from_le_bytes(two))),
        "FP16" => each(bytes, |two| half(u16::from_le_bytes(two))),
        "BF16" => each(bytes, |two| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(two)) << 16))),
        "UINT32" => each(bytes, |four| f64::from(u32::from_le_bytes(four))),
        "INT32" => each(bytes, |four| f64::from(i32::from_le_bytes(four))),
        "FP32" => each(bytes, |four| f64::from(f32::from_le_bytes(four))),
        "UINT64" => each(bytes, |eight| u64::from_le_bytes(eight) as f64),
        "INT64" => each(bytes, |eight| i64::from_le_bytes(eight) as f64),
        "FP64" => each(bytes, f64::from_le_bytes),
        _ => None,
    }
}

/// IEEE 754's binary16.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    }
}

/// The summary that blockdrop gives of a request's only image, among an answer's parameters.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub(super) struct Summary {
    pub(super) flops_policy: Option<u64>,
    pub(super) flops_executed: Option<u64>,
    pub(super) flops_full: Option<u64>,
    pub(super) decode_us: u64,
    pub(super) preprocess_us: u64,
    pub(super) queue_us: u64,
    pub(super) policy_us: u64,
    pub(super) backbone_us: u64,
    pub(super) total_us: Option<u64>,
}

impl Summary {
    /// Adds to the facts of the only image.
    pub(super) fn complete(&self, facts: &mut [Facts]) {
        let [facts] = facts else { return };
        if let (Some(policy), Some(executed), Some(full)) = (self.flops_policy, self.flops_executed, self.flops_full) {
            facts.flops = Some(Flops { spent: policy.saturating_add(executed), full });
        }
        let milliseconds = |micros: u64| micros as f64 / 1000.0;
        facts.stages = self.total_us.map(|total| Stages {
            decode: milliseconds(self.decode_us),
            preprocess: milliseconds(self.preprocess_us),
            queue: milliseconds(self.queue_us),
            policy: milliseconds(self.policy_us),
            backbone: milliseconds(self.backbone_us),
            total: milliseconds(total),
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn described(name: &str, datatype: &str) -> Described {
        Described { name: name.to_owned(), datatype: datatype.to_owned(), shape: vec![-1, 10] }
    }

    fn blockdrop() -> Vec<Described> {
        [
            ("logits", "FP32"),
            ("probabilities", "FP32"),
            ("class", "INT32"),
            ("mask", "UINT8"),
            ("blocks", "INT32"),
            ("flops", "INT64"),
        ]
        .map(|(name, datatype)| described(name, datatype))
        .into()
    }

    #[test]
    fn only_what_is_needed_is_asked_for() {
        let names = |outputs: &[Described], chosen| {
            Wanted::of(outputs, chosen).map(|wanted| wanted.names().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(names(&blockdrop(), None).unwrap(), ["probabilities", "class", "mask", "blocks", "flops"]);
        assert_eq!(names(&blockdrop(), Some("logits")).unwrap(), ["logits", "mask", "blocks", "flops"]);
        let foreign = [described("scores", "FP32"), described("mask", "FP32")];
        assert_eq!(names(&foreign, None).unwrap(), ["scores"]);
        assert_eq!(names(&[], None).unwrap(), [""; 0]);
        let (found, expected) = names(&foreign, Some("logits")).unwrap_err();
        assert_eq!((&*found, &*expected), ("outputs scores FP32 [-1,10], mask FP32 [-1,10]", "one named 'logits'"));
        assert!(names(&[described("text", "BYTES")], None).is_err());
    }

    #[test]
    fn rows_become_classes() {
        let wanted = Wanted { score: Some("s".to_owned()), ..Wanted::default() };
        let tensor = |datatype, values: &[f64]| [Tensor::new("s", datatype, vec![2, 2], values.to_vec())];
        let found = wanted.facts(&tensor("FP32", &[0.1, 0.9, 7.0, -1.0]), 2).unwrap();
        assert_eq!([found[0].class, found[1].class], [1, 0]);
        assert_eq!((found[0].score, found[0].second), (Some(0.9), Some(0.1)));
        let found = wanted.facts(&tensor("INT64", &[5.0, 3.0]), 2).unwrap();
        assert_eq!((found[0].class, found[1].class, found[0].score), (5, 3, None));
        for (values, count) in [(&[][..], 1), (&[1.0][..], 2), (&[1.0, 2.0, 3.0], 3), (&[f64::NAN], 1)] {
            assert!(wanted.facts(&tensor("FP32", values), count).is_err(), "{values:?}");
        }
        assert!(wanted.facts(&tensor("INT8", &[-1.0]), 1).is_err());
        assert!(wanted.facts(&[], 1).is_err());
    }

    #[test]
    fn halves_are_read() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x3555, 0.333251953125), (1, 2f64.powi(-24)), (0x7bff, 65504.0)]
        {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7e00).is_nan() && half(0xfc00) == f64::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_reader(
            datatype in prop::sample::select(vec!["FP32", "FP16", "INT8", "BOOL", "FP64", "BYTES", "?"]),
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            shape in prop::collection::vec(any::<i64>(), 0..4),
            count in 1usize..5,
        ) {
            let wanted = Wanted { score: Some("s".to_owned()), ..Wanted::default() };
            if let Ok(tensor) = Tensor::raw("s", datatype, shape, &bytes) {
                drop(wanted.facts(&[tensor], count));
            }
        }
    }
}
