//! Answers that are large and always the same: made and compressed once, so that whoever asks for them again and again takes
//! no time of the threads that serve.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_compression::tokio::write::GzipEncoder;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;

/// Marks an answer that is not to be compressed any more.
#[derive(Clone, Copy)]
pub(super) struct AsItIs;

/// Bytes of an answer, at most; a larger one is made anew each time.
const LARGEST: usize = 16 << 20;

/// Answers by path.
#[derive(Default)]
struct Made(RwLock<HashMap<String, Arc<Ready>>>);

/// An answer as it is and in gzip.
struct Ready {
    head: Parts,
    plain: Bytes,
    gzip: Bytes,
}

/// Makes each answer of `routes` to a GET once. These have to depend on the path alone, and to be few.
pub(super) fn once<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes.layer(middleware::from_fn_with_state(Arc::<Made>::default(), answer))
}

async fn answer(State(made): State<Arc<Made>>, request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let path = request.uri().path().to_owned();
    let accepted = request.headers().clone();
    let known = made.0.read().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
    if let Some(ready) = known {
        return ready.answer(&accepted);
    }
    let (head, body) = next.run(request).await.into_parts();
    if head.status != StatusCode::OK {
        return Response::from_parts(head, body);
    }
    match Ready::new(head, body).await {
        Ok(ready) => {
            let ready = Arc::new(ready);
            let answer = ready.answer(&accepted);
            made.0.write().unwrap_or_else(PoisonError::into_inner).insert(path, ready);
            answer
        }
        Err(error) => {
            tracing::error!(%path, %error, "a file of the documentation cannot be made ready");
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            answer
        }
    }
}

impl Ready {
    async fn new(mut head: Parts, body: Body) -> Result<Self, axum::BoxError> {
        let plain = to_bytes(body, LARGEST).await?;
        let mut encoder = GzipEncoder::new(Vec::new());
        encoder.write_all(&plain).await?;
        encoder.shutdown().await?;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        head.extensions.insert(AsItIs);
        Ok(Self { head, plain, gzip: encoder.into_inner().into() })
    }

    fn answer(&self, accepted: &HeaderMap) -> Response {
        let mut head = self.head.clone();
        if takes_gzip(accepted) {
            head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return Response::from_parts(head, self.gzip.clone().into());
        }
        Response::from_parts(head, self.plain.clone().into())
    }
}

/// Whether gzip is among what an answer may be encoded in.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| {
        let (name, weight) = one.split_once(';').unwrap_or((one, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn gzip_is_sent_to_who_takes_it() {
        let takes = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(header::ACCEPT_ENCODING, value.parse().expect("a value"));
            });
            takes_gzip(&headers)
        };
        assert!(takes(&["gzip"]) && takes(&["br, GZIP;q=0.5"]) && takes(&["br", "deflate, gzip"]));
        assert!(
            !takes(&[])
                && !takes(&["br"])
                && !takes(&["gzip;q=0"])
                && !takes(&["gzip;q=0.0, br"])
                && !takes(&["gzipped"])
        );
    }

    #[tokio::test]
    async fn an_answer_is_made_once_for_each_path() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let made = |text: &'static str| {
            get(move || async move {
                MADE.fetch_add(1, Ordering::Relaxed);
                ([(header::CONTENT_TYPE, "text/plain")], text.repeat(1000))
            })
        };
        let routes = once(Router::<()>::new().route("/a", made("a")).route("/b", made("b")));
        for (path, encoding) in
            [("/a", None), ("/a", Some("gzip")), ("/b", Some("deflate")), ("/a", None), ("/c", None)]
        {
            let mut request = Request::builder().uri(path);
            if let Some(encoding) = encoding {
                request = request.header(header::ACCEPT_ENCODING, encoding);
            }
            let answer =
                routes.clone().oneshot(request.body(Body::empty()).expect("a request")).await.expect("an answer");
            if path == "/c" {
                assert_eq!(answer.status(), StatusCode::NOT_FOUND);
                continue;
            }
            let encoded = answer.headers().get(header::CONTENT_ENCODING).is_some();
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/plain");
            assert_eq!(encoded, encoding == Some("gzip"));
            assert!(answer.extensions().get::<AsItIs>().is_some());
            let body = to_bytes(answer.into_body(), LARGEST).await.expect("a body");
            assert_eq!(body.len() == 1000, !encoded, "{} bytes", body.len());
        }
        assert_eq!(MADE.load(Ordering::Relaxed), 2);
    }
}
