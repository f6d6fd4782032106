//! API keys: who may use the public listeners, and what is told to those who may not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;

use blockdrop_testkit::Net;
use common::raw::{Raw, head, post};
use common::server::Server;
use common::{Ended, blockdrop, contains, models, png, text};
use rustix::process::Signal;
use serde_json::Value;

const OF_FILE: &str = "key-of-the-file-0123456789";
const OF_ENV: &str = "key-of-the-environment-0123456789";

struct Guarded {
    server: Server,
    grpc: SocketAddr,
    file: PathBuf,
    _dirs: [tempfile::TempDir; 2],
}

fn started() -> Guarded {
    let (models, keys) = (models("net", &Net::tiny(5)), tempfile::tempdir().unwrap());
    let file = keys.path().join("keys");
    std::fs::write(&file, format!("# of the tests\n\n{OF_FILE}\n")).unwrap();
    let mut command = Server::command(models.path(), &["--api-keys-file", text(&file)]);
    let mut server = Server::launch(command.env("BLOCKDROP_API_KEYS", OF_ENV));
    let ready = server.logged(|line| line["message"] == "ready");
    server.http = ready["address"].as_str().unwrap().parse().unwrap();
    let grpc = ready["grpc"].as_str().unwrap().parse().unwrap();
    assert_eq!(ready["api_keys"], 2);
    Guarded { server, grpc, file, _dirs: [models, keys] }
}

impl Guarded {
    async fn ask(&self, method: &str, path: &str, authorization: Option<&str>) -> reqwest::Response {
        let request = self.server.client.request(method.parse().unwrap(), self.server.url(path)).body(png(1));
        let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
        request.send().await.unwrap()
    }

    /// The code of a call without a message.
    async fn call(&self, path: &str, authorization: Option<&str>) -> String {
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let request = client.post(format!("http://{}{path}", self.grpc)).header("content-type", "application/grpc");
        let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
        let response = request.header("te", "trailers").body(vec![0; 5]).send().await.unwrap();
        assert_eq!(response.status(), 200);
        // What is answered has its status after the answer.
        response.headers().get("grpc-status").map_or("0", |code| code.to_str().unwrap()).to_owned()
    }
}

async fn refused(response: reqwest::Response, part: &str) {
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!((body["code"].as_str(), body["request_id"].as_str()), (Some("unauthenticated"), Some(&*id)));
    contains(body["error"].as_str().unwrap(), &[part, "expected the header Authorization: Bearer KEY"]);
}

