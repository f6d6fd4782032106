//! Builds ONNX graphs layer by layer; the weights of a layer depend on the seed and the layer's name alone.

use blockdrop::bundle::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::Dimension, tensor_shape_proto::dimension, type_proto,
};
use prost::Message;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::net::{MEAN, STD};

pub(crate) const OPSET: i64 = 17;

pub(crate) struct Builder {
    seed: u64,
    graph: GraphProto,
}

/// A convolution's geometry.
#[derive(Clone, Copy)]
pub(crate) struct Conv {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) kernel: u64,
    pub(crate) stride: u64,
}

/// An image of one colour.
#[derive(Clone, Copy)]
pub(crate) enum Extreme {
    White,
    Black,
}

impl Builder {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, graph: GraphProto { name: Some("net".into()), ..Default::default() } }
    }

    /// Closes the graph: `input` and `output` with their shapes behind a free batch dimension.
    pub(crate) fn finish(mut self, input: (&str, &[u64]), output: (&str, &[u64])) -> Vec<u8> {
        self.graph.input.push(value(input.0, input.1));
        self.graph.output.push(value(output.0, output.1));
        let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) };
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(self.graph),
            producer_name: Some("blockdrop-testkit".into()),
            ..Default::default()
        }
        .encode_to_vec()
    }

    /// Renames the value made last, so that it can be the graph's output.
    pub(crate) fn name_last(&mut self, name: &str) {
        let node = self.graph.node.last_mut().expect("a node was added");
        node.output = vec![name.into()];
    }

    pub(crate) fn node(&mut self, op: &str, layer: &str, input: &[&str], attribute: Vec<AttributeProto>) -> String {
        let output = format!("{layer}.{}", op.to_lowercase());
        self.graph.node.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(output.clone()),
            input: input.iter().map(|&name| name.into()).collect(),
            output: vec![output.clone()],
            attribute,
            ..Default::default()
        });
        output
    }

    pub(crate) fn conv(&mut self, layer: &str, x: &str, conv: Conv, gain: f32) -> String {
        let fan_in = (conv.from * conv.kernel * conv.kernel) as f32;
        let shape = [conv.to, conv.from, conv.kernel, conv.kernel];
        let weight = self.weight(&format!("{layer}.weight"), &shape, gain * (2.0 / fan_in).sqrt());
        let bias = self.weight(&format!("{layer}.bias"), &[conv.to], 0.1);
        let (kernel, stride, pad) = (conv.kernel as i64, conv.stride as i64, (conv.kernel / 2) as i64);
        let attributes = vec![
            AttributeProto::of_ints("kernel_shape", &[kernel; 2]),
            AttributeProto::of_ints("strides", &[stride; 2]),
            AttributeProto::of_ints("pads", &[pad; 4]),
        ];
        self.node("Conv", layer, &[x, &weight, &bias], attributes)
    }

    pub(crate) fn linear(&mut self, layer: &str, x: &str, from: u64, to: u64, scale: f32) -> String {
        let weight = self.weight(&format!("{layer}.weight"), &[to, from], scale);
        let bias = self.weight(&format!("{layer}.bias"), &[to], scale);
        self.node("Gemm", layer, &[x, &weight, &bias], vec![AttributeProto::of_int("transB", 1)])
    }

    /// Average pool by `stride`, then zero channels appended: the shortcut without weights (option A).
    pub(crate) fn pooled_shortcut(&mut self, layer: &str, x: &str, from: u64, to: u64, stride: u64) -> String {
        let window = [stride as i64; 2];
        let pooled = self.node(
            "AveragePool",
            layer,
            &[x],
            vec![AttributeProto::of_ints("kernel_shape", &window), AttributeProto::of_ints("strides", &window)],
        );
        let pads = format!("{layer}.pads");
        self.graph.initializer.push(TensorProto {
            name: Some(pads.clone()),
            dims: vec![8],
            data_type: Some(DataType::Int64 as i32),
            int64_data: vec![0, 0, 0, 0, 0, (to - from) as i64, 0, 0],
            ..Default::default()
        });
        self.node("Pad", layer, &[&pooled, &pads], vec![])
    }

    /// Adds nothing to `x`, `[N, ...]`, except where an image, `[N, 3, H, W]`, is all of one colour: there ONNX Runtime
    /// fails. The nothing is looked up in a table of one zero, at a place that is beyond it for such an image.
    pub(crate) fn trap(&mut self, layer: &str, image: &str, extreme: Extreme, x: &str) -> String {
        let layer = format!("{layer}.trap");
        // Half a shade off the colour.
        let normalised =
            |shade: f64| MEAN.iter().zip(STD).map(move |(mean, std)| ((shade / 255.0 - mean) / std) as f32);
        let axes = || vec![AttributeProto::of_ints("axes", &[1, 2, 3])];
        let beyond = match extreme {
            Extreme::White => {
                let least = self.node("ReduceMin", &layer, &[image], axes());
                let limit = self.number(&layer, normalised(254.5).fold(f32::MAX, f32::min));
                self.node("Sub", &layer, &[&least, &limit], vec![])
            }
            Extreme::Black => {
                let most = self.node("ReduceMax", &layer, &[image], axes());
                let limit = self.number(&layer, normalised(0.5).fold(f32::MIN, f32::max));
                self.node("Sub", &layer, &[&limit, &most], vec![])
            }
        };
        let beyond = self.node("Relu", &layer, &[&beyond], vec![]);
        let place = self.node("Ceil", &layer, &[&beyond], vec![]);
        let place = self.node("Cast", &layer, &[&place], vec![AttributeProto::of_int("to", DataType::Int64 as i64)]);
        let table = self.number(&format!("{layer}.table"), 0.0);
        let nothing = self.node("Gather", &layer, &[&table, &place], vec![]);
        // An operator without a shape rule.
        self.graph.value_info.push(value(&nothing, &[1, 1, 1]));
        self.node("Add", &layer, &[x, &nothing], vec![])
    }

    /// A tensor of one number.
    fn number(&mut self, layer: &str, number: f32) -> String {
        let name = format!("{layer}.number");
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            dims: vec![1],
            data_type: Some(DataType::Float as i32),
            float_data: vec![number],
            ..Default::default()
        });
        name
    }

    fn weight(&mut self, name: &str, shape: &[u64], scale: f32) -> String {
        let salt = name.bytes().fold(self.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut generator = ChaCha8Rng::seed_from_u64(salt);
        let count: u64 = shape.iter().product();
        // Uniform with the standard deviation `scale`.
        let data = (0..count).flat_map(|_| (generator.random_range(-1.732f32..1.732) * scale).to_le_bytes()).collect();
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            dims: shape.iter().map(|&side| side as i64).collect(),
            data_type: Some(DataType::Float as i32),
            raw_data: Some(data),
            ..Default::default()
        });
        name.into()
    }
}

fn value(name: &str, shape: &[u64]) -> ValueInfoProto {
    let dim = |value| Dimension { value: Some(value), ..Default::default() };
    let batch = dim(dimension::Value::DimParam("N".into()));
    let sides = shape.iter().map(|&side| dim(dimension::Value::DimValue(side as i64)));
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape: Some(TensorShapeProto { dim: std::iter::once(batch).chain(sides).collect() }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}
