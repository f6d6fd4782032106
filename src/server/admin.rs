//! The admin listener: metrics and health, for operators and orchestrators.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::http;
use super::readiness::Readiness;
use crate::telemetry::Metrics;

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// `/metrics`, `/livez` and `/readyz`.
pub(super) fn router(metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> Router {
    let routes = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .fallback(http::not_found)
        .with_state(Admin { metrics, readiness });
    http::identified(routes)
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render()).into_response()
}

/// Alive as long as it can answer at all; waits for no inference.
async fn live() -> Response {
    axum::Json(json!({"live": true})).into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let ready = admin.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"ready": ready, "state": admin.readiness.state()}))).into_response()
}
