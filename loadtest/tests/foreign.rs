//! Servers of others: one that speaks the inference protocol and no more, and some that speak rubbish.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockdrop_loadtest::images::Pool;
use blockdrop_loadtest::plan::{Datatype, Format, Images, Plan, Protocol};
use blockdrop_loadtest::record::{Payload, Reply};
use blockdrop_loadtest::target::Target;
use blockdrop_loadtest::wire::{Wire, classes};
use bytes::Bytes;
use common::{arm, call, plan, pool};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves HTTP by `answer`: method, path and body to status and body.
async fn serve(answer: impl Fn(&Method, &str, &[u8]) -> (u16, String) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let (status, text) = answer(&head.method, head.uri.path(), &body);
                    let mut response = Response::new(Full::new(Bytes::from(text)));
                    *response.status_mut() = status.try_into().unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    url
}

const METADATA: &str = r#"{"name":"net","platform":"onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3,4,6]}],
    "outputs":[{"name":"scores","datatype":"FP32","shape":[-1,3]}]}"#;

/// JSON alone, `x` to `scores`: the mean of each plane. Nothing under `/v1`, nothing at `/v2`.
fn scores(method: &Method, path: &str, body: &[u8]) -> (u16, String) {
    match (method, path) {
        (&Method::GET, "/v2/models/net") => (200, METADATA.to_owned()),
        (&Method::POST, "/v2/models/net/infer") => {
            let Ok(asked) = serde_json::from_slice::<Value>(body) else {
                return (400, r#"{"error":"no JSON"}"#.to_owned());
            };
            assert_eq!(asked["outputs"], json!([{"name": "scores"}]), "only what is needed");
            let input = &asked["inputs"][0];
            assert_eq!((&input["name"], &input["datatype"]), (&json!("x"), &json!("FP32")));
            let count = input["shape"][0].as_u64().unwrap() as usize;
            assert_eq!(input["shape"], json!([count, 3, 4, 6]));
            let data: Vec<f64> = input["data"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
            if data.len() != count * 72 {
                return (400, json!({"error": format!("{} values", data.len())}).to_string());
            }
            let means: Vec<f64> = data.chunks(24).map(|plane| plane.iter().sum::<f64>() / 24.0).collect();
            let rows: Vec<&[f64]> = means.chunks(3).collect();
            let output = json!({"name": "scores", "datatype": "FP32", "shape": [count, 3], "data": rows});
            (200, json!({"model_name": "net", "id": null, "outputs": [output]}).to_string())
        }
        _ => (404, "not here".to_owned()),
    }
}

/// Pictures of one colour, in a folder for each: the label is the brightest channel.
fn colours() -> Pool {
    let dir = tempfile::tempdir().unwrap();
    for (channel, name) in ["blue-is-last", "green", "red"].iter().rev().enumerate() {
        let folder = dir.path().join(format!("{channel}-{name}"));
        std::fs::create_dir(&folder).unwrap();
        for shade in [90, 160, 250] {
            let mut colour = [30; 3];
            colour[channel] = shade;
            image::RgbImage::from_pixel(9, 9, image::Rgb(colour)).save(folder.join(format!("{shade}.bmp"))).unwrap();
        }
    }
    let from = dir.path().to_path_buf();
    Pool::load(&Images { from, limit: 9, sizes: Vec::new(), format: Format::Png, bad: 0.0 }, 5, None).unwrap()
}

fn foreign(url: &str) -> Plan {
    let mut plan = plan(Protocol::OipJson, arm(url, &[]));
    plan.request.input = "x".to_owned();
    plan.request.datatype = Datatype::Fp32 { height: 4, width: 6, mean: [0.1; 3], std: [0.5; 3] };
    plan
}

#[tokio::test]
async fn a_server_that_speaks_the_protocol_alone_is_driven() {
    let url = serve(scores).await;
    let pool = colours();
    for count in [1, 4] {
        let mut plan = foreign(&url);
        plan.request.images = count;
        assert_eq!(classes(&plan.arms[0], &plan.request).await.unwrap(), None);
        let wire = Wire::prepare(&plan, &pool).await.unwrap();
        assert_eq!(wire.server(0), "net");
        let mut caller = wire.caller(0);
        for first in 0..9 {
            let Reply::Answered(images) = call(&mut caller, Payload::Images { first }).await else { panic!("{first}") };
            assert_eq!(images.len(), count);
            for image in images {
                assert_eq!((image.correct, image.changed), (Some(true), false));
                assert_eq!((image.blocks, image.flops, image.stages), (None, None, None));
            }
        }
        for kind in 0..4 {
            match call(&mut caller, Payload::Bad { kind }).await {
                Reply::Refused(cause) => assert_eq!(cause.kind, "400"),
                other => panic!("{kind}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_a_foreign_server_lacks_is_told() {
    let url = serve(scores).await;
    let pool = pool(1, 8);
    let told = async |plan: Plan, parts: &[&str]| {
        let error = Wire::prepare(&plan, &pool).await.map(drop).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
    };
    let mut plan = foreign(&url);
    plan.request.datatype = Datatype::Bytes;
    told(plan, &["x FP32 [-1,3,4,6]", "expected datatype BYTES"]).await;
    let mut plan = foreign(&url);
    plan.arms[0].model = None;
    told(plan, &["found no model", "its name"]).await;
    let mut plan = foreign(&url);
    plan.request.output = Some("classes".to_owned());
    told(plan, &["scores FP32 [-1,3]", "'classes'"]).await;
    told(common::plan(Protocol::Classify, arm(&url, &[])), &["/v1/models", "blockdrop"]).await;
}

#[tokio::test]
async fn answers_that_change_are_seen() {
    let calls = AtomicUsize::new(0);
    let url = serve(move |method, path, body| {
        let (status, text) = scores(method, path, body);
        // The one before the run, and the first in it.
        let first = calls.fetch_add(usize::from(method == Method::POST), Ordering::Relaxed) < 2;
        (status, if first { text } else { text.replace("[[", "[[9.5,") })
    })
    .await;
    let wire = Wire::prepare(&foreign(&url), &colours()).await.unwrap();
    let mut caller = wire.caller(0);
    for changed in [false, true, true] {
        let Reply::Answered(images) = call(&mut caller, Payload::Images { first: 0 }).await else { panic!() };
        assert_eq!(images[0].changed, changed);
    }
}

#[tokio::test]
async fn rubbish_is_a_failure_of_a_bounded_number_of_kinds() {
    let calls = AtomicUsize::new(0);
    let url = serve(move |method, path, body| {
        if method == Method::GET {
            return scores(method, path, body);
        }
        match calls.fetch_add(1, Ordering::Relaxed) {
            // What the run begins with is well.
            0 => scores(method, path, body),
            1 => (200, String::new()),
            2 => (200, "<html>".to_owned()),
            3 => (200, "{}".to_owned()),
            4 => (200, r#"{"outputs":[]}"#.to_owned()),
            5 => (200, r#"{"outputs":[{"name":"scores","datatype":"FP32","shape":[1,3],"data":[]}]}"#.to_owned()),
            6 => (200, r#"{"outputs":[{"name":"other","datatype":"FP32","shape":[1],"data":[1]}]}"#.to_owned()),
            7 => (200, "[".repeat(100_000)),
            8 => (302, String::new()),
            9 => (500, "\u{0}\u{1b}[31m".repeat(1000)),
            10 => (200, " ".repeat(17 << 20)),
            more => (418, json!({"error": "why", "code": format!("code{more}")}).to_string()),
        }
    })
    .await;
    let wire = Wire::prepare(&foreign(&url), &colours()).await.unwrap();
    let mut caller = wire.caller(0);
    let mut kinds = BTreeSet::new();
    for first in 0..300 {
        match call(&mut caller, Payload::Images { first }).await {
            Reply::Failed(cause) => {
                assert!(cause.message.chars().count() <= 401 && cause.kind.len() <= 48);
                kinds.insert(cause.kind);
            }
            other => panic!("{first}: {other:?}"),
        }
    }
    assert!(kinds.len() <= 65, "{kinds:?}");
    for kind in ["no JSON", "wrong answer", "302", "500", "answer too large", "418 code11", "other"] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
}

/// Takes connections, each served by `serve` with its number.
async fn connections<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream, usize) -> F + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, number));
        }
    });
    url
}

/// Reads one request; the path it asks for.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        read.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(head.split(' ').nth(1)?.to_owned());
            }
        }
    }
}

