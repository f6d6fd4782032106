//! Limits of one model: its flood takes nothing from others.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use blockdrop::proto::v1::ClassifyRequest;
use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop_testkit::Net;
use common::raw::{Raw, head};
use common::server::{Server, answered, parts};
use common::{contains, heavy, models, picture, png, put};
use image::ImageFormat;
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::transport::Endpoint;

/// `slow`, whose images keep the only worker for a while, and `quick`.
fn start(flags: &[&str]) -> (Server, Vec<u8>) {
    let net = heavy(4);
    let dir = models("slow", &net);
    put(dir.path(), "quick", 1, &Net::tiny(5));
    let flags = [&["--workers", "1", "--default-model", "slow", "--shadow-rate", "0"], flags].concat();
    (Server::start(dir.path(), &flags), picture(1, net.side as u32, ImageFormat::Png))
}

/// Sends a request of several images to the slow model in the background.
fn send(server: &Server, image: &[u8], images: usize) -> tokio::task::JoinHandle<reqwest::Response> {
    let request = server.client.post(server.url("/v1/classify?path=full"));
    let request = request.multipart(parts(&vec![image.to_vec(); images]));
    tokio::spawn(async move { request.send().await.unwrap() })
}

async fn refused(response: reqwest::Response, status: u16, code: &str, parts: &[&str]) {
    assert_eq!(response.status(), status);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], code, "{body}");
    contains(body["error"].as_str().unwrap(), parts);
}

#[tokio::test]
async fn a_models_queue_is_its_own() {
    for flags in [["--model-limit", "slow:queue=2"], ["--max-queue-per-model", "2"]] {
        let (server, image) = start(&[&flags[..], &["--max-batch", "1", "--max-queue", "6"]].concat());
        let running = send(&server, &image, 1);
        server.until(|series| series.stage("decode") == 1.0 && series.of("blockdrop_queue_depth") == 0.0).await;
        let waiting = send(&server, &image, 2);
        server.until(|series| series.of("blockdrop_queue_depth") == 2.0).await;
        // Refused before its body is read: none of it is sent.
        let mut raw = Raw::open(server.http).await.unwrap();
        raw.send(head("", "content-length: 1000\r\n")).await;
        let found = raw.answer().await.whole();
        assert_eq!((found.status, found.header("retry-after")), (503, Some("1")));
        assert_eq!(found.json()["code"], "overloaded");
        contains(found.json()["error"].as_str().unwrap(), &["2 images of model 'slow' wait, as many as may"]);
        let channel = Endpoint::new(format!("http://{}", server.grpc)).unwrap().connect_lazy();
        let mut client = ClassifierClient::new(channel);
        let asked = ClassifyRequest { image: image.clone().into(), model: "slow".into(), ..ClassifyRequest::default() };
        let found = client.classify(asked).await.expect_err("as many wait as may");
        assert_eq!(found.code(), tonic::Code::Unavailable, "{found:?}");
        contains(found.message(), &["model 'slow'"]);
        // The other one has room, and so has the server.
        let other = tokio::spawn({
            let url = server.url("/v1/classify?model=quick");
            let request = server.client.post(url).body(png(1));
            async move { request.send().await.unwrap() }
        });
        server.until(|series| series.of("blockdrop_queue_depth") == 3.0).await;
        assert!(!waiting.is_finished());
        for task in [running, waiting, other] {
            answered(task.await.unwrap()).await;
        }
        let metrics = server.metrics().await;
        assert_eq!((metrics.rejected("model_queue_full"), metrics.rejected("queue_full")), (2.0, 0.0));
        let of = |model: &str| metrics.of(&format!("blockdrop_model_queue_full_total{{model=\"{model}\"}}"));
        assert_eq!((of("slow"), of("quick")), (2.0, 0.0));
        // More images in one request than may ever wait.
        let found = send(&server, &image, 3).await.unwrap();
        refused(found, 413, "too_many_images", &["more than 2 images, expected at most 2"]).await;
        let config = answered(server.get("/v2/models/slow/config").await).await;
        assert_eq!(config["max_batch_size"], 2);
        answered(send(&server, &image, 2).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_model_has_its_batch_and_its_time() {
    let (server, image) = start(&["--model-limit", "slow:batch=2,timeout=1h", "--model-limit", "quick:timeout=1ms"]);
    let running = send(&server, &image, 1);
    server.until(|series| series.stage("decode") == 1.0 && series.of("blockdrop_queue_depth") == 0.0).await;
    let waiting = send(&server, &image, 6);
    server.until(|series| series.of("blockdrop_queue_depth") == 6.0).await;
    // Its time runs out while it waits for the worker; what it asks for itself makes it no longer.
    let late = server.post("?model=quick&timeout=60000000", png(1)).await;
    refused(late, 504, "deadline_exceeded", &["time ran out"]).await;
    answered(running.await.unwrap()).await;
    answered(waiting.await.unwrap()).await;
    let metrics = server.metrics().await;
    let of = |what: &str| metrics.of(&format!("blockdrop_batch_size_{what}"));
    assert_eq!(of("sum{model=\"slow\"}"), 7.0);
    assert_eq!(of("bucket{model=\"slow\",le=\"2\"}"), of("count{model=\"slow\"}"), "none of more than two");
}

#[tokio::test]
async fn limits_of_no_model_are_told_and_wait_for_it() {
    let dir = models("one", &Net::tiny(5));
    let mut server = Server::launch(&mut Server::command(dir.path(), &["--model-limit", "new:queue=3"]));
    let warned = server.logged(|line| line["message"].as_str().is_some_and(|text| text.starts_with("--model-limit")));
    assert_eq!((&warned["level"], &warned["model"]), (&json!("WARN"), &json!("new")));
    let ready = server.logged(|line| line["message"] == "ready");
    server.http = ready["address"].as_str().unwrap().parse().unwrap();
    put(dir.path(), "new", 1, &Net::tiny(6));
    answered(server.client.post(server.admin_url("/v2/repository/models/new/load")).send().await.unwrap()).await;
    let config = answered(server.get("/v2/models/new/config").await).await;
    assert_eq!(config["max_batch_size"], 3);
}

#[tokio::test]
async fn limits_above_the_servers_are_told() {
    let dir = models("one", &Net::tiny(5));
    let flags = ["--request-timeout", "1s", "--model-limit", "one:batch=2,timeout=1h"];
    let mut server = Server::start(dir.path(), &flags);
    server.signal(Signal::TERM);
    server.ended();
    let log = server.log();
    let told: Vec<&Value> = log.iter().filter(|line| line["level"] == "WARN").collect();
    let expected = "--model-limit: its timeout is above --request-timeout, which holds for it too";
    assert!(matches!(*told, [only] if only["message"] == expected && only["model"] == "one"), "{told:?}");
}
