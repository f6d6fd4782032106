//! The Open Inference Protocol, version 2, over REST, with Triton's extensions for binary tensors, classification,
//! configuration, statistics and the repository's index.

mod infer;
mod request;

#[cfg(feature = "fuzzing")]
pub(in crate::server) use infer::{Asked, json_length, split};

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::openapi::Told;
use crate::registry::{Indexed, Model};
use crate::server::classify::Service;
use crate::server::error::{Error, Kind};
use crate::server::oip::{ModelConfig, ModelMetadata, ModelStatistics, ServerMetadata, statistics};

/// Bytes of the JSON that comes before the binary tensors of a body; 0 where the body is the image.
pub(in crate::server) const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Everything under `/v2`.
pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    // The versions of a model have the same routes; the description of each is made from its model's.
    let versions: Router<Arc<Service>> = Router::new()
        .route("/", get(metadata))
        .route("/ready", get(model_ready))
        .route("/config", get(config))
        .route("/stats", get(model_statistics))
        .route("/infer", post(infer::infer));
    OpenApiRouter::new()
        .routes(routes!(server))
        .route("/v2/", get(server))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(all_statistics))
        .routes(routes!(repository))
        .routes(routes!(metadata))
        .routes(routes!(model_ready))
        .routes(routes!(config))
        .routes(routes!(model_statistics))
        .routes(routes!(infer::infer))
        .merge(Router::new().nest("/v2/models/{model}/versions/{version}", versions).into())
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

/// The server and its extensions
#[utoipa::path(get, path = "/v2", tag = "oip", operation_id = "server", responses((status = 200, body = ServerMetadata), Told))]
async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata::THIS)
}

#[derive(Serialize, ToSchema)]
struct Live {
    live: bool,
}

/// Whether the server can answer at all
///
/// Waits for no inference.
#[utoipa::path(get, path = "/v2/health/live", tag = "oip", operation_id = "live", responses((status = 200, body = Live)))]
async fn live() -> Json<Live> {
    Json(Live { live: true })
}

#[derive(Serialize, ToSchema)]
struct Ready {
    ready: bool,
}

/// Whether the server takes requests
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    tag = "oip",
    operation_id = "ready",
    responses((status = 200, body = Ready), (status = 503, body = Ready))
)]
async fn ready(State(service): State<Arc<Service>>) -> Response {
    let ready = service.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready })).into_response()
}

/// A model's inputs and outputs
#[utoipa::path(
    get,
    path = "/v2/models/{model}",
    tag = "oip",
    operation_id = "metadata",
    params(("model" = String, Path, description = "The model.")),
    responses((status = 200, body = ModelMetadata), Told)
)]
async fn metadata(State(service): State<Arc<Service>>, named: Named) -> Result<Json<ModelMetadata>, Error> {
    let model = named.get(&service)?;
    Ok(Json(ModelMetadata::of(&service.registry, &model)))
}

#[derive(Serialize, ToSchema)]
struct ModelReady {
    name: String,
    ready: bool,
}

/// Whether a model is loaded
#[utoipa::path(
    get,
    path = "/v2/models/{model}/ready",
    tag = "oip",
    operation_id = "model_ready",
    params(("model" = String, Path, description = "The model.")),
    responses((status = 200, body = ModelReady), Told)
)]
async fn model_ready(State(service): State<Arc<Service>>, named: Named) -> Result<Json<ModelReady>, Error> {
    let model = named.get(&service)?;
    Ok(Json(ModelReady { name: model.name.clone(), ready: true }))
}

/// The part of a model's configuration that Triton's clients read
#[utoipa::path(
    get,
    path = "/v2/models/{model}/config",
    tag = "oip",
    operation_id = "config",
    params(("model" = String, Path, description = "The model.")),
    responses((status = 200, body = ModelConfig), Told)
)]
async fn config(State(service): State<Arc<Service>>, named: Named) -> Result<Json<ModelConfig>, Error> {
    let model = named.get(&service)?;
    Ok(Json(ModelConfig::of(&model, service.most_images(&model))))
}

#[derive(Serialize, ToSchema)]
struct Stats {
    model_stats: Vec<ModelStatistics>,
}

/// What a model has done since it was loaded
#[utoipa::path(
    get,
    path = "/v2/models/{model}/stats",
    tag = "oip",
    operation_id = "statistics",
    params(("model" = String, Path, description = "The model.")),
    responses((status = 200, body = Stats), Told)
)]
async fn model_statistics(State(service): State<Arc<Service>>, named: Named) -> Result<Json<Stats>, Error> {
    let found = statistics(&service.registry, Some(&named.model), named.version.as_deref())?;
    Ok(Json(Stats { model_stats: found }))
}

/// What all models have done since they were loaded
#[utoipa::path(get, path = "/v2/models/stats", tag = "oip", operation_id = "all_statistics", responses((status = 200, body = Stats), Told))]
async fn all_statistics(State(service): State<Arc<Service>>) -> Result<Json<Stats>, Error> {
    Ok(Json(Stats { model_stats: statistics(&service.registry, None, None)? }))
}

/// The models that are loaded
///
/// Every one is ready: what a body may ask for makes no difference, and none is read.
#[utoipa::path(
    post,
    path = "/v2/repository/index",
    tag = "oip",
    operation_id = "repository_index",
    responses((status = 200, body = Vec<Indexed>), Told)
)]
async fn repository(State(service): State<Arc<Service>>) -> Json<Vec<Indexed>> {
    Json(service.registry.loaded())
}
