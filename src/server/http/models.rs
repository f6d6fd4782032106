//! `GET /v1/models`, `GET /v1/models/{name}` and `GET /v1/models/{name}/statistics`

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::classify::unreadable;
use super::openapi::Told;
use crate::bundle::{Architecture, InputSpec, Manifest};
use crate::registry::Model;
use crate::server::classify::Service;
use crate::server::error::{Error, Kind};

#[derive(Serialize, ToSchema)]
#[schema(as = Models)]
pub(super) struct List {
    models: Vec<Shown>,
}

/// What a model is.
#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
pub(super) struct Shown {
    name: String,
    version: String,
    /// All versions that are loaded, oldest first.
    versions: Vec<String>,
    /// Whether requests that name no model go to it.
    default: bool,
    /// What its graphs run on.
    provider: String,
    description: String,
    #[schema(value_type = Object)]
    architecture: Architecture,
    classes: usize,
    labels: Vec<String>,
    /// Size, mean, standard deviation and how images are resized.
    #[schema(value_type = Object)]
    input: InputSpec,
    /// Keep a block from this probability on.
    threshold: f64,
    flops: ShownFlops,
    blocks: Vec<ShownBlock>,
    /// Accuracy and the like.
    #[schema(value_type = Object)]
    measured: Value,
    /// How it was trained.
    #[schema(value_type = Object)]
    provenance: Value,
}

/// FLOPs of one image (two per multiply-accumulate).
#[derive(Serialize, ToSchema)]
#[schema(as = ModelFlops)]
struct ShownFlops {
    policy: u64,
    stem: u64,
    head: u64,
    full: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelBlock)]
struct ShownBlock {
    segment: usize,
    /// FLOPs where the block is kept, and where only its shortcut runs.
    flops_kept: u64,
    flops_dropped: u64,
    /// Shape of its input and output, `[C, H, W]`.
    input: Vec<u64>,
    output: Vec<u64>,
}

/// What a model's images came to since the server's start, those of all its versions together.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelCounts)]
pub(super) struct Statistics {
    model: String,
    version: String,
    /// Images that ran.
    images: u64,
    /// Blocks that they kept, in all.
    blocks_kept: u64,
    /// Blocks that each could have kept.
    blocks_total: usize,
    flops: SpentFlops,
    uptime_seconds: f64,
}

/// FLOPs of all images: of the policy network, of the paths that ran, and what full nets would have taken.
#[derive(Serialize, ToSchema)]
struct SpentFlops {
    policy: u64,
    executed: u64,
    full: u64,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// By default the newest.
    version: Option<String>,
}

/// The newest version of each model
#[utoipa::path(get, path = "/v1/models", tag = "models", operation_id = "models", responses((status = 200, body = List), Told))]
pub(super) async fn list(State(service): State<Arc<Service>>) -> Json<List> {
    Json(List { models: service.registry.newest().iter().map(|model| shown(&service, model)).collect() })
}

/// A model: architecture, labels, FLOPs of each block, measured accuracy, provenance
#[utoipa::path(
    get,
    path = "/v1/models/{name}",
    tag = "models",
    operation_id = "model",
    params(("name" = String, Path, description = "The model."), Which),
    responses((status = 200, body = Shown), Told)
)]
pub(super) async fn show(
    State(service): State<Arc<Service>>,
    name: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Shown>, Error> {
    let model = named(&service, name, which)?;
    Ok(Json(shown(&service, &model)))
}

/// What a model's images came to since the server's start
#[utoipa::path(
    get,
    path = "/v1/models/{name}/statistics",
    tag = "models",
    operation_id = "counts",
    params(("name" = String, Path, description = "The model."), Which),
    responses((status = 200, body = Statistics), Told)
)]
pub(super) async fn statistics(
    State(service): State<Arc<Service>>,
    name: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Statistics>, Error> {
    let model = named(&service, name, which)?;
    let counts = model.metrics.counts();
    Ok(Json(Statistics {
        model: model.name.clone(),
        version: model.version.to_string(),
        images: counts.images,
        blocks_kept: counts.blocks_kept,
        blocks_total: model.engine.costs().blocks.len(),
        flops: SpentFlops { policy: counts.flops_policy, executed: counts.flops_executed, full: counts.flops_full },
        uptime_seconds: counts.since.elapsed().as_secs_f64(),
    }))
}

/// The model that a path names, in the version that the query names.
fn named(
    service: &Service,
    name: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Arc<Model>, Error> {
    let Path(name) = name.map_err(|rejection| Error::new(Kind::InvalidParameter, rejection.body_text()))?;
    let Query(which) = which.map_err(|rejection| unreadable(&rejection))?;
    Ok(service.registry.get(Some(&name), which.version.as_deref())?)
}

fn shown(service: &Service, model: &Model) -> Shown {
    let (bundle, costs) = (model.engine.bundle(), model.engine.costs());
    let Manifest { description, architecture, classes, input, policy, measured, provenance, .. } =
        bundle.manifest.clone();
    let versions = service.registry.versions(&model.name).unwrap_or_default();
    let blocks = bundle.blocks.iter().zip(&costs.blocks).map(|(block, cost)| ShownBlock {
        segment: block.segment,
        flops_kept: cost.kept,
        flops_dropped: cost.dropped,
        input: block.kept.input.clone(),
        output: block.kept.output.clone(),
    });
    Shown {
        name: model.name.clone(),
        version: model.version.to_string(),
        versions: versions.keys().map(u64::to_string).collect(),
        default: service.registry.is_default(&model.name),
        provider: model.engine.provider().to_string(),
        description,
        architecture,
        classes,
        labels: bundle.labels.clone(),
        input,
        threshold: policy.threshold,
        flops: ShownFlops { policy: costs.policy, stem: costs.stem, head: costs.head, full: costs.full() },
        blocks: blocks.collect(),
        measured,
        provenance,
    }
}
