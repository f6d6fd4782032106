//! Lines of the log: whose request they are of, and what is never in them, nor in a trace.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use blockdrop::proto::inference::model_infer_request::InferInputTensor;
use blockdrop::proto::inference::{InferTensorContents, ModelInferRequest};
use blockdrop::proto::v1::ClassifyRequest;
use blockdrop_testkit::Net;
use bytes::Bytes;
use common::collector::Collector;
use common::server::Server;
use common::{contains, models, png};
use prost::Message;
use reqwest::multipart::{Form, Part};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Its image's pixels are normalised to values that overflow in the net: an error of the server's.
fn overflowing(dir: &Path) {
    let file = dir.join("net/1/bundle.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    manifest["input"]["std"] = json!([1e-38, 1e-38, 1e-38]);
    std::fs::write(file, manifest.to_string()).unwrap();
}

/// Ends the server and gives its log.
fn ended(mut server: Server) -> Vec<Value> {
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    server.log()
}

/// A gRPC message with its head.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

/// Calls `path` with `message` and these headers.
async fn call(server: &Server, path: &str, headers: &[(&str, &str)], message: &impl Message) {
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let request = client.post(format!("http://{}{path}", server.grpc)).header("content-type", "application/grpc");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.header("te", "trailers").body(framed(message)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response.bytes().await);
}

fn typed(image: Vec<u8>) -> ClassifyRequest {
    ClassifyRequest { image: image.into(), ..ClassifyRequest::default() }
}

const CLASSIFY: &str = "/blockdrop.v1.Classifier/Classify";

#[tokio::test]
async fn lines_about_a_request_name_it_at_every_level() {
    for level in ["info", "blockdrop=debug", "trace"] {
        let dir = models("net", &Net::tiny(5));
        overflowing(dir.path());
        let server = Server::start_with(dir.path(), &["--shadow-rate", "0"], &[("RUST_LOG", level)]);
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let traceparent = format!("00-{trace}-b7ad6b7169203331-00");
        let headers = [("x-request-id", "a\"call"), ("traceparent", &*traceparent)];
        let request = server.client.post(server.url("/v1/classify")).header("x-request-id", "a-request");
        let response = request.header("traceparent", &traceparent).body(png(1)).send().await.unwrap();
        assert_eq!(response.status(), 500);
        call(&server, CLASSIFY, &headers, &typed(png(1))).await;
        let load = server.client.post(server.admin_url("/v2/repository/models/net/load"));
        assert_eq!(load.header("x-request-id", "a-reload").send().await.unwrap().status(), 200);

        let log = ended(server);
        let of = |id: &str| log.iter().filter(|line| line["request_id"] == id).collect::<Vec<_>>();
        for id in ["a-request", "a\"call"] {
            let lines = of(id);
            assert!(lines.iter().all(|line| line["trace_id"] == trace), "{lines:#?}");
            let messages: Vec<&str> = lines
                .iter()
                .filter(|line| line["level"] == "ERROR")
                .map(|line| line["message"].as_str().unwrap())
                .collect();
            assert_eq!(messages, ["an image failed", "a request failed inside"], "{id} at {level}");
            let mut stages: Vec<&str> = lines
                .iter()
                .filter(|line| line["message"] == "close")
                .filter_map(|line| line["span"]["name"].as_str())
                .collect();
            stages.sort_unstable();
            stages.dedup();
            let expected: &[&str] = match level {
                "info" => &[],
                _ => &["batch", "decode", "policy", "preprocess", "queue", "request"],
            };
            assert_eq!(stages, expected, "{id} at {level}");
        }
        let [reloaded] = of("a-reload").try_into().unwrap();
        assert_eq!(reloaded["message"], "model reloaded");
        for line in &log {
            let in_request = line["spans"].as_array().into_iter().flatten().chain([&line["span"]]);
            let in_request = in_request.into_iter().any(|span| span["name"] == "request" || span["name"] == "batch");
            assert!(!in_request || line["request_id"].is_string(), "at {level}: {line}");
        }
    }
}

const KEY: &str = "secret-of-the-key-0123456789";
const WRONG: &str = "secret-of-another-key-0123456789";
const TOKEN: &str = "secret-of-the-collector";

/// A PNG file with a text of its own in it, which no decoder needs.
fn marked(seed: u64) -> Vec<u8> {
    let file = png(seed);
    // Behind the header's chunk, without a right checksum: the decoder passes over chunks that it does not know of.
    let text = b"tEXtComment\0secret-of-the-image";
    let chunk = [&((text.len() - 4) as u32).to_be_bytes()[..], text, &crc(text).to_be_bytes()].concat();
    [&file[..33], &chunk, &file[33..]].concat()
}

/// The checksum of a PNG file's chunk.
fn crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _: u32| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

#[tokio::test]
async fn nothing_of_an_image_or_a_key_is_told() {
    let collector = Collector::start();
    let url = collector.url();
    let headers = format!("authorization={TOKEN}");
    let env = [
        ("RUST_LOG", "trace"),
        ("BLOCKDROP_API_KEYS", KEY),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_EXPORTER_OTLP_HEADERS", &headers),
    ];
    let dir = models("net", &Net::tiny(5));
    let server = Server::start_with(dir.path(), &["--otlp-endpoint", &url, "--trace-sample", "1"], &env);
    let image = marked(1);
    let file = || Part::bytes(image.clone()).file_name("secret-of-the-name.png");
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &image);
    let json = json!({"images": [{"b64": base64}]}).to_string();
    let oip = json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64]}]}).to_string();
    let message = ModelInferRequest {
        model_name: "net".into(),
        inputs: vec![InferInputTensor {
            name: "image".into(),
            datatype: "BYTES".into(),
            shape: vec![1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![Bytes::from(image.clone())],
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    };
    for key in [KEY, WRONG] {
        let bearer = format!("Bearer {key}");
        let post = |path: &str| server.client.post(server.url(path)).header("authorization", &bearer);
        let infer = "/v2/models/net/infer";
        let requests = [
            (post("/v1/classify").body(image.clone()), 200),
            (post("/v1/classify").multipart(Form::new().part("image", file())), 200),
            (post("/v1/classify").header("content-type", "application/json").body(json.clone()), 200),
            (post("/v1/classify?secret-of-the-query=secret-of-the-value").body(image.clone()), 400),
            (post(infer).body(oip.clone()), 200),
            (post(infer).header("inference-header-content-length", "0").body(image.clone()), 200),
            (post("/secret-of-the-path").header("x-secret-of-a-header", "secret-too").body(image.clone()), 404),
        ];
        for (request, status) in requests {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), if key == KEY { status } else { 401 }, "{response:?}");
        }
        let headers = [("authorization", &*bearer)];
        call(&server, CLASSIFY, &headers, &typed(image.clone())).await;
        call(&server, "/inference.GRPCInferenceService/ModelInfer", &headers, &message).await;
        call(&server, "/inference.GRPCInferenceService/ModelStreamInfer", &headers, &message).await;
        call(&server, "/blockdrop.v1.Classifier/SecretOfTheMethod", &headers, &message).await;
    }
    let counts = server.metrics().await;
    assert_eq!(counts.of("blockdrop_images_total{model=\"net\"}"), 8.0, "of each protocol one");
    let log = ended(server);
    assert!(log.len() > 1000, "at the level of traces");
    let spans = collector.spans();
    assert_eq!(spans.iter().filter(|span| span.name == "backbone").count(), 8);
    for text in log.iter().map(Value::to_string).chain(spans.iter().map(|span| format!("{span:?}"))) {
        assert!(!text.to_lowercase().contains("secret"), "{text}");
        assert!(!text.contains(&base64[20..60]) && !text.contains("IHDR"), "{text}");
    }
    contains(&spans.iter().map(|span| span.name.clone() + " ").collect::<String>(), &["POST /v1/classify", "decode"]);
}
