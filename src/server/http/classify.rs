//! `POST /v1/classify`

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::{body, openapi};
use crate::server::classify::{Image, ImageResult, Service};
use crate::server::connection::Connection;
use crate::server::error::{Error, Kind};
use crate::server::parameters::Parameters;
use crate::telemetry::RequestContext;

/// What the images of a request are answered with.
#[derive(Serialize, ToSchema)]
#[schema(as = ClassifyAnswer)]
pub(super) struct Answer<'a> {
    model: &'a str,
    version: String,
    /// The request's `x-request-id`, or one made up.
    request_id: &'a str,
    /// One for each image, in their order.
    results: Vec<Entry>,
}

/// One image's result, or its own error.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Entry {
    Result(Box<ImageResult>),
    Error {
        /// What was found and what was expected, for people.
        error: String,
        /// What kind of error it is, for programs.
        code: &'static str,
    },
}

/// Classifies images
///
/// Takes an image's bytes, a form with one or more parts named `image`, or JSON with base64. JPEG, PNG, WebP, BMP and GIF
/// (its first frame) are told apart by their first bytes. Where there are several images, a bad one has its error in place
/// of its result.
#[utoipa::path(
    post,
    path = "/v1/classify",
    tag = "classify",
    operation_id = "classify",
    params(Parameters),
    request_body(content(
        (openapi::Bytes = "application/octet-stream"),
        (body::Form = "multipart/form-data"),
        (body::Encoded<'static> = "application/json", example = json!(openapi::classify_example())),
    )),
    responses((status = 200, body = Answer<'static>), openapi::Classified)
)]
pub(super) async fn classify(
    State(service): State<Arc<Service>>,
    Extension(context): Extension<Arc<RequestContext>>,
    Extension(Connection { flow, .. }): Extension<Connection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    http: HttpRequest,
) -> Result<Response, Error> {
    let received = Instant::now();
    let Query(parameters) = parameters.map_err(|rejection| unreadable(&rejection))?;
    let top_k = parameters.top_k()?.unwrap_or(5);
    let request = parameters.request(&service, Arc::clone(&context), &flow, received)?;
    // A server that is full says so before it reads a body.
    service.admit_to(&flow, &request.model, request.deadline)?;
    let (head, content) = http.into_parts();
    let deadline = received + service.limits.time;
    let held = body::read(&service, &flow, &head.headers, content, deadline, body::EXPECTED).await?;
    let images = body::images(&service, &flow, &request.model, &head.headers, &held.bytes, deadline).await?;
    let single = images.len() == 1;
    let images = images.into_iter().map(|image| image.map(Image::Encoded)).collect();
    let results = service.classify(&request, images).await?;
    // The error of the only image is the request's; so is one of ours that left no image answered.
    let ours = |error: &Error| error.kind.status().is_server_error();
    if (single || results.iter().all(|result| result.as_ref().is_err_and(ours)))
        && let Some(Err(error)) = results.first()
    {
        return Err(error.clone());
    }
    let entries = results.into_iter().map(|result| match result {
        Ok(classified) => Entry::Result(Box::new(classified.result(&request, top_k))),
        Err(error) => Entry::Error { code: error.kind.code(), error: error.message },
    });
    let model = &request.model;
    let version = model.version.to_string();
    let answer = Answer { model: &model.name, version, request_id: context.id(), results: entries.collect() };
    Ok(axum::Json(answer).into_response())
}

/// A query that cannot be read: an unknown parameter, or one given twice.
pub(super) fn unreadable(rejection: &QueryRejection) -> Error {
    let problem = rejection.body_text();
    let problem = problem.strip_prefix("Failed to deserialize query string: ").unwrap_or(&problem);
    Error::new(Kind::InvalidParameter, format!("query: {problem}"))
}
