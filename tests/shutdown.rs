//! SIGTERM and SIGINT: what was accepted is answered however slowly its client is, what comes later is told to go elsewhere,
//! and the drain ends. Under load see terminations.rs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use blockdrop::proto::v1::ClassifyRequest;
use blockdrop::proto::v1::classifier_client::ClassifierClient;

use blockdrop_testkit::Net;
use common::raw::{Raw, ask, head, post};
use common::reference::Reference;
use common::server::{Series, Server, answered, parts};
use common::{PATIENCE, contains, heavy, models, picture, png, run};
use futures_util::stream;
use image::ImageFormat;
use prost::Message;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A server that one request of several images keeps busy.
struct Draining {
    server: Server,
    reference: Reference,
    image: Vec<u8>,
    request: tokio::task::JoinHandle<reqwest::Result<reqwest::Response>>,
}

impl Draining {
    /// Sends a request of `images` images and, once all of them wait for the only worker, `signal`; returns when the
    /// server says that it is stopping.
    async fn start(images: usize, signal: Signal, flags: &[&str]) -> Self {
        let net = heavy(4);
        let models = models("net", &net);
        let server = Server::start(models.path(), &[&["--workers", "1", "--max-batch", "1"], flags].concat());
        let reference = Reference::load(&models.path().join("net/1"));
        let image = picture(2, net.side as u32, ImageFormat::Png);
        let form = parts(&vec![image.clone(); images]);
        let request = tokio::spawn(server.client.post(server.url("/v1/classify?path=full")).multipart(form).send());
        server.until(|series| series.stage("decode") == images as f64).await;
        server.signal(signal);
        while server.get_admin("/readyz").await.status() == 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { server, reference, image, request }
    }
}

