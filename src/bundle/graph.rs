//! One ONNX file of a bundle: read, hashed, its border and its shapes checked, its FLOPs counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use prost::Message;

use super::error::BundleError;
use super::onnx::{
    GraphProto, ModelProto, TensorProto, ValueInfoProto, tensor_proto, tensor_shape_proto::dimension, type_proto,
};
use super::shapes;

/// The batch sizes that shapes are computed for: one image, and another to see that the batch stays free.
const PROBES: [u64; 2] = [1, 3];

/// The names on the two sides of a graph.
#[derive(Debug, Clone, Copy)]
pub(super) struct Border {
    pub(super) input: &'static str,
    pub(super) output: &'static str,
}

/// A checked ONNX graph with one f32 input and one f32 output, both with a free batch dimension in front.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The file it came from, for messages.
    pub file: PathBuf,
    /// Shape of one image's input, without the batch dimension.
    pub input: Vec<u64>,
    /// Shape of one image's output, without the batch dimension.
    pub output: Vec<u64>,
    /// FLOPs of one image by the paper's convention.
    pub flops: u64,
    pub(super) model: ModelProto,
}

impl Graph {
    /// Checks `bytes` as the graph of `file`: one input and one output with the names of `border`, f32, the batch free,
    /// `opset` imported, no external data.
    pub(super) fn parse(file: &Path, bytes: &[u8], border: Border, opset: i64) -> Result<Self, BundleError> {
        let model =
            ModelProto::decode(bytes).map_err(|reason| BundleError::Onnx { file: file.to_path_buf(), reason })?;
        let wrong = |what: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
            BundleError::mismatch(file, what, found, expected)
        };

        let mut opsets = HashMap::new();
        for import in &model.opset_import {
            let version = *opsets.entry(import.operators()).or_insert(import.version());
            if version != import.version() {
                let found = format!("{version} and {} of the domain '{}'", import.version(), import.domain());
                return Err(wrong("opset", &found, &"one version of each domain"));
            }
        }
        match opsets.get("") {
            Some(&version) if version == opset => {}
            Some(version) => return Err(wrong("opset", version, &opset)),
            None => return Err(wrong("opset", &"none", &opset)),
        }
        if !model.functions.is_empty() {
            return Err(wrong("model-local functions", &model.functions.len(), &"none (inline them)"));
        }
        let Some(graph) = model.graph.as_ref() else {
            return Err(wrong("graph", &"none", &"one"));
        };
        // A path in a graph must not decide what the server reads.
        let external = |tensor: &&TensorProto| {
            tensor.data_location() == tensor_proto::DataLocation::External || !tensor.external_data.is_empty()
        };
        if let Some(tensor) = tensors(graph).find(external) {
            return Err(wrong(
                &format!("data of tensor '{}'", tensor.name()),
                &"an external file",
                &"data inside the graph",
            ));
        }

        let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
        let inputs: Vec<_> = graph.input.iter().filter(|value| !is_weight(value.name())).collect();
        let input = only(file, "input", &inputs, border.input)?;
        let outputs: Vec<_> = graph.output.iter().collect();
        let output = only(file, "output", &outputs, border.output)?;
        let declared_input = declared(file, "input", input)?;
        let declared_output = declared(file, "output", output)?;

