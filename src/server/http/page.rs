//! `GET /`: a page to try images on and to see which blocks each one needs. All of it is in the binary.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Where a file is, its type, and what is in it.
struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static [u8],
}

macro_rules! files {
    ($($path:literal, $kind:literal, $file:literal;)*) => {
        [$(File { path: $path, kind: $kind, content: include_bytes!($file) }),*]
    };
}

/// The page asks for what is beside it by relative paths, so that it can be served below another path too.
static FILES: [File; 14] = files! {
    "/", "text/html; charset=utf-8", "page/index.html";
    "/page/page.css", "text/css; charset=utf-8", "page/page.css";
    "/page/page.js", "text/javascript; charset=utf-8", "page/page.js";
    "/page/api.js", "text/javascript; charset=utf-8", "page/api.js";
    "/page/card.js", "text/javascript; charset=utf-8", "page/card.js";
    "/page/live.js", "text/javascript; charset=utf-8", "page/live.js";
    "/page/net.js", "text/javascript; charset=utf-8", "page/net.js";
    "/page/plot.js", "text/javascript; charset=utf-8", "page/plot.js";
    "/page/text.js", "text/javascript; charset=utf-8", "page/text.js";
    "/page/samples/airplane.png", "image/png", "../../../samples/airplane.png";
    "/page/samples/automobile.jpg", "image/jpeg", "../../../samples/automobile.jpg";
    "/page/samples/horse.jpg", "image/jpeg", "../../../samples/horse.jpg";
    "/page/samples/ship.webp", "image/webp", "../../../samples/ship.webp";
    "/page/samples/truck.jpg", "image/jpeg", "../../../samples/truck.jpg";
};

/// Nothing but what this server serves, no code in the markup, and no text that is taken for markup or code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'";

/// `/` and everything under `/page/`.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| router.route(file.path, get(async || file.response())))
}

impl File {
    fn response(&self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, self.kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // A newer server brings a newer page.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, self.content).into_response()
    }
}
