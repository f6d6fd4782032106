//! Joins the graphs of a path, each one's output becoming the next one's input, into one ONNX graph in memory.

use std::collections::HashMap;

use super::graph::Graph;
use super::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto};

/// Why graphs cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("nothing to join")]
    Empty,
    #[error("{after}: takes {input:?}, but {before} gives {output:?}", before = before.display(), after = after.display())]
    Shapes { before: std::path::PathBuf, after: std::path::PathBuf, output: Vec<u64>, input: Vec<u64> },
    #[error("{file}: imports {domain} {found}, another graph of the path {other}", file = file.display())]
    Opset { file: std::path::PathBuf, domain: String, found: i64, other: i64 },
}

/// One graph that computes `parts` one after another. Its input keeps the name of the first part's input and its
/// output that of the last part's output; every other name gets the part's position in front, so that parts made by
/// different tools, or the same part twice, do not clash.
///
/// # Errors
/// No parts, shapes that do not follow on each other, or different versions of one operator set.
pub fn join(parts: &[&Graph]) -> Result<ModelProto, JoinError> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Err(JoinError::Empty) };
    for pair in parts.windows(2) {
        if pair[0].output != pair[1].input {
            return Err(JoinError::Shapes {
                before: pair[0].file.clone(),
                after: pair[1].file.clone(),
                output: pair[0].output.clone(),
                input: pair[1].input.clone(),
            });
        }
    }

    let mut joined = GraphProto { name: Some("path".to_owned()), ..Default::default() };
    let mut opsets: HashMap<String, i64> = HashMap::new();
    let mut ir_version = 0;
    let (input, output) = (border(&first.graph().input, first), only(&last.graph().output));
    let mut carried = input.name().to_owned();
    joined.input.push(input);

    for (index, part) in parts.iter().enumerate() {
        ir_version = ir_version.max(part.model.ir_version());
        for import in &part.model.opset_import {
            let domain = import.operators();
            let other = *opsets.entry(domain.to_owned()).or_insert(import.version());
            if other != import.version() {
                let domain = if domain.is_empty() { "ai.onnx" } else { domain }.to_owned();
                return Err(JoinError::Opset { file: part.file.clone(), domain, found: import.version(), other });
            }
        }
        let graph = part.graph();
        let names = Names {
            input: border(&graph.input, part).name().to_owned(),
            carried: carried.clone(),
            prefix: format!("{index}/"),
        };
        let output = only(&graph.output);
        carried = names.of(output.name());
        joined.node.extend(graph.node.iter().map(|node| names.node(node)));
        joined.initializer.extend(graph.initializer.iter().map(|tensor| {
            let mut tensor = tensor.clone();
            tensor.name = Some(names.of(tensor.name()));
            tensor
        }));
        // The output is one value among others now, of which the part states the shape all the same.
        let unstated = graph.value_info.iter().all(|value| value.name() != output.name());
        let values = graph.value_info.iter().chain(unstated.then_some(&output));
        joined.value_info.extend(values.map(|value| names.value(value)));
        joined.quantization_annotation.extend(graph.quantization_annotation.iter().map(|annotation| {
            let mut annotation = annotation.clone();
            annotation.tensor_name = Some(names.of(annotation.tensor_name()));
            for entry in &mut annotation.quant_parameter_tensor_names {
                entry.value = Some(names.of(entry.value()));
            }
            annotation
        }));
    }

    joined.node.push(NodeProto {
        op_type: Some("Identity".to_owned()),
        name: Some("output".to_owned()),
        input: vec![carried],
        output: vec![output.name().to_owned()],
        ..Default::default()
    });
    joined.output.push(output);
    let opset_import = opsets
        .into_iter()
        .map(|(domain, version)| super::onnx::OperatorSetIdProto { domain: Some(domain), version: Some(version) });
    Ok(ModelProto {
        ir_version: Some(ir_version),
        opset_import: opset_import.collect(),
        producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(joined),
        ..Default::default()
    })
}

/// The graph's real input: the one that no initializer gives a default for.
fn border(values: &[ValueInfoProto], part: &Graph) -> ValueInfoProto {
    let weights = &part.graph().initializer;
    let real = values.iter().find(|value| !weights.iter().any(|tensor| tensor.name() == value.name()));
    real.cloned().expect("a checked graph has exactly one input")
}

fn only(values: &[ValueInfoProto]) -> ValueInfoProto {
    values.first().cloned().expect("a checked graph has exactly one output")
}

/// How the names of one part are rewritten.
struct Names {
    input: String,
    carried: String,
    prefix: String,
}

impl Names {
    fn of(&self, name: &str) -> String {
        match name {
            "" => String::new(), // an optional input left out
            name if name == self.input => self.carried.clone(),
            name => format!("{}{name}", self.prefix),
        }
    }

    fn node(&self, node: &NodeProto) -> NodeProto {
        let mut node = node.clone();
        node.name = Some(self.of(node.name()));
        node.input.iter_mut().chain(&mut node.output).for_each(|name| *name = self.of(name));
        node
    }

    fn value(&self, value: &ValueInfoProto) -> ValueInfoProto {
        ValueInfoProto { name: Some(self.of(value.name())), ..value.clone() }
    }
}