#[tokio::test]
async fn a_draining_server_says_so_and_serves_what_it_accepted() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut drain = Draining::start(6, signal, &[]).await;
        let server = &drain.server;
        let ready = server.get_admin("/readyz").await;
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.json::<Value>().await.unwrap(), serde_json::json!({"ready": false, "state": "stopping"}));
        assert_eq!(server.get_admin("/livez").await.status(), 200, "it is not to be killed");
        let admin = server.admin.to_string();
        run(["healthcheck", "--admin-addr", &admin]).failed(1, &["/readyz: not ready: it is stopping"]);
        assert_eq!(run(["healthcheck", "--live", "--admin-addr", &admin]).code, Some(0));
        let found = ask(server.http, post("?path=full", "", &drain.image)).await.whole();
        assert_eq!((found.status, found.header("retry-after")), (503, Some("1")), "{found:?}");
        assert_eq!(found.json()["code"], "shutting_down");
        let metrics = server.metrics().await;
        assert_eq!(metrics.rejected("shutting_down"), 1.0);
        assert_eq!(metrics.of("blockdrop_inflight_requests"), 1.0, "the accepted one is not answered yet");
        assert!(!drain.request.is_finished());

        let answer = answered(drain.request.await.unwrap().unwrap()).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), 6);
        for result in results {
            drain.reference.check(result, &drain.image, &drain.reference.selection("full"), 0);
        }
        assert_eq!(drain.server.ended().code(), Some(0));
        assert!(drain.server.log().iter().any(|line| line["message"] == "stopped"));
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)] {
        // More work than is done before the second signal.
        let mut drain = Draining::start(64, first, &["--request-timeout", "1h", "--drain-timeout", "1h"]).await;
        drain.server.signal(second);
        assert_eq!(drain.server.ended().code(), Some(130));
        if let Ok(response) = drain.request.await.unwrap() {
            panic!("an answer, though nothing was finished: {}", response.text().await.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn a_drain_ends_when_its_time_is_over() {
    let mut drain = Draining::start(64, Signal::TERM, &["--drain-timeout", "1ms"]).await;
    assert_eq!(drain.server.ended().code(), Some(1));
    assert!(drain.request.await.unwrap().is_err(), "nothing was answered");
    let log = drain.server.log();
    let said = log.iter().filter_map(Value::as_str).find(|line| line.starts_with("error: "));
    assert_eq!(said, Some("error: stopped with 1 requests unanswered: the time to drain was over"), "{log:?}");
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let models = models("net", &Net::tiny(5));
    let mut server = Server::start(models.path(), &["--drain-timeout", "1h"]);
    let mut used = Raw::open(server.http).await.unwrap();
    used.send(post("", "", &png(1))).await;
    assert_eq!(used.answer().await.whole().status, 200);
    let unused = Raw::open(server.http).await.unwrap();
    assert_eq!(server.get("/v1/models").await.status(), 200);
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    drop((used, unused));
}

#[tokio::test]
async fn a_signal_while_models_load_is_not_lost() {
    let models = models("net", &heavy(4));
    let mut server = Server::launch(&mut Server::command(models.path(), &[]));
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
}

/// More shadows wait than are run within a time to drain: they hold nothing up.
#[tokio::test]
async fn shadows_do_not_hold_up_the_end() {
    let net = heavy(4);
    let models = models("net", &net);
    let mut server =
        Server::start(models.path(), &["--shadow-rate", "1", "--drain-timeout", "1h", "--warm-up", "1day"]);
    let images: Vec<Vec<u8>> = (0..30).map(|seed| picture(seed, net.side as u32, ImageFormat::Png)).collect();
    server.classify_all("?max_blocks=1", &images).await;
    let ran = |series: &Series| series.of("blockdrop_shadow_runs_total{model=\"net\"}");
    assert!(ran(&server.metrics().await) < 15.0, "most of them wait");
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let log = server.log();
    let stopped = log.iter().find(|line| line["message"] == "stopped").unwrap();
    assert!(stopped["seconds"].as_f64().unwrap() < 20.0, "at most one side was waited for: {stopped}");
}

/// A server that is told to stop while half of a request's body has arrived, and waits for the rest.
struct Waiting {
    server: Server,
    half: Raw,
    rest: Vec<u8>,
}

impl Waiting {
    async fn start(models: &tempfile::TempDir) -> Self {
        let server = Server::start(models.path(), &[]);
        let image = png(1);
        let (first, rest) = image.split_at(image.len() / 2);
        let mut half = Raw::open(server.http).await.unwrap();
        half.send([head("", &format!("content-length: {}\r\n", image.len())), first.to_vec()].concat()).await;
        server.until(|series| series.of("blockdrop_inflight_requests") == 1.0).await;
        Self { half, rest: rest.to_vec(), server }
    }

    async fn stop(&self) {
        self.server.signal(Signal::TERM);
        while self.server.get_admin("/readyz").await.status() == 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The rest of the body comes, and is answered; nothing else keeps the server.
    async fn end(mut self) {
        self.half.send(&self.rest).await;
        assert_eq!(self.half.answer().await.whole().status, 200);
        assert_eq!(tokio::task::block_in_place(|| self.server.ended()).code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_body_arrives_slowly_is_answered() {
    let models = models("net", &Net::tiny(5));
    let waiting = Waiting::start(&models).await;
    // A call, too, is accepted by its head.
    let message = ClassifyRequest { image: png(2).into(), ..ClassifyRequest::default() }.encode_to_vec();
    let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Result<Vec<u8>, std::io::Error>>();
    let client = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let url = format!("http://{}/blockdrop.v1.Classifier/Classify", waiting.server.grpc);
    let body = reqwest::Body::wrap_stream(stream::poll_fn(move |context| pieces.poll_recv(context)));
    let call = client.post(url).header("content-type", "application/grpc").header("te", "trailers").body(body).send();
    let call = tokio::spawn(call);
    sender.send(Ok(framed[..20].to_vec())).unwrap();
    waiting.server.until(|series| series.of("blockdrop_inflight_requests") == 2.0).await;
    waiting.stop().await;
    sender.send(Ok(framed[20..].to_vec())).unwrap();
    drop(sender);
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.headers().get("grpc-status"), None, "what is answered has its status after the answer");
    assert!(answer.bytes().await.unwrap().len() > 5);
    waiting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_message_never_comes_ends() {
    let models = models("net", &Net::tiny(5));
    let mut server = Server::start(models.path(), &["--request-timeout", "1s", "--drain-timeout", "1h"]);
    let client = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let url = format!("http://{}/blockdrop.v1.Classifier/Classify", server.grpc);
    let body = reqwest::Body::wrap_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let call = tokio::spawn(client.post(url).header("content-type", "application/grpc").body(body).send());
    server.until(|series| series.of("blockdrop_inflight_requests") == 1.0).await;
    server.signal(Signal::TERM);
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
    contains(answer.headers()["grpc-message"].to_str().unwrap(), &["did%20not%20arrive%20in%20time"]);
    assert_eq!(tokio::task::block_in_place(|| server.ended()).code(), Some(0));
}

/// The answer is far larger than what the system holds of it while its client does not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_the_whole_answer() {
    let models = models("net", &Net { classes: 1000, ..Net::tiny(5) });
    let mut server = Server::start(models.path(), &[]);
    let images: Vec<Value> =
        (0..64).map(|seed| serde_json::json!({"b64": BASE64_STANDARD.encode(png(seed))})).collect();
    let body = serde_json::json!({"images": images}).to_string();
    let mut slow = Raw::narrow(server.http).await;
    slow.send(post("?top_k=1000", "content-type: application/json\r\n", body.as_bytes())).await;
    let done = |series: &Series| series.code(200) == 1.0 && series.of("blockdrop_inflight_requests") == 0.0;
    server.until(done).await;
    server.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let whole = slow.answer().await.whole();
    assert_eq!(whole.json()["results"].as_array().unwrap().len(), 64);
    assert_eq!(tokio::task::block_in_place(|| server.ended()).code(), Some(0));
    assert!(!server.log().iter().any(|line| line["message"] == "connections are cut off"));
}

/// Clients of gRPC keep their connections for good: they are told at once to make new ones, which may go elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_connections_are_told_to_end() {
    let models = models("net", &Net::tiny(5));
    let waiting = Waiting::start(&models).await;
    let mut open = Frames::open(waiting.server.grpc).await;
    waiting.stop().await;
    while open.next().await.expect("the connection did not end without a word") != GOAWAY {}
    drop(open);
    let channel = tonic::transport::Endpoint::new(format!("http://{}", waiting.server.grpc)).unwrap();
    let mut late = ClassifierClient::new(channel.connect().await.unwrap());
    let refused = late.classify(ClassifyRequest { image: png(2).into(), ..ClassifyRequest::default() }).await;
    let refused = refused.expect_err("the server is stopping");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_eq!(refused.metadata().get("blockdrop-code").unwrap(), "shutting_down");
    waiting.end().await;
}

/// A connection of HTTP/2 that asks for nothing.
struct Frames(TcpStream);

const GOAWAY: u8 = 7;

impl Frames {
    async fn open(address: SocketAddr) -> Self {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        let mut frames = Self(stream);
        assert_eq!(frames.next().await, Some(SETTINGS[3]), "the server's own");
        frames
    }

    /// The type of the next frame, if the connection does not end.
    async fn next(&mut self) -> Option<u8> {
        let mut head = [0; 9];
        let read = async {
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            self.0.read_exact(&mut vec![0; length as usize]).await.ok()?;
            Some(head[3])
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a frame, or the end of the connection")
    }
}