fn http(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

const SCORED: &str = r#"{"outputs":[{"name":"scores","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}"#;

#[tokio::test]
async fn idle_connections_that_a_server_closes_are_opened_again() {
    // Each connection answers twice, says nothing of it, and is closed: as an idle one would be.
    let url = connections(async |mut stream, _| {
        for _ in 0..2 {
            let Some(path) = request(&mut stream).await else { return };
            let answer = if path.ends_with("/infer") { http(SCORED) } else { http(METADATA) };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let wire = Wire::prepare(&foreign(&url), &colours()).await.unwrap();
    let mut caller = wire.caller(0);
    for first in 0..12 {
        let reply = call(&mut caller, Payload::Images { first }).await;
        assert!(matches!(reply, Reply::Answered(_)), "{first}: {reply:?}");
        tokio::time::sleep(std::time::Duration::from_millis(if first % 2 == 0 { 0 } else { 3 })).await;
    }
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_a_failure() {
    for (way, expected) in [
        ("", "connection closed"),
        ("HTTP/1.1 200 O", "connection closed"),
        ("SSH-2.0-rubbish\r\n\r\n", "no HTTP"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", "answer cut off"),
    ] {
        let url = connections(async move |mut stream, number| {
            let mut answered = 0;
            while let Some(path) = request(&mut stream).await {
                let infer = path.ends_with("/infer");
                // The first connection that infers answers once.
                if infer && (answered > 0 || number > 4) {
                    drop(stream.write_all(way.as_bytes()).await);
                    return;
                }
                answered += usize::from(infer);
                let answer = if infer { http(SCORED) } else { http(METADATA) };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let wire = Wire::prepare(&foreign(&url), &colours()).await.unwrap();
        let mut caller = wire.caller(0);
        let mut failed = 0;
        for first in 0..12 {
            match call(&mut caller, Payload::Images { first }).await {
                Reply::Answered(_) => {}
                Reply::Failed(cause) => {
                    assert_eq!(cause.kind, expected, "{way}: {}", cause.message);
                    failed += 1;
                }
                other => panic!("{way}: {other:?}"),
            }
        }
        assert!(failed > 3, "{way}: {failed}");
    }
}

#[tokio::test]
async fn rubbish_in_place_of_grpc_is_told_and_nothing_hangs() {
    for way in [
        "",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "\u{0}\u{0}\u{0}\u{4}\u{0}\u{0}\u{0}\u{0}\u{0}",
        "rubbish".repeat(999).as_str(),
    ] {
        let way = way.to_owned();
        let url = connections(move |mut stream, _| {
            let way = way.clone();
            async move {
                let mut chunk = [0; 1024];
                drop(stream.read(&mut chunk).await);
                drop(stream.write_all(way.as_bytes()).await);
            }
        })
        .await;
        for protocol in [Protocol::Grpc, Protocol::GrpcOip, Protocol::GrpcOipStream] {
            let (plan, pool) = (common::plan(protocol, arm(&url, &[])), pool(1, 8));
            let prepared = Wire::prepare(&plan, &pool);
            let error = tokio::time::timeout(common::PATIENCE, prepared).await.unwrap().map(drop).unwrap_err();
            assert!(error.to_string().contains("arm 'arm'"), "{error}");
        }
    }
}
