//! What goes into requests, written before the clock starts: images as a protocol has them, and what is around them.

use std::sync::Arc;

use base64::Engine as _;
use blockdrop::image::{MAX_PIXELS, decode};
use blockdrop::proto::inference::infer_parameter::ParameterChoice;
use blockdrop::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use blockdrop::proto::inference::{InferParameter, ModelInferRequest};
use blockdrop::proto::v1::ClassifyRequest;
use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::encode_varint;
use serde_json::{Map, Value as Json, json};

use super::WireError;
use super::grpc::prefix;
use super::pieces::Pieces;
use super::tensor::Wanted;
use crate::images::{Pool, resized};
use crate::plan::{Arm, Datatype, Protocol, Request};

/// Bytes of all images as a protocol has them, at most.
const MOST_BYTES: usize = 2 << 30;

/// The images of the pool and its bad inputs, encoded; all arms share them.
#[derive(Debug)]
pub(super) struct Items {
    good: Vec<Bytes>,
    bad: Vec<Bytes>,
}

impl Items {
    /// Encodes the `pool` as the `request` says. Where the server gets pixels, bad inputs are tensors that do not fit their
    /// shape: no server can take them for anything else.
    ///
    /// # Errors
    /// An image that has to be decoded cannot be, or all of them take more than two gibibytes.
    pub(super) fn new(pool: &Pool, request: &Request) -> Result<Self, WireError> {
        let mut good = Vec::with_capacity(pool.len());
        let mut total = 0;
        for picture in pool.pictures() {
            let item = match (request.protocol, &request.datatype) {
                (Protocol::Classify | Protocol::ClassifyMultipart | Protocol::Grpc | Protocol::GrpcStream, _) => {
                    picture.bytes.clone()
                }
                (protocol, Datatype::Bytes) => file(&picture.bytes, protocol),
                (protocol, datatype) => {
                    let wrong = |reason: &dyn std::fmt::Display| WireError::Image {
                        name: picture.name.clone(),
                        reason: reason.to_string(),
                    };
                    let image = decode(&picture.bytes, MAX_PIXELS).map_err(|reason| wrong(&reason))?;
                    floats(&pixels(image, datatype), protocol)
                }
            };
            total += item.len();
            if total > MOST_BYTES {
                return Err(WireError::Request {
                    found: format!("more than {MOST_BYTES} bytes of images as {:?}", request.protocol),
                    expected: "fewer images, or smaller ones".to_owned(),
                });
            }
            good.push(item);
        }
        let bad = match (request.protocol, &request.datatype) {
            (Protocol::Classify | Protocol::ClassifyMultipart | Protocol::Grpc | Protocol::GrpcStream, _) => {
                pool.bad().iter().map(|bad| bad.bytes.clone()).collect()
            }
            (protocol, Datatype::Bytes) => pool.bad().iter().map(|bad| file(&bad.bytes, protocol)).collect(),
            (protocol, Datatype::Fp32 { height, width, .. }) => misfits((height * width * 3) as usize, protocol),
        };
        Ok(Self { good, bad })
    }
}

/// A file as an element of BYTES: in JSON as base64, else after its length.
fn file(bytes: &Bytes, protocol: Protocol) -> Bytes {
    if protocol == Protocol::OipJson {
        return format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(bytes)).into();
    }
    let mut element = Vec::with_capacity(4 + bytes.len());
    element.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    element.extend_from_slice(bytes);
    element.into()
}

/// Red, green and blue planes, normalised.
fn pixels(image: image::RgbImage, datatype: &Datatype) -> Vec<f32> {
    let Datatype::Fp32 { height, width, mean, std } = datatype else { return Vec::new() };
    let image = resized(image, Some((*width, *height)));
    let plane = |channel: usize| {
        image.pixels().map(move |pixel| (f32::from(pixel.0[channel]) / 255.0 - mean[channel]) / std[channel])
    };
    (0..3).flat_map(plane).collect()
}

