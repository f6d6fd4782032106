//! SIGTERM and SIGINT under load: no request that the server accepted is lost, over any protocol.
//!
//! Accepted is a request whose head the server has read, over a stream a message that it has read: it logs a span for it.
//! Each of those has its whole answer, with the status that was logged: its result if it came before the server was told
//! to stop, else 503 or `UNAVAILABLE` with the code `shutting_down`. What has no span was turned away before the server
//! took it: its connection was refused, or ended before the first byte of an answer, or it was refused by its head alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockdrop::proto::inference::model_infer_request::InferInputTensor;
use blockdrop::proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use blockdrop::proto::v1::ClassifyRequest;
use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop::proto::v1::classify_stream_response::Result as Either;
use blockdrop_testkit::Net;
use common::raw::{Came, Raw, post};
use common::server::Server;
use common::{PATIENCE, models, png};
use futures_util::{StreamExt, stream};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Semaphore;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// Servers that are started, loaded and terminated.
const TERMINATIONS: u64 = 50;

/// Of these at a time.
const AT_ONCE: usize = 4;

/// How a client sends its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// HTTP/1.1, a connection for all of them.
    Kept,
    /// HTTP/1.1, a connection for each.
    Fresh,
    Http2,
    Classify,
    Infer,
    ClassifyStream,
    InferStream,
}

const WAYS: [Way; 7] =
    [Way::Kept, Way::Fresh, Way::Http2, Way::Classify, Way::Infer, Way::ClassifyStream, Way::InferStream];

/// Answers by the id of their request (over a stream: of its call), with their status: 200 or `OK`, 503 or `UNAVAILABLE`.
type Answers = BTreeMap<String, Vec<String>>;

/// A client, and what it saw.
struct Client {
    way: Way,
    name: String,
    http: SocketAddr,
    grpc: SocketAddr,
    answers: Answers,
    /// Requests answered with their result, of all clients.
    served: Arc<AtomicUsize>,
}

