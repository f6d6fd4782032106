//! The admin listener: metrics and health, and the repository of models, for operators and orchestrators.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::error::{Error, Kind};
use super::http;
use super::pulse::Pulse;
use super::readiness::Readiness;
use crate::registry::{Change, Changes, Indexed, Registry};
use crate::telemetry::Metrics;
use crate::text::shortened;

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    registry: Arc<OnceLock<Arc<Registry>>>,
    stuck: Option<Duration>,
    /// Of the threads that serve.
    pulse: Arc<Pulse>,
}

/// `/metrics`, `/livez`, `/readyz`, and what changes the models in `registry`, once that is there. A worker that is at one
/// batch for longer than `stuck` is taken for stuck, and so are the threads that serve whose `pulse` is missing for longer.
pub(super) fn router(
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    registry: Arc<OnceLock<Arc<Registry>>>,
    stuck: Option<Duration>,
    pulse: Arc<Pulse>,
) -> Router {
    let routes = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/reload", post(reload))
        .route("/v2/repository/models/{name}/load", post(load))
        .route("/v2/repository/models/{name}/unload", post(unload))
        .fallback(http::not_found)
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .layer(from_fn(no_page))
        .with_state(Admin { metrics, readiness, registry, stuck, pulse });
    http::encoding::compressed(http::identified(routes, None))
}

/// Keeps web pages from changing anything: a browser on an operator's machine reaches this listener, and would send what
/// any page tells it to. It names the page's origin with every POST.
async fn no_page(request: Request, next: Next) -> Result<Response, Error> {
    if request.method() != Method::GET && request.headers().contains_key(header::ORIGIN) {
        let message = "found a request of a web page (it has an Origin header), expected one of an operator's tool";
        return Err(Error::new(Kind::Forbidden, message));
    }
    Ok(next.run(request).await)
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render()).into_response()
}

/// Alive however long its queue is; waits for no inference. Only a worker that does not come back from one batch, or threads
/// that serve and come to nothing new, are worth a new start.
async fn live(State(admin): State<Admin>) -> Response {
    let (busy, missing) = (admin.metrics.workers.longest(), admin.pulse.missing());
    let stuck = |time: Duration| admin.stuck.is_some_and(|most| time > most);
    let why = if stuck(busy) {
        json!({"live": false, "busy_seconds": busy.as_secs_f64()})
    } else if stuck(missing) {
        json!({"live": false, "missing_seconds": missing.as_secs_f64()})
    } else {
        return Json(json!({"live": true})).into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(why)).into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let ready = admin.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready, "state": admin.readiness.state()}))).into_response()
}

impl Admin {
    fn registry(&self) -> Result<&Arc<Registry>, Error> {
        self.registry.get().ok_or_else(|| Error::new(Kind::Starting, "the models are being loaded; try again later"))
    }
}

/// Every version in the repository; with `{"ready": true}`, those that are served.
async fn index(State(admin): State<Admin>, body: Body) -> Result<Json<Vec<Indexed>>, Error> {
    let registry = admin.registry()?;
    let mut ready = false;
    for (key, value) in object(body)? {
        match (key.as_str(), value) {
            ("ready", Value::Bool(only)) => ready = only,
            ("ready", other) => return Err(invalid(format!("ready: found {other}, expected true or false"))),
            (other, _) => return Err(invalid(format!("found '{}', expected ready", shortened(other)))),
        }
    }
    if ready {
        return Ok(Json(registry.loaded()));
    }
    let registry = Arc::clone(registry);
    let index = tokio::task::spawn_blocking(move || registry.index()).await;
    index.map(Json).map_err(|_| Error::new(Kind::Internal, "the repository could not be read"))
}

type Name = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;

/// Bytes of a body, at most.
const MOST_BYTES: usize = 64 << 10;

async fn load(State(admin): State<Admin>, name: Name, body: Body) -> Result<Json<Change>, Error> {
    let (registry, name) = (admin.registry()?, plain(name)?);
    no_parameters(body, &[])?;
    Ok(Json(registry.reload(&name).await?))
}

/// All models, as SIGHUP does.
async fn reload(State(admin): State<Admin>, body: Body) -> Result<Json<Value>, Error> {
    let registry = admin.registry()?;
    no_parameters(body, &[])?;
    let Changes { changed, refused } = registry.reload_all().await?;
    if refused.is_empty() {
        return Ok(Json(json!({"models": changed})));
    }
    let refused: Vec<String> = refused.iter().map(|(name, error)| format!("{name}: {error}")).collect();
    Err(Error::new(Kind::InvalidBundle, format!("{}; all other models are as on disk", refused.join("; "))))
}

async fn unload(State(admin): State<Admin>, name: Name, body: Body) -> Result<Json<Change>, Error> {
    let (registry, name) = (admin.registry()?, plain(name)?);
    // Models depend on none here.
    no_parameters(body, &["unload_dependents"])?;
    Ok(Json(registry.unload(&name).await?))
}

fn plain(name: Name) -> Result<String, Error> {
    name.map(|Path(name)| name).map_err(|rejection| Error::new(Kind::InvalidParameter, rejection.body_text()))
}

/// Checks that a body asks for nothing but what its path says. Parameters that are `ignored` may be there.
fn no_parameters(body: Body, ignored: &[&str]) -> Result<(), Error> {
    for (key, value) in object(body)? {
        let Value::Object(parameters) = value else {
            return Err(invalid(format!(
                "{}: found {}, expected an object",
                shortened(&key),
                shortened(&value.to_string())
            )));
        };
        if key != "parameters" {
            return Err(invalid(format!("found '{}', expected parameters", shortened(&key))));
        }
        if let Some(other) = parameters.keys().find(|name| !ignored.contains(&name.as_str())) {
            let other = shortened(other);
            let problem =
                format!("parameter '{other}': expected none; a model is what its directory in --models holds");
            return Err(Error::new(Kind::InvalidParameter, problem));
        }
    }
    Ok(())
}

fn invalid(problem: String) -> Error {
    Error::new(Kind::InvalidBody, format!("JSON: {problem}"))
}

/// The JSON object in a body; an empty body is an empty one.
fn object(body: Body) -> Result<Map<String, Value>, Error> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::new(
            Kind::BodyTooLarge,
            format!("the body has more than {MOST_BYTES} bytes, expected a small object"),
        ),
        _ => Error::new(Kind::InvalidBody, format!("the body broke off: {}", rejection.body_text())),
    })?;
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&body).map_err(|error| invalid(format!("{error}; expected an object")))
}