fn floats(values: &[f32], protocol: Protocol) -> Bytes {
    if protocol == Protocol::OipJson {
        let texts: Vec<String> = values.iter().map(f32::to_string).collect();
        return texts.join(",").into();
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Contents that do not fit a tensor of `count` numbers: none, half of them, one more, a text.
fn misfits(count: usize, protocol: Protocol) -> Vec<Bytes> {
    let numbers = |count| floats(&vec![0.0; count], protocol);
    let text = match protocol {
        Protocol::OipJson => "\"This is a sentence and no tensor.\"",
        _ => "This is a sentence and no tensor.",
    };
    vec![Bytes::new(), numbers(count / 2), numbers(count + 1), Bytes::from_static(text.as_bytes())]
}

/// Which bodies a request is to have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    Images { first: usize },
    Bad { kind: usize },
}

/// An arm's bodies.
#[derive(Debug)]
pub(super) struct Mail {
    items: Arc<Items>,
    /// Images of a request.
    count: usize,
    /// What comes before the images: of each request that begins with the image of that number, or of all alike.
    heads: Vec<Bytes>,
    bad_heads: Vec<Bytes>,
    between: Bytes,
    tail: Bytes,
}

impl Mail {
    /// The bodies of `arm`, whose server was asked what it has.
    ///
    /// # Errors
    /// A parameter is none of the protocol's.
    pub(super) fn new(
        items: Arc<Items>,
        request: &Request,
        arm: &Arm,
        model: &str,
        wanted: &Wanted,
        boundary: &str,
    ) -> Result<Self, WireError> {
        let count = request.images;
        let mut mail =
            Self { items, count, heads: Vec::new(), bad_heads: Vec::new(), between: Bytes::new(), tail: Bytes::new() };
        let part = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"image\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        match request.protocol {
            Protocol::Classify => mail.open(false, |_, _| Bytes::new()),
            Protocol::ClassifyMultipart => {
                mail.between = format!("\r\n{part}").into();
                mail.tail = format!("\r\n--{boundary}--\r\n").into();
                let head = Bytes::from(part);
                mail.open(false, |_, _| head.clone());
            }
            Protocol::OipJson => {
                let (head, tail) = json_around(request, arm, wanted);
                mail.between = Bytes::from_static(b",");
                mail.tail = tail.into();
                mail.open(false, |count, _| head(count).into());
            }
            Protocol::OipBinary => mail.open(true, |count, size| json_binary(request, arm, wanted, count, size).into()),
            Protocol::GrpcOip | Protocol::GrpcOipStream => {
                let message = |count| infer_message(request, arm, model, wanted, count);
                let (one, several) = (message(1), message(count));
                mail.open(true, |count, size| {
                    // raw_input_contents, field 7.
                    framed(if count == 1 { &one } else { &several }, 7, size)
                });
            }
            Protocol::Grpc | Protocol::GrpcStream => {
                let message = typed_message(arm)?;
                // image, field 1.
                mail.open(true, |_, size| framed(&message, 1, size));
            }
        }
        Ok(mail)
    }

    /// Writes the heads: of every request, where they tell the `sized` bytes that follow.
    fn open(&mut self, sized: bool, head: impl Fn(usize, usize) -> Bytes) {
        let images = if sized { self.items.good.len() } else { 1 };
        self.heads =
            (0..images).map(|first| head(self.count, self.following(first).map(|item| item.len()).sum())).collect();
        self.bad_heads = self.items.bad.iter().map(|item| head(1, item.len())).collect();
    }

    fn following(&self, first: usize) -> impl Iterator<Item = &Bytes> {
        let good = &self.items.good;
        (0..self.count).map(move |offset| &good[(first + offset) % good.len()])
    }

    /// Numbers of the images of a request.
    pub(super) fn numbers(&self, first: usize) -> impl Iterator<Item = usize> {
        let (images, count) = (self.items.good.len(), self.count);
        (0..count).map(move |offset| (first + offset) % images)
    }

    /// A request's body, and the bytes that come before its images. A bad input comes alone.
    pub(super) fn write(&self, asked: Asked) -> (usize, Pieces) {
        match asked {
            Asked::Images { first } => {
                let head = &self.heads[first % self.heads.len()];
                let items = self.following(first).enumerate().flat_map(|(place, item)| {
                    let between = if place == 0 { Bytes::new() } else { self.between.clone() };
                    [between, item.clone()]
                });
                (head.len(), Pieces::new([head.clone()].into_iter().chain(items).chain([self.tail.clone()])))
            }
            Asked::Bad { kind } => {
                let kind = kind % self.items.bad.len();
                let head = &self.bad_heads[kind];
                let pieces = [head.clone(), self.items.bad[kind].clone(), self.tail.clone()];
                (head.len(), Pieces::new(pieces.into_iter()))
            }
        }
    }

    /// Images of a request.
    pub(super) fn count(&self, asked: Asked) -> usize {
        match asked {
            Asked::Images { .. } => self.count,
            Asked::Bad { .. } => 1,
        }
    }
}

/// A message that ends with a field of bytes, up to those: `message`, the field's number and its `size`, in a frame.
fn framed(message: &[u8], field: u8, size: usize) -> Bytes {
    let mut end = vec![field << 3 | 2];
    encode_varint(size as u64, &mut end);
    let mut framed = Vec::with_capacity(16 + message.len());
    framed.extend_from_slice(&prefix(message.len() + end.len() + size));
    framed.extend_from_slice(message);
    framed.extend_from_slice(&end);
    framed.into()
}

/// An arm's parameters, with their types.
fn typed(arm: &Arm) -> impl Iterator<Item = (&String, Json)> {
    arm.parameters.iter().map(|(name, value)| (name, number(value).unwrap_or_else(|| Json::from(value.as_str()))))
}

