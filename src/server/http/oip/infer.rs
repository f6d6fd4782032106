//! `POST /v2/models/{model}/infer`: JSON, JSON and binary tensors, or an image's bytes alone.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::request::{self, Data, InferRequest, Input, Output, Parameter, Values};
use super::{JSON_LENGTH, Named};
use crate::bundle::InputSpec;
use crate::server::classify::{Image, Service};
use crate::server::connection::Connection;
use crate::server::error::{Error, Kind};
use crate::server::http::classify::unreadable;
use crate::server::http::json::Object;
use crate::server::http::{body, openapi};
use crate::server::oip::{self, Contents, Expected, Infer, Inferred, Value, Wanted};
use crate::server::parameters::{Parameters, check_id};
use crate::telemetry::RequestContext;
use crate::text::shortened;

/// Classifies a batch of images, all or none
///
/// The only input is `image`: FP32 `[N, 3, H, W]`, normalised already, or BYTES `[N]`, encoded images, in JSON as base64.
/// Outputs: `logits` and `probabilities` FP32 `[N, C]`, `class` INT32 `[N]`, `mask` UINT8 `[N, K]` (1 for each block kept),
/// `blocks` INT32 `[N]` (kept), `flops` INT64 `[N]` (policy and path). With the parameter `top_k`, `class` and
/// `probabilities` are `[N, top_k]`, the most probable first. Other parameters: `path`, `threshold`, `max_blocks`,
/// `max_flops`, `timeout` (microseconds), `binary_data_output`. With the header `Inference-Header-Content-Length: 0` the body
/// is one encoded image and the parameters are in the query.
#[utoipa::path(
    post,
    path = "/v2/models/{model}/infer",
    tag = "oip",
    operation_id = "infer",
    params(
        ("model" = String, Path, description = "The model."),
        ("Inference-Header-Content-Length" = Option<u64>, Header,
            description = "Bytes of the JSON before the binary tensors; 0 where the body is the image."),
    ),
    request_body(content((InferRequest<'static> = "application/json", example = json!(openapi::infer_example())), (openapi::Bytes = "application/octet-stream"))),
    responses(
        (status = 200, content(
            (Shown<'static> = "application/json"),
            (openapi::Bytes = "application/octet-stream"),
        ), headers(("Inference-Header-Content-Length" = u64, description = "Bytes of JSON before the binary tensors."))),
        openapi::Classified,
    )
)]
pub(super) async fn infer(
    State(service): State<Arc<Service>>,
    Extension(context): Extension<Arc<RequestContext>>,
    Extension(Connection { flow, .. }): Extension<Connection>,
    named: Named,
    query: Result<Query<Parameters>, QueryRejection>,
    http: HttpRequest,
) -> Result<Response, Error> {
    let received = Instant::now();
    let model = named.get(&service)?;
    let Query(mut parameters) = query.map_err(|rejection| unreadable(&rejection))?;
    for (name, value) in [("model", &parameters.model), ("version", &parameters.version)] {
        if let Some(value) = value {
            let found = shortened(value);
            return Err(Error::new(
                Kind::InvalidParameter,
                format!("{name}: found '{found}' in the query, expected the model in the path alone"),
            ));
        }
    }
    let deadline = received + service.limits.time;
    service.admit_to(&flow, &model, deadline)?;
    let (head, content) = http.into_parts();
    let json_length = json_length(&head.headers)?;
    let held = body::read(&service, &flow, &head.headers, content, deadline, EXPECTED).await?;
    let asked = if json_length == Some(0) {
        Asked { id: None, wanted: Wanted::all(false), images: vec![Image::Encoded(held.bytes.clone())] }
    } else {
        let (json, tensors) = split(&held.bytes, json_length)?;
        let (model, most) = (Arc::clone(&model), service.most_images(&model));
        let read = service.decoders.aside(&flow, held.bytes.len(), deadline, move || {
            let input = &model.engine.bundle().manifest.input;
            let asked = Asked::read(&json, tensors, input, most, &mut parameters)?;
            Ok::<_, Error>((asked, parameters))
        });
        let (asked, given) = read.await??;
        parameters = given;
        asked
    };
    let Asked { id, wanted, images } = asked;
    let top_k = parameters.top_k()?;
    let request = parameters.request_for(Arc::clone(&model), &service, context, &flow, received)?;
    let inferred = Infer { request, images, wanted, top_k }.run(&service).await?;
    let (model, version) = (model.name.clone(), model.version.to_string());
    Ok(written(&Answer { model, version, id, inferred }))
}

const EXPECTED: &str = "an inference request {\"inputs\":[...]}, or an image's bytes with \
                        Inference-Header-Content-Length: 0";

pub(in crate::server) fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let mut values = headers.get_all(JSON_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()));
    let number = text.and_then(|text| text.parse().ok()).filter(|_| values.next().is_none());
    let found = || shortened(&String::from_utf8_lossy(value.as_bytes()));
    number.map(Some).ok_or_else(|| {
        Error::new(
            Kind::InvalidParameter,
            format!("{JSON_LENGTH}: found '{}', expected a number of bytes, once", found()),
        )
    })
}

