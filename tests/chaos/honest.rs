//! Clients that ask as they should, and check every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop::proto::v1::classify_stream_response::Result as Either;
use blockdrop::proto::v1::{ClassifyRequest, ClassifyResponse};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use reqwest::{Client, Response};
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::reference::Reference;
use crate::common::server::parts;
use crate::common::{PATIENCE, blank, png};

/// What became of their requests.
#[derive(Default)]
pub(crate) struct Tally {
    /// Answered, and rightly.
    pub(crate) right: AtomicUsize,
    /// Images that ONNX Runtime fails on, answered with an error that says so.
    pub(crate) failed: AtomicUsize,
    /// Refused or timed out, as a server under load may.
    pub(crate) refused: AtomicUsize,
    /// For a model that was not there at the moment.
    pub(crate) unknown: AtomicUsize,
}

fn count(of: &AtomicUsize) {
    of.fetch_add(1, Ordering::Relaxed);
}

/// What the answers have to be.
pub(crate) struct Known {
    /// Of the model that stays.
    pub(crate) net: Reference,
    /// Of the model that is replaced again and again: either.
    pub(crate) swapped: [Reference; 2],
}

pub(crate) struct Honest {
    pub(crate) lots: ChaCha8Rng,
    pub(crate) url: String,
    pub(crate) calls: Channel,
    pub(crate) known: Arc<Known>,
    pub(crate) tally: Arc<Tally>,
}

const PATHS: [&str; 4] = ["policy", "full", "first_k:3", "mask:100110"];

impl Honest {
    /// Asks one thing after another until `stop`.
    pub(crate) async fn run(mut self, stop: &AtomicBool) {
        let first = Client::builder().timeout(PATIENCE).build().expect("a client");
        let second = Client::builder().timeout(PATIENCE).http2_prior_knowledge().build().expect("a client");
        while !stop.load(Ordering::Relaxed) {
            let client = if self.lots.random() { &first } else { &second };
            match self.lots.random_range(0..6) {
                0 => self.several(client).await,
                1 => self.swapped(client).await,
                2 => self.call().await,
                3 => self.stream().await,
                _ => self.one(client).await,
            }
        }
    }