impl Client {
    fn answered(&mut self, id: &str, status: &str) {
        self.answers.entry(id.to_owned()).or_default().push(status.to_owned());
        if status == "200" || status == "OK" {
            self.served.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends requests until it is turned away.
    async fn run(mut self) -> (Way, Answers) {
        match self.way {
            Way::Kept => self.raw(true).await,
            Way::Fresh => self.raw(false).await,
            Way::Http2 => self.http2().await,
            Way::Classify => self.classify().await,
            Way::Infer => self.infer().await,
            Way::ClassifyStream => self.classify_stream().await,
            Way::InferStream => self.infer_stream().await,
        }
        (self.way, self.answers)
    }

    async fn raw(&mut self, keep: bool) {
        let mut kept = None;
        for sent in 0.. {
            let id = format!("{}-{sent}", self.name);
            let mut raw = match kept.take() {
                Some(raw) => raw,
                None => match Raw::open(self.http).await {
                    Ok(raw) => raw,
                    Err(_) => return,
                },
            };
            let query = ["", "?path=full", "?path=first_k:3"][sent % 3];
            raw.send(post(query, &format!("x-request-id: {id}\r\n"), &png(sent as u64))).await;
            let whole = match raw.answer().await {
                Came::Whole(whole) => whole,
                Came::Nothing => return,
                Came::Part(part) => panic!("{id} has part of an answer: {}", String::from_utf8_lossy(&part)),
            };
            assert_eq!(whole.header("x-request-id"), Some(id.as_str()), "an answer to what was asked");
            self.answered(&id, &whole.status.to_string());
            if whole.status == 503 {
                assert_eq!(whole.json()["code"], "shutting_down");
                assert_eq!((whole.header("retry-after"), whole.header("connection")), (Some("1"), Some("close")));
                return;
            }
            assert_eq!(whole.json()["results"].as_array().map(Vec::len), Some(1), "{whole:?}");
            if keep && whole.header("connection") != Some("close") {
                kept = Some(raw);
            }
        }
    }

    async fn http2(&mut self) {
        let client = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
        for sent in 0.. {
            let id = format!("{}-{sent}", self.name);
            let request = client.post(format!("http://{}/v1/classify", self.http));
            let Ok(response) = request.header("x-request-id", &id).body(png(sent)).send().await else { return };
            let status = response.status();
            let body: Value = response.json().await.expect("an answer that has begun is whole");
            self.answered(&id, status.as_str());
            if status == 503 {
                assert_eq!(body["code"], "shutting_down");
                return;
            }
            assert_eq!(body["results"].as_array().map(Vec::len), Some(1), "{body}");
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(format!("http://{}", self.grpc)).unwrap().timeout(PATIENCE)
    }

    /// A call that was refused, by the server or for there being none any more.
    fn refused(&mut self, id: &str, status: &Status) {
        if let Some(code) = status.metadata().get("blockdrop-code") {
            assert_eq!(
                (status.code(), code.as_bytes()),
                (Code::Unavailable, &b"shutting_down"[..]),
                "{id}: {status:?}"
            );
            self.answered(id, "UNAVAILABLE");
        }
    }

    async fn classify(&mut self) {
        let mut client = ClassifierClient::new(self.endpoint().connect_lazy());
        for sent in 0.. {
            let id = format!("{}-{sent}", self.name);
            match client.classify(with_id(&id, image(sent))).await {
                Ok(answer) => {
                    assert_eq!(answer.get_ref().predictions.len(), 5);
                    self.answered(&id, "OK");
                }
                Err(status) => return self.refused(&id, &status),
            }
        }
    }

    async fn infer(&mut self) {
        let mut client = Grpc::new(self.endpoint().connect_lazy());
        for sent in 0.. {
            let id = format!("{}-{sent}", self.name);
            client.ready().await.unwrap();
            let path = axum::http::uri::PathAndQuery::from_static("/inference.GRPCInferenceService/ModelInfer");
            let codec = ProstCodec::<ModelInferRequest, ModelInferResponse>::default();
            match client.unary(with_id(&id, tensor(sent)), path, codec).await {
                Ok(answer) => {
                    assert_eq!(answer.get_ref().outputs.len(), 6);
                    self.answered(&id, "OK");
                }
                Err(status) => return self.refused(&id, &status),
            }
        }
    }

    async fn classify_stream(&mut self) {
        let id = self.name.clone();
        let (turns, requests) = few_at_once(image);
        let mut client = ClassifierClient::new(self.endpoint().connect_lazy());
        let mut answers = match client.classify_stream(with_id(&id, requests)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return self.refused(&id, &status),
        };
        while let Some(answer) = answers.next().await {
            turns.add_permits(1);
            match answer {
                Ok(answer) => match answer.result.unwrap() {
                    Either::Response(found) => {
                        assert_eq!(found.predictions.len(), 5);
                        self.answered(&id, "OK");
                    }
                    Either::Error(error) => {
                        assert_eq!(error.code, "shutting_down");
                        self.answered(&id, "UNAVAILABLE");
                    }
                },
                Err(status) => return ended(&id, &status),
            }
        }
        panic!("{id}: the stream ended without a status");
    }

    async fn infer_stream(&mut self) {
        let id = self.name.clone();
        let (turns, requests) = few_at_once(tensor);
        let mut client = Grpc::new(self.endpoint().connect_lazy());
        client.ready().await.unwrap();
        let path = axum::http::uri::PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
        let codec = ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
        let mut answers = match client.streaming(with_id(&id, requests), path, codec).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return self.refused(&id, &status),
        };
        while let Some(answer) = answers.next().await {
            turns.add_permits(1);
            match answer {
                Ok(answer) if answer.error_message.is_empty() => {
                    assert_eq!(answer.infer_response.unwrap().outputs.len(), 6);
                    self.answered(&id, "OK");
                }
                Ok(answer) => {
                    assert!(answer.error_message.contains("shutting down"), "{answer:?}");
                    self.answered(&id, "UNAVAILABLE");
                }
                Err(status) => return ended(&id, &status),
            }
        }
        panic!("{id}: the stream ended without a status");
    }
}

/// A stream ends by saying that the server stops. That is the call's status, and no message's.
fn ended(id: &str, status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{id}: {status:?}");
    assert!(status.message().contains("shutting down"), "{id}: {status:?}");
}

fn with_id<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

fn image(number: u64) -> ClassifyRequest {
    ClassifyRequest { image: png(number).into(), ..ClassifyRequest::default() }
}

fn tensor(number: u64) -> ModelInferRequest {
    let file = png(number);
    let input = InferInputTensor {
        name: "image".into(),
        datatype: "BYTES".into(),
        shape: vec![1],
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: "net".into(),
        inputs: vec![input],
        raw_input_contents: vec![[&(file.len() as u32).to_le_bytes()[..], &file].concat().into()],
        ..ModelInferRequest::default()
    }
}

/// Messages without end, of which four are not answered yet, as long as each answer gives a turn back.
fn few_at_once<T: Send + 'static>(
    message: impl Fn(u64) -> T + Send + Sync + Copy + 'static,
) -> (Arc<Semaphore>, impl futures_util::Stream<Item = T> + Send + 'static) {
    let turns = Arc::new(Semaphore::new(4));
    let taken = Arc::clone(&turns);
    let messages = stream::iter(0..).then(move |number| {
        let turns = Arc::clone(&taken);
        async move {
            turns.acquire_owned().await.unwrap().forget();
            message(number)
        }
    });
    (turns, messages)
}

/// The requests that the server logged, with the statuses that it answered.
fn taken(log: &[Value]) -> Answers {
    let mut taken = Answers::new();
    for line in log.iter().filter(|line| line["message"] == "close" && line["span"]["name"] == "request") {
        let span = &line["span"];
        let status = match &span["status"] {
            Value::String(status) => status.clone(),
            other => other.to_string(),
        };
        taken.entry(span["request_id"].as_str().unwrap().to_owned()).or_default().push(status);
    }
    taken.values_mut().for_each(|statuses| statuses.sort());
    taken
}

/// What was asked of one server.
#[derive(Default)]
struct Round {
    served: BTreeMap<Way, usize>,
    refused: usize,
}

/// Loads a server and terminates it at a moment drawn from `seed`.
async fn terminate(models: std::path::PathBuf, seed: u64) -> Round {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let start = move || Server::start_with(&models, &[], &[("RUST_LOG", "blockdrop=debug")]);
    let mut server = tokio::task::spawn_blocking(start).await.unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = WAYS
        .into_iter()
        .flat_map(|way| [way; 2])
        .enumerate()
        .map(|(number, way)| {
            let (http, grpc, served) = (server.http, server.grpc, Arc::clone(&served));
            let client = Client { way, name: format!("{number}"), http, grpc, answers: Answers::new(), served };
            tokio::spawn(client.run())
        })
        .collect();
    let (after, then) = (random.random_range(1..200), random.random_range(0..3000));
    while served.load(Ordering::Relaxed) < after && !clients.iter().any(|client| client.is_finished()) {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    tokio::time::sleep(Duration::from_micros(then)).await;
    server.signal([Signal::TERM, Signal::INT][seed as usize % 2]);
    let (mut answers, mut round) = (Answers::new(), Round::default());
    for client in clients {
        let (way, seen) = client.await.unwrap();
        let of = |wanted: [&str; 2]| seen.values().flatten().filter(|status| wanted.contains(&status.as_str())).count();
        *round.served.entry(way).or_default() += of(["200", "OK"]);
        round.refused += of(["503", "UNAVAILABLE"]);
        answers.extend(seen);
    }
    let (status, log) = tokio::task::spawn_blocking(move || (server.ended(), server.log())).await.unwrap();
    assert_eq!(status.code(), Some(0), "seed {seed}");
    answers.values_mut().for_each(|statuses| statuses.sort());
    let taken = taken(&log);
    for (id, statuses) in &taken {
        assert_eq!(answers.get(id), Some(statuses), "seed {seed}: what was taken, and answered, of {id}");
    }
    // What was answered and not taken was refused by its head.
    let others = answers.iter().filter(|(id, _)| !taken.contains_key(*id));
    others.for_each(|(id, statuses)| assert_eq!(statuses, &["UNAVAILABLE"], "seed {seed}: {id}"));
    round
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_request_is_lost() {
    let models = models("net", &Net::tiny(5));
    let each = (0..TERMINATIONS).map(|seed| terminate(models.path().to_path_buf(), seed));
    let rounds: Vec<Round> = stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
    let mut served: BTreeMap<Way, usize> = BTreeMap::new();
    for (way, count) in rounds.iter().flat_map(|round| &round.served) {
        *served.entry(*way).or_default() += count;
    }
    assert!(served.len() == WAYS.len() && served.values().all(|count| *count > 0), "every way was served: {served:?}");
    let refused: usize = rounds.iter().map(|round| round.refused).sum();
    assert!(refused > 0, "some came while a server was stopping");
}
