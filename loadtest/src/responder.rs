//! A server that answers every protocol at once, with the same facts for every image: what a client measures of it is the
//! client's own ceiling.

mod grpc;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

/// What it says it is.
const NAME: &str = "blockdrop-responder";
/// Facts of every image.
const CLASS: u32 = 3;
const PROBABILITIES: [f32; 10] = [0.01, 0.01, 0.01, 0.9, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01];
const MASK: &str = "010011000010010";
const BLOCKS: u32 = 5;
const FLOPS_POLICY: u64 = 6_121_344;
const FLOPS_EXECUTED: u64 = 43_353_344;
const FLOPS_FULL: u64 = 137_725_184;

/// Names, datatypes and shapes of its outputs.
const OUTPUTS: [(&str, &str, &[i64]); 5] = [
    ("probabilities", "FP32", &[-1, 10]),
    ("class", "INT32", &[-1]),
    ("mask", "UINT8", &[-1, 15]),
    ("blocks", "INT32", &[-1]),
    ("flops", "INT64", &[-1]),
];

/// Serves on `threads` threads until the process ends, HTTP/1.1 and gRPC each on its listener.
///
/// # Errors
/// The threads or the listeners cannot be had.
pub fn run(http: std::net::TcpListener, grpc: std::net::TcpListener, threads: usize) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads.max(1)).enable_all().build()?;
    http.set_nonblocking(true)?;
    grpc.set_nonblocking(true)?;
    runtime.block_on(async { respond(TcpListener::from_std(http)?, TcpListener::from_std(grpc)?).await })
}

/// Serves HTTP/1.1 and gRPC, each on its listener; ends only by an error.
///
/// # Errors
/// A listener is broken.
pub async fn respond(http: TcpListener, grpc: TcpListener) -> io::Result<()> {
    tokio::try_join!(respond_http(http), respond_grpc(grpc)).map(drop)
}