/// What reads as a number is one.
fn number(text: &str) -> Option<Json> {
    let float = || text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Json::from);
    text.parse::<i64>().map(Json::from).or_else(|_| text.parse::<u64>().map(Json::from)).ok().or_else(float)
}

fn shape(request: &Request, count: usize) -> Vec<i64> {
    let count = count as i64;
    match request.datatype {
        Datatype::Bytes => vec![count],
        Datatype::Fp32 { height, width, .. } => vec![count, 3, height.into(), width.into()],
    }
}

pub(super) fn datatype(request: &Request) -> &'static str {
    match request.datatype {
        Datatype::Bytes => "BYTES",
        Datatype::Fp32 { .. } => "FP32",
    }
}

/// The JSON before and after the input's data.
fn json_around(request: &Request, arm: &Arm, wanted: &Wanted) -> (impl Fn(usize) -> String, String) {
    let parameters: Map<String, Json> = typed(arm).map(|(name, value)| (name.clone(), value)).collect();
    let parameters =
        if parameters.is_empty() { String::new() } else { format!("\"parameters\":{},", Json::from(parameters)) };
    let outputs: Vec<Json> = wanted.names().map(|name| json!({"name": name})).collect();
    let tail =
        if outputs.is_empty() { "]}]}".to_owned() } else { format!("]}}],\"outputs\":{}}}", Json::from(outputs)) };
    let head = move |count| {
        let (name, datatype, shape) = (json!(request.input), datatype(request), json!(shape(request, count)));
        format!("{{{parameters}\"inputs\":[{{\"name\":{name},\"datatype\":\"{datatype}\",\"shape\":{shape},\"data\":[")
    };
    (head, tail)
}

/// The JSON before an input's `size` bytes.
fn json_binary(request: &Request, arm: &Arm, wanted: &Wanted, count: usize, size: usize) -> String {
    let mut parameters: Map<String, Json> = typed(arm).map(|(name, value)| (name.clone(), value)).collect();
    let outputs: Vec<Json> =
        wanted.names().map(|name| json!({"name": name, "parameters": {"binary_data": true}})).collect();
    if outputs.is_empty() {
        parameters.insert("binary_data_output".to_owned(), Json::from(true));
    }
    let mut body = Map::new();
    if !parameters.is_empty() {
        body.insert("parameters".to_owned(), parameters.into());
    }
    let input = json!({
        "name": request.input,
        "datatype": datatype(request),
        "shape": shape(request, count),
        "parameters": {"binary_data_size": size},
    });
    body.insert("inputs".to_owned(), json!([input]));
    if !outputs.is_empty() {
        body.insert("outputs".to_owned(), outputs.into());
    }
    Json::from(body).to_string()
}

/// A `ModelInferRequest` without its contents.
fn infer_message(request: &Request, arm: &Arm, model: &str, wanted: &Wanted, count: usize) -> Vec<u8> {
    let parameter = |(name, value): (&String, Json)| {
        let choice = match value {
            Json::Number(number) => match number.as_i64() {
                Some(whole) => ParameterChoice::Int64Param(whole),
                None => ParameterChoice::DoubleParam(number.as_f64().unwrap_or_default()),
            },
            other => ParameterChoice::StringParam(other.as_str().unwrap_or_default().to_owned()),
        };
        (name.clone(), InferParameter { parameter_choice: Some(choice) })
    };
    let output = |name: &str| InferRequestedOutputTensor { name: name.to_owned(), ..Default::default() };
    let input = InferInputTensor {
        name: request.input.clone(),
        datatype: datatype(request).to_owned(),
        shape: shape(request, count),
        ..Default::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        model_version: arm.version.clone().unwrap_or_default(),
        parameters: typed(arm).map(parameter).collect(),
        inputs: vec![input],
        outputs: wanted.names().map(output).collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

/// A `ClassifyRequest` without its image.
fn typed_message(arm: &Arm) -> Result<Vec<u8>, WireError> {
    let mut message = ClassifyRequest {
        model: arm.model.clone().unwrap_or_default(),
        version: arm.version.clone().unwrap_or_default(),
        ..Default::default()
    };
    for (name, value) in &arm.parameters {
        let wrong = |expected: &str| WireError::mismatch(arm, format!("{name} = '{value}'"), expected);
        let whole = || value.parse().map(Some).map_err(|_| wrong("a whole number"));
        match name.as_str() {
            "path" => message.path.clone_from(value),
            "threshold" => message.threshold = value.parse().map(Some).map_err(|_| wrong("a number"))?,
            "max_blocks" => message.max_blocks = whole()?,
            "max_flops" => message.max_flops = whole()?,
            "top_k" => message.top_k = whole()?,
            _ => return Err(wrong("one of path, threshold, max_blocks, max_flops, top_k, which blockdrop.v1 has")),
        }
    }
    Ok(message.encode_to_vec())
}
