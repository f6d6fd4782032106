//! `GET /openapi.json`, made from the handlers, and `GET /docs`, which shows it without any other host.

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ObjectBuilder, OpenApi, Required, Type};
use utoipa::{IntoResponses, OpenApi as _, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::ready;

/// Bytes of a file, or of tensors.
#[derive(ToSchema)]
#[schema(value_type = String, content_media_type = "application/octet-stream")]
#[expect(dead_code, reason = "describes bodies")]
pub(super) struct Bytes(Vec<u8>);

/// A PNG file of one white pixel, in base64.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTje9AAAAABJRU5ErkJggg==";

/// A body of `/v1/classify`.
pub(super) fn classify_example() -> Value {
    json!({"images": [{"b64": PIXEL}]})
}

/// A body of `/v2/models/{model}/infer`.
pub(super) fn infer_example() -> Value {
    json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [PIXEL]}]})
}

/// What every error is answered with.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody<'a> {
    /// What was found and what was expected, for people.
    pub(super) error: &'a str,
    /// What kind of error it is, for programs.
    pub(super) code: &'static str,
    /// The request's `x-request-id`, or one made up.
    pub(super) request_id: &'a str,
}

/// The errors of routes that say what is there.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers")]
pub(super) enum Told {
    /// A parameter or a name cannot be read.
    #[response(status = 400)]
    BadRequest(#[to_schema] ErrorBody<'static>),
    /// No API key, or a wrong one.
    #[response(status = 401)]
    Unauthenticated(#[to_schema] ErrorBody<'static>),
    /// There is no such model or version.
    #[response(status = 404)]
    NotFound(#[to_schema] ErrorBody<'static>),
}

/// The errors of routes that classify.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers")]
pub(super) enum Classified {
    /// A parameter, the body or an image is not what was expected.
    #[response(status = 400)]
    BadRequest(#[to_schema] ErrorBody<'static>),
    /// No API key, or a wrong one.
    #[response(status = 401)]
    Unauthenticated(#[to_schema] ErrorBody<'static>),
    /// There is no such model or version.
    #[response(status = 404)]
    NotFound(#[to_schema] ErrorBody<'static>),
    /// The body did not arrive in time.
    #[response(status = 408)]
    Timeout(#[to_schema] ErrorBody<'static>),
    /// The body, an image's pixels or the number of images is beyond its limit.
    #[response(status = 413)]
    TooLarge(#[to_schema] ErrorBody<'static>),
    /// An image is of none of the types that are read, or the body's encoding of none.
    #[response(status = 415)]
    Unsupported(#[to_schema] ErrorBody<'static>),
    /// It is the server's fault.
    #[response(status = 500)]
    Internal(#[to_schema] ErrorBody<'static>),
    /// The server is full or stopping: try again, or elsewhere.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds to wait.")))]
    Unavailable(#[to_schema] ErrorBody<'static>),
    /// The request's time ran out.
    #[response(status = 504)]
    Late(#[to_schema] ErrorBody<'static>),
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "blockdrop",
        description = "Classifies images with residual networks of which only the blocks run that an image needs.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "classify", description = "Images in, classes out, with what ran and what it cost."),
        (name = "models", description = "What is served."),
        (name = "oip", description = "The Open Inference Protocol, version 2, with Triton's extensions."),
    )
)]
struct Base;

/// What the handlers' descriptions are added to.
pub(super) fn base() -> OpenApi {
    Base::openapi()
}

/// What the handlers do not say themselves: the routes that name a model's version beside those that do not, and keys.
pub(super) fn complete(mut api: OpenApi) -> OpenApi {
    const MODEL: &str = "/v2/models/{model}";
    let of_model: Vec<(String, PathItem)> = api
        .paths
        .paths
        .iter()
        .filter_map(|(path, item)| Some((path.strip_prefix(MODEL)?.to_owned(), item.clone())))
        .collect();
    for (rest, mut item) in of_model {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            version(operation);
        }
        api.paths.paths.insert(format!("{MODEL}/versions/{{version}}{rest}"), item);
    }
    // A key is needed where the server has any: described, and not demanded.
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    api.components.get_or_insert_default().add_security_scheme("key", bearer);
    api.security = Some(vec![SecurityRequirement::default(), SecurityRequirement::new::<_, _, &str>("key", [])]);
    api
}

fn version(operation: &mut Operation) {
    if let Some(id) = &mut operation.operation_id {
        id.push_str("_version");
    }
    let parameter = ParameterBuilder::new()
        .name("version")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("A version of the model."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
    operation.parameters.get_or_insert_default().push(parameter.build().into());
}

/// `/openapi.json` and `/docs`.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(api: &OpenApi) -> Router<S> {
    const JSON: &str = "/openapi.json";
    let text = serde_json::to_value(api).expect("a description is JSON");
    let described = move || {
        let text = text.clone();
        async move { Json(text).into_response() }
    };
    // Without a validator of its own it would send the description to one outside.
    let ui = SwaggerUi::new("/docs").config(Config::new([JSON]).validator_url("none"));
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'",
    );
    let docs = Router::from(ui)
        .layer(tower_http::set_header::SetResponseHeaderLayer::if_not_present(header::CONTENT_SECURITY_POLICY, policy));
    ready::once(Router::new().route(JSON, get(described)).merge(docs))
}