        let mut per_image = None;
        for batch in PROBES {
            let shape = [&[batch], declared_input.as_slice()].concat();
            let inferred = shapes::infer(graph, opset, input.name(), shape)
                .map_err(|problem| wrong(&problem.at, &problem.found, &problem.expected))?;
            let Some(out) = inferred.shapes.get(output.name()) else {
                return Err(wrong("output", &format!("'{}' made by no node", output.name()), &"a node that makes it"));
            };
            let (&first, rest) = out.split_first().unwrap_or((&0, &[]));
            if first != batch {
                return Err(wrong(
                    "batch dimension of the output",
                    &format!("{first} for a batch of {batch}"),
                    &"one row an image",
                ));
            }
            if rest != declared_output {
                return Err(wrong("shape of the output as declared", &Dims(&declared_output), &Dims(rest)));
            }
            if batch == 1 {
                per_image = Some((rest.to_vec(), inferred.flops));
            }
        }
        let (output, flops) = per_image.expect("the first probe is a batch of one");
        Ok(Self { file: file.to_path_buf(), input: declared_input, output, flops, model })
    }

    /// The graph as ONNX bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }

    pub(super) fn graph(&self) -> &GraphProto {
        self.model.graph.as_ref().expect("a checked model has a graph")
    }

    pub(super) fn expect_input(&self, shape: &[u64], whose: &str) -> Result<(), BundleError> {
        if self.input == shape {
            return Ok(());
        }
        Err(BundleError::mismatch(&self.file, "input shape", Dims(&self.input), format!("{} ({whose})", Dims(shape))))
    }

    pub(super) fn expect_output(&self, shape: &[u64], whose: &str) -> Result<(), BundleError> {
        if self.output == shape {
            return Ok(());
        }
        Err(BundleError::mismatch(&self.file, "output shape", Dims(&self.output), format!("{} ({whose})", Dims(shape))))
    }
}

/// Every tensor that a graph holds: its initializers and those in its nodes, dense and sparse.
fn tensors(graph: &GraphProto) -> impl Iterator<Item = &TensorProto> {
    let attributes = || graph.node.iter().flat_map(|node| &node.attribute);
    let dense = attributes().flat_map(|attribute| attribute.t.iter().chain(&attribute.tensors));
    let sparse = attributes().flat_map(|attribute| attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors));
    let sparse = sparse.chain(&graph.sparse_initializer).flat_map(|tensor| tensor.values.iter().chain(&tensor.indices));
    graph.initializer.iter().chain(dense).chain(sparse)
}

fn only<'a>(
    file: &Path,
    side: &str,
    values: &[&'a ValueInfoProto],
    name: &str,
) -> Result<&'a ValueInfoProto, BundleError> {
    match values {
        [value] if value.name() == name => Ok(value),
        _ => {
            let names: Vec<_> = values.iter().map(|value| format!("'{}'", value.name())).collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(BundleError::mismatch(file, format!("{side}s"), found, format!("one, '{name}'")))
        }
    }
}

/// The declared shape without its batch dimension, which has to be free.
fn declared(file: &Path, side: &str, value: &ValueInfoProto) -> Result<Vec<u64>, BundleError> {
    let wrong = |found: String, expected: &str| {
        Err(BundleError::mismatch(file, format!("{side} '{}'", value.name()), found, expected))
    };
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else {
        return wrong("no tensor type".to_owned(), "a tensor of f32");
    };
    if tensor.elem_type() != tensor_proto::DataType::Float as i32 {
        let found = tensor_proto::DataType::try_from(tensor.elem_type())
            .map_or_else(|_| tensor.elem_type().to_string(), |kind| kind.as_str_name().to_lowercase());
        return wrong(format!("elements of type {found}"), "float (f32)");
    }
    let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    let Some((batch, rest)) = dims.split_first() else {
        return wrong("no dimensions".to_owned(), "[N, ...] with a free batch dimension N");
    };
    if let Some(dimension::Value::DimValue(fixed)) = batch.value {
        return wrong(format!("batch dimension {fixed}"), "a free batch dimension N");
    }
    let mut shape = Vec::with_capacity(rest.len());
    for dim in rest {
        match dim.value {
            Some(dimension::Value::DimValue(size)) if size > 0 => shape.push(size.cast_unsigned()),
            _ => return wrong("a free or empty dimension after the batch".to_owned(), "a fixed size above 0"),
        }
    }
    Ok(shape)
}

/// Prints a shape as `[3, 32, 32]`.
pub(super) struct Dims<'a>(pub(super) &'a [u64]);

impl std::fmt::Display for Dims<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", self.0)
    }
}
