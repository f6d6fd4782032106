//! What fuzz targets reach of this module beside its interface: requests read without a server.

use std::time::Duration;

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, Uri};
use bytes::Bytes;
use futures_util::FutureExt;
use prost::Message;

use super::classify::Image;
use super::error::{Error, Kind};
use super::grpc;
use super::http::{self, Asked, JSON_LENGTH};
use super::parameters::Parameters;
use crate::bundle::InputSpec;
use crate::policy::{Costs, Selection};
use crate::proto::codec;
use crate::proto::inference::ModelInferRequest;

fn unreadable(problem: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::InvalidBody, problem.to_string())
}

/// The images of a body of `/v1/classify`, at most `most`.
///
/// # Errors
/// The server would refuse the request.
pub fn classify(content_type: &str, body: &Bytes, most: usize) -> Result<Vec<Result<Bytes, Error>>, Error> {
    match content_type {
        "application/json" => http::json(body, most),
        form => http::multipart(form, body, most).now_or_never().expect("the whole body is there"),
    }
}

/// The images of a body of `/v2/models/{model}/infer`, at most `most`, for a model that takes `input`; `json_length` is the
/// header with the bytes of JSON.
///
/// # Errors
/// The server would refuse the request.
pub fn infer(json_length: Option<&[u8]>, body: &Bytes, input: &InputSpec, most: usize) -> Result<Vec<Image>, Error> {
    let mut headers = HeaderMap::new();
    if let Some(length) = json_length {
        headers.insert(JSON_LENGTH, HeaderValue::from_bytes(length).map_err(|error| unreadable(&error))?);
    }
    let json_length = http::json_length(&headers)?;
    if json_length == Some(0) {
        return Ok(vec![Image::Encoded(body.clone())]);
    }
    let (json, tensors) = http::split(body, json_length)?;
    Asked::read(&json, tensors, input, most, &mut Parameters::default()).map(|asked| asked.images)
}

/// The request of a gRPC message, as far as it is bounded.
///
/// # Errors
/// The server would refuse the message.
pub fn infer_message(message: &[u8]) -> Result<ModelInferRequest, Error> {
    codec::bounded(message)?;
    ModelInferRequest::decode(message).map_err(|error| unreadable(&error))
}

/// The parts that are counted of a gRPC message, to 16,384 at least; `None` where it is no message.
pub fn parts(message: &[u8]) -> Option<usize> {
    codec::parts(message)
}

/// The images of a request over gRPC, at most `most`, for a model that takes `input`.
///
/// # Errors
/// The server would refuse the request.
pub fn infer_images(request: ModelInferRequest, input: &InputSpec, most: usize) -> Result<Vec<Image>, Error> {
    grpc::images(request.inputs, request.raw_input_contents, input, most)
}

/// What the parameters of a `query` ask for.
pub struct Asks {
    pub selection: Selection,
    pub top_k: Option<usize>,
    pub timeout: Option<Duration>,
}

/// The parameters of a `query`, for a model with these `costs` and this keep `threshold`.
///
/// # Errors
/// The server would refuse the request.
pub fn parameters(query: &str, costs: &Costs, threshold: f64) -> Result<Asks, Error> {
    let uri = Uri::try_from(format!("/?{query}")).map_err(|error| unreadable(&error))?;
    let Query(parameters) = Query::<Parameters>::try_from_uri(&uri).map_err(|error| unreadable(&error))?;
    Ok(Asks {
        selection: parameters.selection(costs, threshold)?,
        top_k: parameters.top_k()?,
        timeout: parameters.timeout()?,
    })
}
