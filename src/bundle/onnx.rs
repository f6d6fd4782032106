//! The ONNX messages, generated from `proto/onnx/onnx.proto`, and short ways to read them.

mod generated {
    #![allow(clippy::all, clippy::unwrap_used, unreachable_pub, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

pub use generated::*;

use attribute_proto::AttributeType;
use tensor_proto::DataType;
use tensor_shape_proto::{Dimension, dimension};

impl AttributeProto {
    /// An attribute that is a list of integers.
    pub fn of_ints(name: &str, values: &[i64]) -> Self {
        Self {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Ints as i32),
            ints: values.to_vec(),
            ..Self::default()
        }
    }

    /// An attribute that is an integer.
    pub fn of_int(name: &str, value: i64) -> Self {
        Self { name: Some(name.to_owned()), r#type: Some(AttributeType::Int as i32), i: Some(value), ..Self::default() }
    }
}

impl ValueInfoProto {
    /// A tensor of those sides.
    pub fn tensor(name: &str, element: DataType, sides: Vec<dimension::Value>) -> Self {
        let dim = sides.into_iter().map(|side| Dimension { value: Some(side), ..Dimension::default() }).collect();
        let tensor = type_proto::Tensor { elem_type: Some(element as i32), shape: Some(TensorShapeProto { dim }) };
        let of = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        Self { name: Some(name.to_owned()), r#type: Some(of), ..Self::default() }
    }
}

impl NodeProto {
    /// The attribute called `name`, where the node has one.
    pub fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name() == name)
    }

    /// An integer attribute, or `default` where the node has none.
    pub fn attr_int(&self, name: &str, default: i64) -> i64 {
        self.attr(name).map_or(default, AttributeProto::i)
    }

    /// An integer list attribute; empty where the node has none.
    pub fn attr_ints(&self, name: &str) -> &[i64] {
        self.attr(name).map_or(&[], |attribute| &attribute.ints)
    }

    /// A string attribute; empty where the node has none or it is not UTF-8.
    pub fn attr_str(&self, name: &str) -> &str {
        self.attr(name).map_or("", |attribute| std::str::from_utf8(attribute.s()).unwrap_or(""))
    }

    /// The input at `index`; `None` where it is missing or left empty (an optional input).
    pub fn input_at(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }
}

impl OperatorSetIdProto {
    /// The domain of the operators; empty for ONNX's own, by either of its names.
    pub fn operators(&self) -> &str {
        match self.domain() {
            "ai.onnx" => "",
            domain => domain,
        }
    }
}

impl TensorProto {
    /// The values of an integer tensor; `None` for any other element type or a length that does not divide.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let raw = self.raw_data();
        match DataType::try_from(self.data_type()).ok()? {
            DataType::Int64 if raw.is_empty() => Some(self.int64_data.clone()),
            DataType::Int64 => chunks(raw).map(|all| all.map(i64::from_le_bytes).collect()),
            DataType::Int32 if raw.is_empty() => Some(self.int32_data.iter().copied().map(i64::from).collect()),
            DataType::Int32 => chunks(raw).map(|all| all.map(|bytes| i64::from(i32::from_le_bytes(bytes))).collect()),
            _ => None,
        }
    }
}

fn chunks<const SIZE: usize>(bytes: &[u8]) -> Option<impl Iterator<Item = [u8; SIZE]>> {
    let (whole, rest) = bytes.as_chunks::<SIZE>();
    rest.is_empty().then(|| whole.iter().copied())
}
