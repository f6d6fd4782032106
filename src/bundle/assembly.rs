//! One ONNX graph put together of others: their names kept apart, their operator sets compared.

use std::collections::HashMap;

use super::graph::Graph;
use super::join::JoinError;
use super::onnx::tensor_shape_proto::dimension::Value;
use super::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto, type_proto};

/// A graph in the making.
pub(super) struct Assembly {
    graph: GraphProto,
    opsets: HashMap<String, i64>,
    ir_version: i64,
}

impl Assembly {
    pub(super) fn new(name: &str) -> Self {
        let graph = GraphProto { name: Some(name.to_owned()), ..GraphProto::default() };
        Self { graph, opsets: HashMap::new(), ir_version: 0 }
    }

    pub(super) fn input(&mut self, input: ValueInfoProto) {
        self.graph.input.push(input);
    }

    /// Adds what `part` computes of the value `carried`, and gives the name of its result. Every other name gets `prefix`
    /// in front, so that parts made by different tools, or the same part twice, do not clash. Where it takes another number
    /// of images than the graph, that is called `rows`.
    ///
    /// # Errors
    /// It imports another version of an operator set than a part before it.
    pub(super) fn add(
        &mut self,
        part: &Graph,
        prefix: String,
        carried: &str,
        rows: Option<&str>,
    ) -> Result<String, JoinError> {
        self.ir_version = self.ir_version.max(part.model.ir_version());
        for import in &part.model.opset_import {
            let domain = import.operators();
            let other = *self.opsets.entry(domain.to_owned()).or_insert(import.version());
            if other != import.version() {
                let domain = if domain.is_empty() { "ai.onnx" } else { domain }.to_owned();
                return Err(JoinError::Opset { file: part.file.clone(), domain, found: import.version(), other });
            }
        }
        let graph = part.graph();
        let names = Names { input: border(part).name().to_owned(), carried: carried.to_owned(), prefix, rows };
        let output = result(part);
        self.graph.node.extend(graph.node.iter().map(|node| names.node(node)));
        self.graph.initializer.extend(graph.initializer.iter().map(|tensor| {
            let mut tensor = tensor.clone();
            tensor.name = Some(names.of(tensor.name()));
            tensor
        }));
        // The output is one value among others now, of which the part states the shape all the same.
        let unstated = graph.value_info.iter().all(|value| value.name() != output.name());
        let values = graph.value_info.iter().chain(unstated.then_some(&output));
        self.graph.value_info.extend(values.map(|value| names.value(value)));
        self.graph.quantization_annotation.extend(graph.quantization_annotation.iter().map(|annotation| {
            let mut annotation = annotation.clone();
            annotation.tensor_name = Some(names.of(annotation.tensor_name()));
            for entry in &mut annotation.quant_parameter_tensor_names {
                entry.value = Some(names.of(entry.value()));
            }
            annotation
        }));
        Ok(names.of(output.name()))
    }

    /// Adds an operator of ONNX's own whose first output is called `output`.
    pub(super) fn operator(&mut self, op: &str, inputs: &[&str], output: &str) -> &mut NodeProto {
        self.graph.node.push(NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(output.to_owned()),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
        self.graph.node.last_mut().expect("it was added just now")
    }

    /// The whole, whose output is the value `carried` under the name and type of `output`.
    pub(super) fn finish(mut self, carried: &str, output: ValueInfoProto) -> ModelProto {
        self.operator("Identity", &[carried], output.name()).name = Some("output".to_owned());
        self.graph.output.push(output);
        let import = |(domain, version)| OperatorSetIdProto { domain: Some(domain), version: Some(version) };
        ModelProto {
            ir_version: Some(self.ir_version),
            opset_import: self.opsets.into_iter().map(import).collect(),
            producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(self.graph),
            ..ModelProto::default()
        }
    }
}

/// The graph's real input: the one that no initializer gives a default for.
pub(super) fn border(part: &Graph) -> ValueInfoProto {
    let weights = &part.graph().initializer;
    let inputs = &part.graph().input;
    let real = inputs.iter().find(|value| !weights.iter().any(|tensor| tensor.name() == value.name()));
    real.cloned().expect("a checked graph has exactly one input")
}

/// The graph's output.
pub(super) fn result(part: &Graph) -> ValueInfoProto {
    part.graph().output.first().cloned().expect("a checked graph has exactly one output")
}

/// How the names of one part are rewritten.
struct Names<'r> {
    input: String,
    carried: String,
    prefix: String,
    rows: Option<&'r str>,
}

impl Names<'_> {
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
        let mut value = ValueInfoProto { name: Some(self.of(value.name())), ..value.clone() };
        if let Some(rows) = self.rows
            && let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|of| of.value.as_mut())
        {
            let dims = tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim);
            for dim in dims.filter(|dim| matches!(dim.value, Some(Value::DimParam(_)))) {
                dim.value = Some(Value::DimParam(rows.to_owned()));
            }
        }
        value
    }
}