#[tokio::test]
async fn only_those_with_a_key_come_in() {
    let guarded = started();
    for path in ["/v1/classify", "/v2/models/net/infer", "/v2/repository/index"] {
        refused(guarded.ask("POST", path, None).await, "found no API key").await;
    }
    let hidden = ["/v1/models", "/v1/models/net", "/v2", "/v2/models/net", "/docsx", "/page", "/openapi.json/", "/no"];
    for path in hidden.into_iter().chain(["//", "/v2/health", "/v2/health/live/", "/docs%2f", "/v2/health/live%00"]) {
        refused(guarded.ask("GET", path, None).await, "found no API key").await;
    }
    refused(guarded.ask("OPTIONS", "/v1/classify", None).await, "found no API key").await;
    for (authorization, part) in [
        ("Bearer key-of-the-file-012345678".to_owned(), "found an unknown API key"),
        (format!("Bearer {}", OF_FILE.to_uppercase()), "found an unknown API key"),
        (format!("Bearer {OF_FILE} {OF_ENV}"), "found an unknown API key"),
        ("Bearer \"\u{e9}\"".to_owned(), "found an unknown API key"),
        (OF_FILE.to_owned(), "found another kind of authorization"),
        (format!("Basic {OF_FILE}"), "found another kind of authorization"),
    ] {
        refused(guarded.ask("POST", "/v1/classify", Some(&authorization)).await, part).await;
    }
    for authorization in [format!("Bearer {OF_FILE}"), format!("bearer {OF_ENV}")] {
        let response = guarded.ask("POST", "/v1/classify", Some(&authorization)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(guarded.ask("GET", "/v1/models", Some(&authorization)).await.status(), 200);
        assert_eq!(guarded.ask("GET", "/nowhere", Some(&authorization)).await.status(), 404);
    }
    for path in ["/v2/health/live", "/v2/health/ready"] {
        assert_eq!(guarded.ask("GET", path, None).await.status(), 200, "{path}");
    }
    for path in ["/", "/docs", "/docs/x", "/openapi.json", "/page/x"] {
        assert_ne!(guarded.ask("GET", path, None).await.status(), 401, "{path}");
    }
    // Operators need none.
    assert_eq!(guarded.server.get_admin("/readyz").await.status(), 200);
    let metrics = guarded.server.metrics().await;
    assert_eq!((metrics.rejected("unauthenticated"), metrics.code(401)), (23.0, 23.0));
    guarded.server.stop();
}

#[tokio::test]
async fn calls_need_a_key_too() {
    let guarded = started();
    const UNAUTHENTICATED: &str = "16";
    let right = format!("Bearer {OF_ENV}");
    for path in [
        "/inference.GRPCInferenceService/ServerMetadata",
        "/inference.GRPCInferenceService/ModelInfer",
        "/no.Such/Call",
    ] {
        assert_eq!(guarded.call(path, None).await, UNAUTHENTICATED, "{path}");
        assert_eq!(guarded.call(path, Some("Bearer another-key-0123456789")).await, UNAUTHENTICATED, "{path}");
        assert_ne!(guarded.call(path, Some(&right)).await, UNAUTHENTICATED, "{path}");
    }
    assert_eq!(guarded.call("/inference.GRPCInferenceService/ServerMetadata", Some(&right)).await, "0");
    for health in ["ServerLive", "ServerReady"] {
        assert_eq!(guarded.call(&format!("/inference.GRPCInferenceService/{health}"), None).await, "0");
    }
    let twice = [format!("Bearer {OF_FILE}"), format!("Bearer {OF_FILE}")];
    let twice = twice.iter().fold(guarded.server.client.get(guarded.server.url("/v1/models")), |request, value| {
        request.header("authorization", value)
    });
    refused(twice.send().await.unwrap(), "several authorizations").await;
    assert_eq!(guarded.call("/grpc.health.v1.Health/Check", None).await, "0");
    assert_eq!(guarded.server.metrics().await.rejected("unauthenticated"), 7.0);
}

#[tokio::test]
async fn keys_are_changed_while_the_server_serves() {
    const NEXT: &str = "key-that-comes-next-0123456789";
    let mut guarded = started();
    let let_in = async |guarded: &Guarded, key: &str| {
        let key = format!("Bearer {key}");
        let http = guarded.ask("GET", "/v1/models", Some(&key)).await.status() == 200;
        let grpc = guarded.call("/inference.GRPCInferenceService/ServerMetadata", Some(&key)).await == "0";
        assert_eq!(http, grpc, "{key}");
        http
    };
    std::fs::write(&guarded.file, format!("{NEXT}\n")).unwrap();
    guarded.server.signal(Signal::HUP);
    assert_eq!(guarded.server.logged(|line| line["message"] == "API keys read anew")["api_keys"], 2);
    assert!(!let_in(&guarded, OF_FILE).await && let_in(&guarded, NEXT).await && let_in(&guarded, OF_ENV).await);
    // A file that cannot be used lets nobody in, and keeps nobody out.
    for (broken, part) in [("", "found no key"), ("short\n", "line 1: found a key of 5 characters")] {
        std::fs::write(&guarded.file, broken).unwrap();
        guarded.server.signal(Signal::HUP);
        let said = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("API keys not read"));
        contains(guarded.server.logged(said)["reason"].as_str().unwrap(), &[part]);
        assert!(!let_in(&guarded, OF_FILE).await && let_in(&guarded, NEXT).await && let_in(&guarded, OF_ENV).await);
        refused(guarded.ask("GET", "/v1/models", None).await, "found no API key").await;
    }
    guarded.server.signal(Signal::TERM);
    assert_eq!(guarded.server.ended().code(), Some(0));
    let log = format!("{:?}", guarded.server.log());
    assert!(![OF_FILE, OF_ENV, NEXT, "short\n"].iter().any(|key| log.contains(key)), "{log}");
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    let guarded = started();
    let mut raw = Raw::open(guarded.server.http).await.unwrap();
    raw.send(head("", "content-length: 1000000\r\n")).await;
    let found = raw.answer().await.whole();
    assert_eq!((found.status, found.header("www-authenticate")), (401, Some("Bearer")));
    // The connection goes on once the body has come.
    raw.send(vec![0; 1_000_000]).await;
    raw.send(post("", &format!("authorization: Bearer {OF_FILE}\r\n"), &png(1))).await;
    assert_eq!(raw.answer().await.whole().status, 200);
}

#[tokio::test]
async fn no_key_is_logged() {
    let mut guarded = started();
    let wrong = "a-wrong-key-0123456789";
    guarded.ask("POST", "/v1/classify", Some(&format!("Bearer {OF_FILE}"))).await;
    guarded.ask("POST", "/v1/classify", Some(&format!("Bearer {wrong}"))).await;
    guarded.server.signal(Signal::TERM);
    assert_eq!(guarded.server.ended().code(), Some(0));
    let log = format!("{:?}", guarded.server.log());
    assert!(![OF_FILE, OF_ENV, wrong].iter().any(|key| log.contains(key)), "{log}");
}

#[test]
fn keys_that_cannot_be_used_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, format!("{OF_FILE}\ntoo-short\n")).unwrap();
    let missing = dir.path().join("none");
    let run = |file: &std::path::Path, listed: &str| {
        let mut command = blockdrop();
        command.args(["serve", "--models", "/none", "--api-keys-file", text(file)]).env("BLOCKDROP_API_KEYS", listed);
        Ended::of(command.output().unwrap())
    };
    let found = run(&file, "");
    found.failed(2, &["API keys: ", "keys: line 2: found a key of 9 characters, expected at least 16 visible"]);
    assert!(!found.err.contains("too-short"), "{found:?}");
    run(&missing, "").failed(2, &["API keys: ", "none: cannot be read: "]);
    let found = run(&missing, "a key with spaces in it");
    assert_eq!((found.code, found.err.lines().count()), (Some(2), 2), "all that is wrong: {found:?}");
    contains(&found.err, &["BLOCKDROP_API_KEYS: key 1: found a key with a space"]);
    assert!(!found.err.contains("spaces in it"), "{found:?}");
}
