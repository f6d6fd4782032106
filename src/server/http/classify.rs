//! `POST /v1/classify`

use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{RequestId, body};
use crate::policy::Choice;
use crate::server::classify::{ImageResult, Request, Service};
use crate::server::error::{Error, Kind};
use crate::text::shortened;

/// The query, as text, so that each value's error can name it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    model: Option<String>,
    version: Option<String>,
    top_k: Option<String>,
    path: Option<String>,
    threshold: Option<String>,
    max_blocks: Option<String>,
    max_flops: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    version: String,
    request_id: &'a str,
    results: Vec<Entry>,
}

/// One image's result, or its own error.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Result(Box<ImageResult>),
    Error { error: String, code: &'static str },
}

pub(super) async fn classify(
    State(service): State<Arc<Service>>,
    Extension(id): Extension<RequestId>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    http: HttpRequest,
) -> Result<Response, Error> {
    let deadline = Instant::now() + service.limits.time;
    let Query(parameters) = parameters.map_err(|rejection| unreadable(&rejection))?;
    let request = parameters.request(&service, &id, deadline)?;
    // A server that is full says so before it reads a body.
    service.admit()?;
    let (head, content) = http.into_parts();
    let held = body::read(&service, &head.headers, content, deadline).await?;
    let images = body::images(&head.headers, &held.bytes, service.most_images()).await?;
    let single = images.len() == 1;
    let results = service.classify(&request, images).await?;
    // The error of the only image is the request's; so is one of ours that left no image answered.
    let ours = |error: &Error| error.kind.status().is_server_error();
    if (single || results.iter().all(|result| result.as_ref().is_err_and(ours)))
        && let Some(Err(error)) = results.first()
    {
        return Err(error.clone());
    }
    let entries = results.into_iter().map(|result| match result {
        Ok(result) => Entry::Result(Box::new(result)),
        Err(error) => Entry::Error { code: error.kind.code(), error: error.message },
    });
    let model = &request.model;
    let version = model.version.to_string();
    let answer = Answer { model: &model.name, version, request_id: id.as_str(), results: entries.collect() };
    Ok(axum::Json(answer).into_response())
}

impl Parameters {
    fn request(self, service: &Service, id: &RequestId, deadline: Instant) -> Result<Request, Error> {
        let model = Arc::clone(service.registry.get(self.model.as_deref(), self.version.as_deref())?);
        let choice = Choice {
            path: self.path.map_or(Ok(Default::default()), |path| path.parse())?,
            threshold: number("threshold", self.threshold, "a probability from 0 to 1")?,
            max_blocks: number("max_blocks", self.max_blocks, "a number of blocks")?,
            max_flops: number("max_flops", self.max_flops, "a number of FLOPs")?,
        };
        let selection = choice.check(model.engine.costs(), model.engine.bundle().manifest.policy.threshold)?;
        const CLASSES: &str = "a number of classes from 1";
        let top_k = number("top_k", self.top_k, CLASSES)?.unwrap_or(5);
        if top_k == 0 {
            return Err(Error::new(Kind::InvalidParameter, format!("top_k: found 0, expected {CLASSES}")));
        }
        Ok(Request { model, selection, top_k, id: id.as_str().into(), deadline })
    }
}

/// A query that cannot be read: an unknown parameter, or one given twice.
pub(super) fn unreadable(rejection: &QueryRejection) -> Error {
    let problem = rejection.body_text();
    let problem = problem.strip_prefix("Failed to deserialize query string: ").unwrap_or(&problem);
    Error::new(Kind::InvalidParameter, format!("query: {problem}"))
}

fn number<T: FromStr>(name: &str, value: Option<String>, expected: &str) -> Result<Option<T>, Error> {
    let parse = |text: String| {
        text.parse().map_err(|_| {
            let found = shortened(&text);
            Error::new(Kind::InvalidParameter, format!("{name}: found '{found}', expected {expected}"))
        })
    };
    value.map(parse).transpose()
}