    fn path(&mut self) -> &'static str {
        PATHS[self.lots.random_range(0..PATHS.len())]
    }

    fn image(&mut self) -> Vec<u8> {
        png(self.lots.random_range(0..40))
    }

    /// The answer; `None` where the server has no time or no room.
    async fn taken(&self, response: reqwest::Result<Response>) -> Option<Value> {
        let response = response.unwrap_or_else(|error| panic!("no answer: {error:?}"));
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_else(|error| panic!("half an answer, {status}: {error:?}"));
        if status == 503 || status == 504 {
            count(&self.tally.refused);
            return None;
        }
        assert_eq!(status, 200, "{text}");
        Some(serde_json::from_str(&text).expect("JSON"))
    }

    async fn one(&mut self, client: &Client) {
        let (path, image) = (self.path(), self.image());
        let url = format!("{}/v1/classify?path={path}", self.url);
        let Some(answer) = self.taken(client.post(url).body(image.clone()).send().await).await else { return };
        self.known.net.check(&answer["results"][0], &image, &self.known.net.selection(path), 0);
        count(&self.tally.right);
    }

    /// Among the images of a request one that ONNX Runtime fails on.
    async fn several(&mut self, client: &Client) {
        let (path, bad) = (self.path(), self.lots.random_range(0..4));
        let images: Vec<Vec<u8>> = (0..4).map(|at| if at == bad { blank(255) } else { self.image() }).collect();
        let url = format!("{}/v1/classify?path={path}", self.url);
        let Some(answer) = self.taken(client.post(url).multipart(parts(&images)).send().await).await else { return };
        let results = answer["results"].as_array().expect("a list");
        assert_eq!(results.len(), 4, "{answer}");
        for (at, (result, image)) in results.iter().zip(&images).enumerate() {
            match result["code"].as_str() {
                Some("deadline_exceeded") => count(&self.tally.refused),
                Some("internal") if at == bad => count(&self.tally.failed),
                None if at != bad => {
                    self.known.net.check(result, image, &self.known.net.selection(path), at as u64);
                    count(&self.tally.right);
                }
                _ => panic!("image {at}, of which {bad} is bad: {answer}"),
            }
        }
    }

    /// A model that comes and goes is answered by one of its versions, as a whole, or is not there.
    async fn swapped(&mut self, client: &Client) {
        let image = self.image();
        let url = format!("{}/v1/classify?path=full&model=swap", self.url);
        let response = client.post(url).body(image.clone()).send().await;
        if response.as_ref().is_ok_and(|response| response.status() == 404) {
            return count(&self.tally.unknown);
        }
        let Some(answer) = self.taken(response).await else { return };
        let result = &answer["results"][0];
        assert!(self.known.swapped.iter().any(|net| is_of(net, result, &image)), "of no version: {answer}");
        count(&self.tally.right);
    }

    async fn call(&mut self) {
        let (path, image) = (self.path(), self.image());
        let request = ClassifyRequest { image: image.clone().into(), path: path.into(), ..ClassifyRequest::default() };
        match ClassifierClient::new(self.calls.clone()).classify(request).await {
            Ok(found) => self.check(found.get_ref(), &image, path),
            Err(status) => self.refused(&status),
        }
    }

    /// Several images on one stream, of which one fails.
    async fn stream(&mut self) {
        let path = self.path();
        let images: Vec<Vec<u8>> = (0..5).map(|at| if at == 2 { blank(255) } else { self.image() }).collect();
        let requests: Vec<ClassifyRequest> = images
            .iter()
            .map(|image| ClassifyRequest {
                image: image.clone().into(),
                path: path.into(),
                ..ClassifyRequest::default()
            })
            .collect();
        let mut client = ClassifierClient::new(self.calls.clone());
        let mut answers = match client.classify_stream(futures_util::stream::iter(requests)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return self.refused(&status),
        };
        for (at, image) in images.iter().enumerate() {
            let answer = answers.message().await.expect("the stream goes on").expect("an answer for each");
            match answer.result.expect("an answer") {
                Either::Response(found) if at != 2 => self.check(&found, image, path),
                Either::Error(error) if error.code == "internal" && at == 2 => count(&self.tally.failed),
                Either::Error(error) if ["overloaded", "deadline_exceeded"].contains(&&*error.code) => {
                    count(&self.tally.refused);
                }
                other => panic!("message {at}: {other:?}"),
            }
        }
    }

    fn refused(&self, status: &Status) {
        assert!([Code::Unavailable, Code::DeadlineExceeded].contains(&status.code()), "{status:?}");
        assert!(status.metadata().contains_key("blockdrop-code"), "no answer: {status:?}");
        count(&self.tally.refused);
    }

    fn check(&self, found: &ClassifyResponse, image: &[u8], path: &str) {
        let (net, selection) = (&self.known.net, self.known.net.selection(path));
        let expected = net.answer(image, &selection, 0);
        let (path, flops) = (found.path.as_ref().expect("a path"), found.flops.as_ref().expect("FLOPs"));
        assert_eq!(path.mask, expected.mask.to_string());
        assert_eq!((flops.executed, flops.full), (net.costs().executed(&expected.mask), net.costs().full()));
        let predictions = found.predictions.iter().map(|prediction| {
            let (label, class) = (&prediction.label, prediction.class);
            serde_json::json!({"label": label, "class": class, "probability": prediction.probability})
        });
        net.check_predictions(&predictions.collect(), &expected.logits);
        count(&self.tally.right);
    }
}

/// Whether a result is what a net answers as a whole.
fn is_of(net: &Reference, result: &Value, image: &[u8]) -> bool {
    let logits = net.answer(image, &net.selection("full"), 0).logits;
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("classes");
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - logits[best]).exp()).sum();
    let found = &result["predictions"][0];
    found["class"] == best && found["probability"].as_f64().is_some_and(|found| (found - 1.0 / total).abs() < 1e-4)
}