async fn respond_http(listener: TcpListener) -> io::Result<Infallible> {
    let canned = Arc::new(Canned::new());
    loop {
        let stream = TokioIo::new(accept(&listener).await?);
        let canned = Arc::clone(&canned);
        let service = service_fn(move |request| {
            let canned = Arc::clone(&canned);
            async move { Ok::<_, Infallible>(answer(&canned, request).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(stream, service));
    }
}

async fn respond_grpc(listener: TcpListener) -> io::Result<Infallible> {
    loop {
        let stream = TokioIo::new(accept(&listener).await?);
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service_fn(grpc::answer)));
    }
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Answers that were written before.
struct Canned {
    /// Of `/v1/classify`, for one image.
    result: String,
    classified: Bytes,
    /// Of the inference protocol, for one image.
    inferred: Bytes,
    binary: (usize, Bytes),
}

impl Canned {
    fn new() -> Self {
        let predictions: Vec<_> = [CLASS, 4, 0, 1, 2]
            .iter()
            .map(|&class| json!({"label": format!("class {class}"), "class": class, "probability": PROBABILITIES[class as usize]}))
            .collect();
        let ratio = (FLOPS_POLICY + FLOPS_EXECUTED) as f64 / FLOPS_FULL as f64;
        let result = json!({
            "predictions": predictions,
            "path": {"policy": "learned", "mask": MASK, "blocks_kept": BLOCKS, "blocks_total": MASK.len()},
            "flops": {"policy": FLOPS_POLICY, "executed": FLOPS_EXECUTED, "full": FLOPS_FULL, "ratio": ratio},
            "timing_ms": {"decode": 0.0, "preprocess": 0.0, "queue": 0.0, "policy": 0.0, "backbone": 0.0, "total": 0.0},
        })
        .to_string();
        let classified = classified(&result, 1).into();
        Self { result, classified, inferred: inferred(1).into(), binary: binary(1) }
    }
}

fn classified(result: &str, count: usize) -> String {
    let results = vec![result; count].join(",");
    format!(r#"{{"model":"canned","version":"1","request_id":"0","results":[{results}]}}"#)
}

/// What is asked for over HTTP is answered whatever it is: only how many images there are counts.
async fn answer(canned: &Canned, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return told(StatusCode::BAD_REQUEST, r#"{"error":"the body broke off","code":"invalid_body"}"#.into());
    };
    let path = head.uri.path();
    if head.method == Method::GET {
        return asked(path);
    }
    if path == "/v1/classify" {
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let count = match content_type.split_once("boundary=") {
            Some((_, boundary)) => parts(&body, boundary),
            None => 1,
        };
        return told(
            StatusCode::OK,
            match count {
                1 => canned.classified.clone(),
                count => classified(&canned.result, count).into(),
            },
        );
    }
    infer(canned, &head.headers, &body)
}

fn infer(canned: &Canned, headers: &HeaderMap, body: &[u8]) -> Response<Full<Bytes>> {
    const LENGTH: &str = "inference-header-content-length";
    let count = images(body);
    if !headers.contains_key(LENGTH) {
        return told(StatusCode::OK, if count == 1 { canned.inferred.clone() } else { inferred(count).into() });
    }
    let (length, body) = if count == 1 { canned.binary.clone() } else { binary(count) };
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(LENGTH, HeaderValue::from(length));
    response
}

fn asked(path: &str) -> Response<Full<Bytes>> {
    let labels: Vec<String> = (0..PROBABILITIES.len()).map(|class| format!("class {class}")).collect();
    let model = json!({"name": "canned", "version": "1", "default": true, "labels": labels});
    let tensor =
        |(name, datatype, shape): (&str, &str, &[i64])| json!({"name": name, "datatype": datatype, "shape": shape});
    let told_of = match path.trim_end_matches('/') {
        "/v2" => json!({"name": NAME, "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]}),
        "/v1/models" => json!({"models": [model]}),
        path if path.starts_with("/v1/models/") => model,
        path if path.starts_with("/v2/models/") => json!({
            "name": "canned",
            "versions": ["1"],
            "platform": "none",
            "inputs": [tensor(("image", "FP32", &[-1, 3, -1, -1]))],
            "outputs": OUTPUTS.map(tensor),
        }),
        _ => return told(StatusCode::NOT_FOUND, r#"{"error":"no such path","code":"not_found"}"#.into()),
    };
    told(StatusCode::OK, told_of.to_string().into())
}

fn told(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Parts of a form.
fn parts(body: &[u8], boundary: &str) -> usize {
    let mark = format!("--{boundary}\r\n");
    let (mut found, mut rest) = (0, body);
    while let Some(at) = rest.iter().position(|byte| *byte == b'-') {
        rest = &rest[at..];
        match rest.strip_prefix(mark.as_bytes()) {
            Some(after) => (found, rest) = (found + 1, after),
            None => rest = &rest[1..],
        }
    }
    found.max(1)
}

/// Images of an inference request: the first number of its shape. All JSON has it near its start.
fn images(body: &[u8]) -> usize {
    const SHAPE: &[u8] = b"\"shape\":[";
    let start = &body[..body.len().min(1024)];
    let Some(at) = start.windows(SHAPE.len()).position(|bytes| bytes == SHAPE) else { return 1 };
    let digits = start[at + SHAPE.len()..].iter().map_while(|byte| char::from(*byte).to_digit(10));
    digits.fold(0usize, |number, digit| (number * 10 + digit as usize).min(4096)).max(1)
}

/// The values of an output for `count` images, as bytes.
fn raw(output: &str, count: usize) -> Vec<u8> {
    let spent = (FLOPS_POLICY + FLOPS_EXECUTED) as i64;
    let one: Vec<u8> = match output {
        "probabilities" => PROBABILITIES.iter().flat_map(|value| value.to_le_bytes()).collect(),
        "class" => CLASS.to_le_bytes().into(),
        "mask" => MASK.bytes().map(|bit| bit - b'0').collect(),
        "blocks" => BLOCKS.to_le_bytes().into(),
        _ => spent.to_le_bytes().into(),
    };
    one.repeat(count)
}

/// The shape of an output for `count` images.
fn shape(told: &[i64], count: usize) -> Vec<i64> {
    std::iter::once(count as i64).chain(told[1..].iter().copied()).collect()
}

fn inferred(count: usize) -> String {
    let spent = FLOPS_POLICY + FLOPS_EXECUTED;
    let bits: Vec<u8> = MASK.bytes().map(|bit| bit - b'0').collect();
    let outputs = OUTPUTS.map(|(name, datatype, told)| {
        let data = match name {
            "probabilities" => json!(PROBABILITIES.repeat(count)),
            "class" => json!(vec![CLASS; count]),
            "mask" => json!(bits.repeat(count)),
            "blocks" => json!(vec![BLOCKS; count]),
            _ => json!(vec![spent; count]),
        };
        json!({"name": name, "datatype": datatype, "shape": shape(told, count), "data": data})
    });
    json!({"model_name": "canned", "model_version": "1", "outputs": outputs}).to_string()
}

fn binary(count: usize) -> (usize, Bytes) {
    let mut tensors = Vec::new();
    let outputs = OUTPUTS.map(|(name, datatype, told)| {
        let raw = raw(name, count);
        let size = raw.len();
        tensors.extend(raw);
        let parameters = json!({"binary_data_size": size});
        json!({"name": name, "datatype": datatype, "shape": shape(told, count), "parameters": parameters})
    });
    let json = json!({"model_name": "canned", "model_version": "1", "outputs": outputs}).to_string();
    (json.len(), [json.as_bytes(), &tensors].concat().into())
}
