//! Inference requests: JSON, JSON and binary tensors, and gRPC's messages. What one of them takes, the others take too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blockdrop::bundle::{Filter, InputSpec, Resize};
use blockdrop::proto::inference::ModelInferRequest;
use blockdrop::proto::inference::model_infer_request::InferInputTensor;
use blockdrop::server::{Error, Image, fuzzing};
use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Outcome, Refused, Taken, check_message};

/// Images of a request, at most.
const MOST: usize = 4;

const SIDE: usize = 2;

/// Values of an image's tensor.
const VALUES: usize = 3 * SIDE * SIDE;

fn spec() -> InputSpec {
    InputSpec {
        channels: 3,
        height: SIDE,
        width: SIDE,
        mean: [0.5; 3],
        std: [0.25; 3],
        resize: Resize { short_side: SIDE, filter: Filter::Bilinear },
    }
}

/// An image as it is compared: every bit of a number counts.
fn bits(image: &Image) -> Vec<u8> {
    match image {
        Image::Encoded(bytes) => bytes.to_vec(),
        Image::Pixels(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn refused(error: &Error) -> Outcome {
    check_message(&error.message);
    assert!(error.kind.status().is_client_error(), "{error}");
    Refused
}

/// `input` is a body of JSON alone.
pub(crate) fn json(input: &[u8]) -> Outcome {
    let body = Bytes::copy_from_slice(input);
    match fuzzing::infer(None, &body, &spec(), MOST) {
        Err(error) => refused(&error),
        Ok(images) => {
            stated(input, images.len());
            check(&images);
            Taken
        }
    }
}

/// `input` is the header with the length of the JSON, a line of its own, and the body.
pub(crate) fn binary(input: &[u8]) -> Outcome {
    let line = input.iter().position(|&byte| byte == b'\n').unwrap_or(0);
    let (length, body) = (&input[..line], Bytes::copy_from_slice(input.get(line + 1..).unwrap_or_default()));
    match fuzzing::infer(Some(length), &body, &spec(), MOST) {
        Err(error) => refused(&error),
        Ok(images) => {
            let length: usize = std::str::from_utf8(length).expect("digits").trim().parse().expect("a length");
            if length == 0 {
                assert_eq!(bits(&images[0]), body, "the body is the image");
            } else {
                stated(&body[..length], images.len());
                check(&images);
            }
            Taken
        }
    }
}

/// `input` is a message.
pub(crate) fn grpc(input: &[u8]) -> Outcome {
    let Ok(request) = ModelInferRequest::decode(input) else {
        refused(&fuzzing::infer_message(input).expect_err("what is no message is refused"));
        return Refused;
    };
    let counted = fuzzing::parts(input).expect("what is a message is counted");
    assert!(counted >= parts(&request).min(16_384), "{counted} parts are counted of {}: {request:?}", parts(&request));
    let request = fuzzing::infer_message(input).expect("a message of few parts");
    match fuzzing::infer_images(request, &spec(), MOST) {
        Err(error) => refused(&error),
        Ok(images) => {
            check(&images);
            Taken
        }
    }
}

/// What takes memory of its own in a request.
fn parts(request: &ModelInferRequest) -> usize {
    let inputs = request.inputs.iter().map(|input| {
        let contents = input.contents.as_ref().map_or(0, |contents| {
            contents.bool_contents.len()
                + contents.int_contents.len()
                + contents.int64_contents.len()
                + contents.uint_contents.len()
                + contents.uint64_contents.len()
                + contents.bytes_contents.len()
        });
        1 + input.shape.len() + input.parameters.len() + contents
    });
    let outputs = request.outputs.iter().map(|output| 1 + output.parameters.len());
    inputs.chain(outputs).sum::<usize>() + request.parameters.len() + request.raw_input_contents.len()
}

/// The JSON of a request that was taken states a batch of as many images.
fn stated(text: &[u8], images: usize) {
    #[derive(Deserialize)]
    struct Told {
        inputs: Vec<Input>,
    }
    #[derive(Deserialize)]
    struct Input {
        shape: Vec<usize>,
    }
    let told: Told = serde_json::from_slice(text).expect("what is taken is a request");
    assert_eq!(told.inputs[0].shape[0], images);
}

/// `images` are as many as there may be, fit the model, and are the same over every transport.
fn check(images: &[Image]) {
    assert!((1..=MOST).contains(&images.len()), "{} images", images.len());
    let (mut raw, mut list) = (Vec::new(), Vec::new());
    for image in images {
        match image {
            Image::Pixels(values) => {
                assert_eq!(values.len(), VALUES);
                assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
                raw.extend(bits(image));
                list.extend(values.iter().map(|&value| Value::from(f64::from(value))));
            }
            Image::Encoded(bytes) => {
                raw.extend((bytes.len() as u32).to_le_bytes());
                raw.extend(bytes);
                list.push(Value::from(STANDARD.encode(bytes)));
            }
        }
    }
    let count = images.len();
    let (datatype, shape) = match images[0] {
        Image::Pixels(_) => ("FP32", vec![count, 3, SIDE, SIDE]),
        Image::Encoded(_) => ("BYTES", vec![count]),
    };
    let mut input = json!({"name": "image", "datatype": datatype, "shape": shape, "data": list});
    let same = |again: Result<Vec<Image>, Error>, how: &str| {
        let again = again.unwrap_or_else(|error| panic!("refused as {how}: {error}"));
        let same = again.len() == count && again.iter().zip(images).all(|(again, image)| bits(again) == bits(image));
        assert!(same, "as {how} {again:?}, not {images:?}");
    };

    let text = json!({"inputs": [input]}).to_string();
    same(fuzzing::infer(None, &text.into(), &spec(), MOST), "JSON");

    input.as_object_mut().expect("an object").remove("data");
    input["parameters"] = json!({"binary_data_size": raw.len()});
    let mut body = json!({"inputs": [input]}).to_string().into_bytes();
    let length = body.len().to_string();
    body.extend(&raw);
    same(fuzzing::infer(Some(length.as_bytes()), &body.into(), &spec(), MOST), "binary");

    let shape = shape.iter().map(|&size| size as i64).collect();
    let input = InferInputTensor { name: "image".into(), datatype: datatype.into(), shape, ..Default::default() };
    let message = ModelInferRequest { inputs: vec![input], raw_input_contents: vec![raw.into()], ..Default::default() };
    let message = fuzzing::infer_message(&message.encode_to_vec()).expect("a message");
    same(fuzzing::infer_images(message, &spec(), MOST), "a message");
}