/// The JSON of a body, and the binary tensors after it.
pub(in crate::server) fn split(body: &Bytes, json_length: Option<usize>) -> Result<(Bytes, Bytes), Error> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        let found = body.len();
        return Err(Error::new(
            Kind::InvalidBody,
            format!("{JSON_LENGTH} states {length} bytes of JSON, found a body of {found} bytes"),
        ));
    }
    Ok((body.slice(..length), body.slice(length..)))
}

/// What a body asks for.
pub(in crate::server) struct Asked {
    id: Option<String>,
    wanted: Vec<Wanted>,
    pub(in crate::server) images: Vec<Image>,
}

impl Asked {
    /// Reads a body of `json` and binary `tensors`, for a model that takes `spec`; its parameters are added to
    /// `parameters`.
    pub(in crate::server) fn read(
        json: &[u8],
        tensors: Bytes,
        spec: &InputSpec,
        most: usize,
        parameters: &mut Parameters,
    ) -> Result<Self, Error> {
        let wrong = |error: serde_json::Error| {
            Error::new(Kind::InvalidBody, format!("JSON: {error}; expected {{\"inputs\":[...]}}"))
        };
        let InferRequest { id, parameters: given, mut inputs, outputs } = request::read(json).map_err(wrong)?;
        check_id("id", id.as_deref().unwrap_or_default())?;
        let mut binary = false;
        for (name, value) in given.0 {
            match name.as_str() {
                "binary_data_output" => binary = flag("parameters.binary_data_output", &value)?,
                _ => parameters.set(&name, value.text())?,
            }
        }
        let wanted = if outputs.is_empty() { Wanted::all(binary) } else { wanted(&outputs, binary)? };
        let Object(input) = inputs.pop().ok_or_else(|| {
            Error::new(Kind::InvalidBody, format!("inputs: found none, expected one named {}", oip::INPUT))
        })?;
        let expected = Expected::new(spec, &input.name, &input.datatype, &input.shape, most)?;
        let none = if expected.takes_files() { Values::Files(Vec::new()) } else { Values::Floats(Vec::new()) };
        let data = input.data.map(|data| Data::read(data, none, expected.values())).transpose();
        let data = data.map_err(|error| Error::new(Kind::InvalidBody, format!("inputs: {error}")))?;
        let images = expected.images(contents(&input, data, tensors)?)?;
        Ok(Self { id, wanted, images })
    }
}

/// What is written as an answer.
struct Answer {
    model: String,
    version: String,
    id: Option<String>,
    inferred: Inferred,
}

fn flag(name: &str, value: &Parameter) -> Result<bool, Error> {
    match value {
        Parameter::Bool(value) => Ok(*value),
        other => {
            let found = shortened(&other.text());
            Err(Error::new(Kind::InvalidParameter, format!("{name}: found '{found}', expected true or false")))
        }
    }
}

fn wanted(outputs: &[Object<Output>], binary: bool) -> Result<Vec<Wanted>, Error> {
    let each = outputs.iter().map(|Object(output)| {
        let (mut classification, mut binary) = (None, binary);
        for (name, value) in &output.parameters.0 {
            match (name.as_str(), value) {
                ("binary_data", value) => binary = flag("outputs: binary_data", value)?,
                ("classification", Parameter::Unsigned(classes)) => {
                    classification = Some(usize::try_from(*classes).unwrap_or(usize::MAX));
                }
                (name, value) => {
                    let (name, found) = (shortened(name), shortened(&value.text()));
                    return Err(Error::new(
                        Kind::InvalidParameter,
                        format!(
                            "outputs: found parameter {name} = {found}, expected binary_data (true or false) or \
                             classification (a number of classes)"
                        ),
                    ));
                }
            }
        }
        Wanted::new(&output.name, classification, binary)
    });
    let wanted: Vec<Wanted> = each.collect::<Result<_, Error>>()?;
    Wanted::distinct(&wanted)?;
    Ok(wanted)
}

