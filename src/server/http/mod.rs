//! The public HTTP interface.

mod body;
mod classify;
mod cors;
pub(super) mod encoding;
mod json;
mod linger;
mod models;
mod oip;
mod openapi;
mod page;
mod ready;

pub use body::MOST_IMAGES;
#[cfg(feature = "fuzzing")]
pub(super) use body::{json, multipart};
pub use cors::Origins;
#[cfg(feature = "fuzzing")]
pub(super) use oip::{Asked, JSON_LENGTH, json_length, split};

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::openapi::ErrorBody;
use super::arrived;
use super::classify::Service;
use super::error::{Error, Kind};
use super::keys::{Guard, Keys, require};
use crate::telemetry::metrics::Entered;
use crate::telemetry::request::Answering;
use crate::telemetry::{RequestContext, Tracer};
use crate::text::shortened;

/// The public routes, for those who have one of the `keys`, and for web pages of `origins`.
pub(super) fn router(service: Arc<Service>, keys: Keys, origins: Origins) -> Router {
    let guard = Guard { keys, metrics: Arc::clone(&service.metrics), open: is_open };
    let (routes, api) = OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(classify::classify))
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(models::statistics))
        .merge(oip::routes())
        .split_for_parts();
    let routes = routes
        .merge(page::routes())
        .merge(openapi::routes(&openapi::complete(api)))
        .fallback(not_found)
        .with_state(Arc::clone(&service))
        .layer(from_fn_with_state(service.limits.body, encoding::decompress))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(guard, require))
        .layer(from_fn_with_state(Arc::clone(&service), observe));
    origins.allowed(encoding::compressed(identified(routes, service.tracer.clone())))
}

/// What needs no key: the page, the documentation, and health.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/docs" | "/openapi.json" | "/v2/health/live" | "/v2/health/ready")
        || path.starts_with("/page/")
        || path.starts_with("/docs/")
}

/// [`identify`] around `routes` as a whole: what the router adds to an answer last, such as `Allow`, is there for it.
/// What the routes leave unread of a request is [read](linger::linger) and forgotten. Requests are recorded by the `tracer`.
pub(super) fn identified(routes: Router, tracer: Option<Arc<Tracer>>) -> Router {
    Router::new().fallback_service(routes).layer(from_fn(linger::linger)).layer(from_fn_with_state(tracer, identify))
}

/// Gives every request its id and its place in a trace, and every error the one JSON shape with that id in it.
async fn identify(State(tracer): State<Option<Arc<Tracer>>>, mut request: Request, next: Next) -> Response {
    // Nobody asks how long the page or a probe took.
    let tracer = tracer.filter(|_| !is_open(request.uri().path()));
    let answering = Answering::new(arrived::context(request.headers(), tracer.as_ref()));
    let context = answering.context();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    context.describe(|span| {
        let method = told(&method);
        span.name = method.into();
        span.attribute("http.request.method", method);
        span.attribute("url.scheme", "http");
    });
    request.extensions_mut().insert(Arc::clone(context));
    let mut response = context.within(next.run(request)).await;
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    // A route that answers with JSON of its own, as /readyz does with 503, has said what there is to say.
    if failed && response.headers().get(header::CONTENT_TYPE).is_none_or(|found| found != "application/json") {
        let error = response.extensions_mut().remove::<Error>().unwrap_or_else(|| {
            let allowed = response.headers().get(header::ALLOW).and_then(|value| value.to_str().ok());
            match status {
                StatusCode::METHOD_NOT_ALLOWED => Error::new(
                    Kind::MethodNotAllowed,
                    format!("found method {method} on {}, expected {}", uri.path(), allowed.unwrap_or("another")),
                ),
                StatusCode::NOT_FOUND => nothing_at(&uri),
                status => Error::new(Kind::Internal, status.canonical_reason().unwrap_or("error")),
            }
        });
        context.describe(|span| span.attribute("blockdrop.code", error.kind.code()));
        response = render(&error, context, response);
    }
    context.describe(|span| {
        span.attribute("http.response.status_code", i64::from(status.as_u16()));
        span.error = status.is_server_error().then(|| status.as_str().to_owned().into());
    });
    arrived::tell(context, response.headers_mut());
    response
}

/// A method as traces have it: those that a client made up are one.
fn told(method: &Method) -> &'static str {
    let known = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"];
    known.into_iter().find(|known| method == known).unwrap_or("_OTHER")
}

/// The answer of an error; headers that were set already stay.
fn render(error: &Error, context: &RequestContext, before: Response) -> Response {
    let body = ErrorBody { error: &error.message, code: error.kind.code(), request_id: context.id() };
    let mut response = (before.status(), axum::Json(body)).into_response();
    for name in [header::ALLOW, header::CONNECTION] {
        if let Some(value) = before.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    match error.kind {
        Kind::Unauthenticated => {
            drop(response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        Kind::UnsupportedEncoding => {
            let accepted = HeaderValue::from_static(encoding::ACCEPTED);
            drop(response.headers_mut().insert(header::ACCEPT_ENCODING, accepted));
        }
        // The client is still sending; what comes is read for a while and forgotten, not taken for a next request.
        Kind::BodyTooLarge | Kind::BodyTimeout => {
            drop(response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close")));
        }
        _ => {}
    }
    response
}

/// An error as a response: [`identify`] writes its body, where the request's id is known.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

pub(super) async fn not_found(request: Request) -> Error {
    nothing_at(request.uri())
}

fn nothing_at(uri: &Uri) -> Error {
    Error::new(Kind::NotFound, format!("there is nothing at {}", shortened(uri.path())))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a request ended in a panic");
    Error::new(Kind::Internal, "the request could not be answered").into_response()
}

/// Counts the request, and one that its client abandoned too, when it is dropped unanswered.
struct Observed {
    service: Arc<Service>,
    _under_way: Entered,
    started: Instant,
    code: Option<u16>,
}

impl Drop for Observed {
    fn drop(&mut self) {
        /// nginx's code for a client that closed the connection before its answer.
        const CLIENT_CLOSED: u16 = 499;
        self.service.metrics.request("http", &self.code.unwrap_or(CLIENT_CLOSED).to_string(), self.started.elapsed());
    }
}

/// Metrics and a span around each request.
async fn observe(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let mut observed = Observed { _under_way: service.metrics.enter(), service, started: Instant::now(), code: None };
    let context = request.extensions().get::<Arc<RequestContext>>().cloned();
    let id = context.as_ref().map_or("", |context| context.id());
    let route = request.extensions().get::<MatchedPath>().cloned();
    if let (Some(context), Some(route)) = (&context, &route) {
        context.describe(|span| {
            span.name = format!("{} {}", span.name, route.as_str()).into();
            span.attribute("http.route", route.as_str().to_owned());
        });
    }
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let span = tracing::debug_span!(
        "request",
        request_id = id,
        method = %request.method(),
        route,
        status = tracing::field::Empty,
    );
    let mut response = next.run(request).instrument(span.clone()).await;
    if observed.service.admission.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    span.record("status", status.as_u16());
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(route, "a request failed inside");
    }
    observed.code = Some(status.as_u16());
    response
}
