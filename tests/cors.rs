//! Web pages of other origins: what a browser asks before, and what it lets a page read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use blockdrop_testkit::Net;
use common::server::Server;
use common::{contains, models, png, run};
use reqwest::header::HeaderMap;

const PAGE: &str = "https://example.org";

async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap) {
    let request = server.client.request(method.parse().unwrap(), server.url(path));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.body(png(1)).send().await.unwrap();
    (response.status().as_u16(), response.headers().clone())
}

fn allowed(headers: &HeaderMap) -> Option<&str> {
    headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap())
}

fn preflight(origin: &str) -> [(&str, &str); 3] {
    [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ]
}

#[tokio::test]
async fn pages_of_the_origins_named_may_use_the_server() {
    let models = models("net", &Net::tiny(5));
    let flags = ["--cors-origin", PAGE, "--cors-origin", "http://localhost:3000"];
    let server = Server::start_with(models.path(), &flags, &[("BLOCKDROP_API_KEYS", "0123456789abcdef")]);
    for origin in [PAGE, "http://localhost:3000"] {
        let (status, headers) = ask(&server, "OPTIONS", "/v1/classify", &preflight(origin)).await;
        assert_eq!((status, allowed(&headers)), (200, Some(origin)), "no key is needed to ask");
        contains(headers["access-control-allow-methods"].to_str().unwrap(), &["GET", "POST"]);
        let names = ["content-type", "authorization", "x-request-id", "traceparent", "tracestate"];
        contains(headers["access-control-allow-headers"].to_str().unwrap(), &names);
        contains(headers["access-control-allow-headers"].to_str().unwrap(), &["inference-header-content-length"]);
        contains(headers["vary"].to_str().unwrap(), &["origin"]);

        let key = ("authorization", "Bearer 0123456789abcdef");
        /// Method, path, headers, status.
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16);
        let cases: [Case<'_>; 6] = [
            ("POST", "/v1/classify", &[key], 200),
            ("GET", "/v1/models", &[key], 200),
            ("POST", "/v1/classify", &[], 401),
            ("POST", "/v1/classify?top_k=0", &[key], 400),
            ("GET", "/nowhere", &[key], 404),
            ("POST", "/v1/classify", &[key, ("content-encoding", "br")], 415),
        ];
        for (method, path, headers, expected) in cases {
            let (status, found) = ask(&server, method, path, &[&[("origin", origin)], headers].concat()).await;
            assert_eq!((status, allowed(&found)), (expected, Some(origin)), "{method} {path}");
            let exposed = found["access-control-expose-headers"].to_str().unwrap();
            contains(exposed, &["x-request-id", "traceparent", "inference-header-content-length", "retry-after"]);
            assert!(found.contains_key("x-request-id"));
        }
    }
    for origin in ["https://example.com", "http://example.org", "https://example.org.net", "null"] {
        let (_, headers) = ask(&server, "OPTIONS", "/v1/classify", &preflight(origin)).await;
        assert_eq!(allowed(&headers), None, "{origin}");
        let (status, headers) = ask(&server, "POST", "/v1/classify", &[("origin", origin)]).await;
        assert_eq!((status, allowed(&headers)), (401, None), "{origin}");
    }
    // Pages have no business with the admin listener.
    let admin = server.client.get(server.admin_url("/livez")).header("origin", PAGE).send().await.unwrap();
    assert_eq!(allowed(admin.headers()), None);
}

#[tokio::test]
async fn any_page_or_none() {
    let models = models("net", &Net::tiny(5));
    let server = Server::start_with(models.path(), &[], &[("BLOCKDROP_CORS_ORIGIN", "*")]);
    let (status, headers) = ask(&server, "OPTIONS", "/v1/classify", &preflight(PAGE)).await;
    assert_eq!((status, allowed(&headers)), (200, Some("*")));
    let (status, headers) = ask(&server, "POST", "/v1/classify", &[("origin", PAGE)]).await;
    assert_eq!((status, allowed(&headers)), (200, Some("*")));
    assert!(!headers.contains_key("access-control-allow-credentials"));

    let server = Server::start(models.path(), &[]);
    let (status, headers) = ask(&server, "OPTIONS", "/v1/classify", &preflight(PAGE)).await;
    assert_eq!((status, allowed(&headers)), (405, None));
    let (status, headers) = ask(&server, "POST", "/v1/classify", &[("origin", PAGE)]).await;
    assert_eq!((status, allowed(&headers)), (200, None));

    let listed = [("BLOCKDROP_CORS_ORIGIN", "https://a.example,https://b.example")];
    let server = Server::start_with(models.path(), &[], &listed);
    for origin in ["https://a.example", "https://b.example"] {
        let (_, headers) = ask(&server, "GET", "/v1/models", &[("origin", origin)]).await;
        assert_eq!(allowed(&headers), Some(origin));
    }
}

#[test]
fn what_is_no_origin_is_refused_at_the_start() {
    let found = run(["serve", "--cors-origin", "example.org", "--cors-origin", "https://example.org/"]);
    assert_eq!((found.code, found.err.lines().count()), (Some(2), 2), "{found:?}");
    contains(
        &found.err,
        &["error: --cors-origin: found 'example.org', expected an origin such as https://example.org"],
    );
}
