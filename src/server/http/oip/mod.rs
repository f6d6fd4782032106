//! The Open Inference Protocol, version 2, over REST, with Triton's extensions for binary tensors, classification,
//! configuration, statistics and the repository's index.

mod infer;
mod request;

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::registry::Model;
use crate::server::classify::Service;
use crate::server::error::{Error, Kind};
use crate::server::oip::{IndexEntry, ModelConfig, ModelMetadata, ModelStatistics, ServerMetadata, index, statistics};

/// Everything under `/v2`.
pub(super) fn routes() -> Router<Arc<Service>> {
    let mut routes = Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/repository/index", post(repository));
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        routes = routes
            .route(model, get(metadata))
            .route(&format!("{model}/ready"), get(model_ready))
            .route(&format!("{model}/config"), get(config))
            .route(&format!("{model}/stats"), get(model_statistics))
            .route(&format!("{model}/infer"), post(infer::infer));
    }
    routes
}

/// The model that a path names.
#[derive(Debug, Deserialize)]
struct Named {
    model: String,
    version: Option<String>,
}

impl Named {
    fn get(&self, service: &Service) -> Result<Arc<Model>, Error> {
        Ok(service.registry.get(Some(&self.model), self.version.as_deref())?)
    }
}

/// A name that is no UTF-8 is the client's error.
impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let named: Result<Path<Self>, PathRejection> = Path::from_request_parts(parts, state).await;
        named.map(|Path(named)| named).map_err(|error| Error::new(Kind::InvalidParameter, error.body_text()))
    }
}

async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata::THIS)
}

/// Waits for no inference.
async fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

async fn ready(State(service): State<Arc<Service>>) -> Response {
    let ready = !service.admission.is_stopping();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready}))).into_response()
}

async fn metadata(State(service): State<Arc<Service>>, named: Named) -> Result<Json<ModelMetadata>, Error> {
    let model = named.get(&service)?;
    Ok(Json(ModelMetadata::of(&service.registry, &model)))
}

async fn model_ready(State(service): State<Arc<Service>>, named: Named) -> Result<Json<Value>, Error> {
    let model = named.get(&service)?;
    Ok(Json(json!({"name": model.name, "ready": true})))
}

async fn config(State(service): State<Arc<Service>>, named: Named) -> Result<Json<ModelConfig>, Error> {
    let model = named.get(&service)?;
    Ok(Json(ModelConfig::of(&model, service.most_images())))
}

async fn model_statistics(State(service): State<Arc<Service>>, named: Named) -> Result<Json<Value>, Error> {
    let found = statistics(&service.registry, Some(&named.model), named.version.as_deref())?;
    Ok(shown(&found))
}

async fn all_statistics(State(service): State<Arc<Service>>) -> Result<Json<Value>, Error> {
    Ok(shown(&statistics(&service.registry, None, None)?))
}

fn shown(found: &[ModelStatistics]) -> Json<Value> {
    Json(json!({"model_stats": found}))
}

/// Every model here is ready: what a body may ask for makes no difference, and none is read.
async fn repository(State(service): State<Arc<Service>>) -> Json<Vec<IndexEntry>> {
    Json(index(&service.registry))
}