/// The contents of an input: its `data`, or the binary `tensors` after the JSON.
fn contents(input: &Input<'_>, data: Option<Data>, tensors: Bytes) -> Result<Contents, Error> {
    let wrong = |problem: String| Error::new(Kind::InvalidBody, format!("inputs: {problem}"));
    let mut stated = None;
    for (name, value) in &input.parameters.0 {
        match (name.as_str(), value) {
            ("binary_data_size", Parameter::Unsigned(size)) => stated = Some(*size),
            ("binary_data_size", value) => {
                let found = shortened(&value.text());
                return Err(wrong(format!("binary_data_size: found '{found}', expected a number of bytes")));
            }
            (name, _) if name.starts_with("shared_memory") => {
                return Err(wrong(format!("found {}, expected data: shared memory is not read", shortened(name))));
            }
            _ => {} // what other servers' clients say of an input
        }
    }
    match (data, stated) {
        (Some(_), Some(_)) => Err(wrong("found data and binary_data_size, expected one of them".to_owned())),
        (None, None) => Err(wrong("found neither data nor binary_data_size, expected one of them".to_owned())),
        (None, Some(size)) if size != tensors.len() as u64 => {
            let found = tensors.len();
            Err(wrong(format!("binary_data_size states {size} bytes, found {found} after the JSON")))
        }
        (None, Some(_)) => Ok(Contents::Raw(tensors)),
        (Some(_), None) if !tensors.is_empty() => {
            let found = tensors.len();
            Err(wrong(format!("found {found} bytes after the JSON, expected none beside data")))
        }
        (Some(Data { values, shape }), None) => {
            let fits = |(found, stated): (&usize, &i64)| i64::try_from(*found) == Ok(*stated);
            let nested = shape.len() > 1;
            if nested && !(shape.len() == input.shape.len() && shape.iter().zip(&input.shape).all(fits)) {
                let stated = &input.shape;
                return Err(wrong(format!(
                    "found data of shape {shape:?}, expected {stated:?} as stated, or a flat list"
                )));
            }
            Ok(match values {
                Values::Floats(floats) => Contents::Floats(floats),
                Values::Files(files) => Contents::Files(files),
            })
        }
    }
}

/// An answer's JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = InferAnswer)]
pub(super) struct Shown<'a> {
    model_name: &'a str,
    model_version: &'a str,
    /// The request's, where it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// Facts of the image, where there is one alone.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    parameters: Map<String, Json>,
    outputs: Vec<ShownOutput<'a>>,
}

/// An output: its `data`, or in `parameters` the bytes that it has after the JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = InferOutput)]
struct ShownOutput<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Json>>)]
    data: Option<&'a oip::Data>,
}

#[derive(Serialize, ToSchema)]
struct BinarySize {
    binary_data_size: usize,
}

/// The answer as JSON, or as JSON and then the binary tensors.
fn written(answer: &Answer) -> Response {
    let mut tensors = Vec::new();
    let mut output = |tensor: &'_ oip::Tensor| {
        let binary = tensor.binary.then(|| tensor.data.raw());
        let parameters = binary.as_ref().map(|raw| BinarySize { binary_data_size: raw.len() });
        tensors.extend(binary.into_iter().flatten());
        parameters
    };
    let outputs = answer.inferred.outputs.iter().map(|tensor| ShownOutput {
        name: tensor.name,
        datatype: tensor.data.datatype(),
        shape: &tensor.shape,
        parameters: output(tensor),
        data: (!tensor.binary).then_some(&tensor.data),
    });
    let parameter = |(name, value): &(&'static str, Value)| {
        let value = match value {
            Value::Text(text) => Json::from(text.as_str()),
            Value::Integer(number) => Json::from(*number),
        };
        ((*name).to_owned(), value)
    };
    let shown = Shown {
        model_name: &answer.model,
        model_version: &answer.version,
        id: answer.id.as_deref(),
        parameters: answer.inferred.parameters.iter().map(parameter).collect(),
        outputs: outputs.collect(),
    };
    if shown.outputs.iter().all(|output| output.parameters.is_none()) {
        return axum::Json(shown).into_response();
    }
    let mut body = serde_json::to_vec(&shown).expect("an answer is JSON");
    let length = HeaderValue::from(body.len());
    body.append(&mut tensors);
    ([(JSON_LENGTH, length), (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))], body)
        .into_response()
}
