//! Failures inside: images that ONNX Runtime fails on, a worker that gets stuck, and bundles that are damaged under a
//! running server. Each costs what it has to, and the server goes on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use blockdrop_testkit::Net;
use common::reference::Reference;
use common::server::{Server, answered, parts};
use common::{blank, contains, heavy, models, picture, png, run};
use image::ImageFormat;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

/// A net that fails on an image that is all white, by any path, and on one that is all black, where the policy looks.
fn trapped() -> Net {
    Net { traps: true, ..Net::tiny(5) }
}

/// The same net without its traps.
fn reference() -> Reference {
    let apart = models("net", &Net::tiny(5));
    Reference::load(&apart.path().join("net/1"))
}

async fn failed(response: Response) {
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body, json!({"error": "the image could not be run", "code": "internal", "request_id": id}));
}

#[tokio::test]
async fn an_image_that_onnxruntime_fails_on_is_answered_with_an_error() {
    let dir = models("net", &trapped());
    let reference = reference();
    for flags in [&["--warm-up", "1day"][..], &["--path-cache-bytes", "0"]] {
        let mut server = Server::start(dir.path(), flags);
        for round in 0..20 {
            failed(server.post("", blank(255)).await).await;
            failed(server.post("?path=full", blank(255)).await).await;
            failed(server.post("", blank(0)).await).await;
            for (path, image) in [("policy", png(round)), ("full", png(round)), ("full", blank(0))] {
                let answer = server.classify(&format!("?path={path}"), image.clone()).await;
                reference.check(&answer["results"][0], &image, &reference.selection(path), 0);
            }
        }
        let metrics = server.metrics().await;
        assert_eq!((metrics.code(500), metrics.code(200)), (60.0, 60.0));
        assert_eq!(metrics.of("blockdrop_images_total{model=\"net\"}"), 60.0, "of those that were answered");
        assert_eq!(metrics.of("blockdrop_worker_panics_total"), 0.0);
        server.signal(rustix::process::Signal::TERM);
        assert_eq!(server.ended().code(), Some(0));
        let log = server.log();
        let said = log.iter().filter(|line| line["message"] == "an image failed");
        let said: Vec<&str> = said.map(|line| line["error"].as_str().unwrap()).collect();
        assert_eq!(said.len(), 60, "{said:?}");
        said.iter().for_each(|error| contains(error, &["ONNX Runtime failed: ", "Gather", "out of data bounds"]));
    }
}

/// Eight images that run as one batch, two of which it fails on: as parts of one request, and of requests of their own in
/// every protocol.
#[tokio::test]
async fn of_a_batch_only_those_images_fail_that_it_fails_on() {
    let dir = models("net", &trapped());
    let net = heavy(4);
    net.write(&dir.path().join("heavy/1")).unwrap();
    let (reference, large) = (reference(), picture(2, net.side as u32, ImageFormat::Png));
    for (path, flags) in [
        ("full", &["--warm-up", "1day"][..]),
        ("full", &["--path-cache-bytes", "0"]),
        ("policy", &["--warm-up", "1day"]),
    ] {
        const ONE: &[&str] = &["--workers", "1", "--default-model", "net", "--request-timeout", "1min"];
        let server = Server::start(dir.path(), &[ONE, flags].concat());
        let bad = blank(if path == "full" { 255 } else { 0 });
        let images: Vec<Vec<u8>> = (0..8).map(|seed| if seed % 5 == 2 { bad.clone() } else { png(seed) }).collect();
        let mut decoded = 0.0;
        // The only worker is busy until all eight wait.
        let mut hold = async |more: f64| {
            let url = server.url("/v1/classify?model=heavy&path=full");
            let busy = tokio::spawn(server.client.post(url).multipart(parts(&vec![large.clone(); 4])).send());
            decoded += 4.0;
            server.until(|series| series.stage("decode") == decoded).await;
            decoded += more;
            (busy, decoded)
        };

        let (busy, all) = hold(8.0).await;
        let url = server.url(&format!("/v1/classify?path={path}"));
        let together = tokio::spawn(server.client.post(url).multipart(parts(&images)).send());
        let waiting = server.until(|series| series.stage("decode") == all).await;
        assert!(waiting.of("blockdrop_queue_depth") >= 8.0, "the worker is still busy: {waiting:?}");
        let answer = answered(together.await.unwrap().unwrap()).await;
        for (at, (result, image)) in answer["results"].as_array().unwrap().iter().zip(&images).enumerate() {
            if at % 5 == 2 {
                assert_eq!(result, &json!({"error": "the image could not be run", "code": "internal"}), "{path} {at}");
            } else {
                reference.check(result, image, &reference.selection(path), at as u64);
            }
        }
        answered(busy.await.unwrap().unwrap()).await;
        if path == "full" {
            let metrics = server.metrics().await;
            let batches = |count: &str| metrics.of(&format!("blockdrop_batch_size_{count}{{model=\"net\"}}"));
            assert_eq!((batches("count"), batches("sum")), (1.0, 8.0), "they ran together");
        }

        let (busy, all) = hold(8.0).await;
        let asked = images.iter().enumerate().map(|(at, image)| {
            let to = if at % 2 == 0 { "/v1/classify" } else { "/v2/models/net/infer" };
            let post = server.client.post(server.url(&format!("{to}?path={path}"))).body(image.clone());
            async { post.header("inference-header-content-length", "0").send().await.unwrap() }
        });
        let asked = futures_util::future::join_all(asked);
        let waited = server.until(|series| series.stage("decode") == all);
        let (found, waiting) = tokio::join!(asked, waited);
        assert!(waiting.of("blockdrop_queue_depth") >= 8.0, "the worker is still busy: {waiting:?}");
        for (at, response) in found.into_iter().enumerate() {
            if at % 5 == 2 { failed(response).await } else { assert_eq!(response.status(), 200, "{path} {at}") }
        }
        answered(busy.await.unwrap().unwrap()).await;
        server.stop();
    }
}

/// What is on disk is read once: whatever becomes of it, what runs runs on, paths that are compiled later included.
#[tokio::test]
async fn a_bundle_that_is_damaged_under_a_running_server_changes_nothing() {
    let dir = models("net", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    let reference = reference();
    let check = async |mask: &str| {
        let answer = server.classify(&format!("?path=mask:{mask}"), png(1)).await;
        let path = format!("mask:{mask}");
        reference.check(&answer["results"][0], &png(1), &reference.selection(&path), 0);
    };
    check("100110").await;
    for file in files(dir.path()) {
        let length = std::fs::metadata(&file).unwrap().len();
        // In place, as a disk that fails or a careless copy would: truncated, then other bytes.
        std::fs::write(&file, vec![0xa5; length as usize / 2]).unwrap();
    }
    for mask in ["100110", "010101", "111000"] {
        let before = server.metrics().await.paths("net");
        check(mask).await;
        check(mask).await;
        server.until(|series| series.paths("net").bytes > before.bytes).await;
        check(mask).await;
        assert!(server.metrics().await.paths("net").hits > before.hits, "{mask} was compiled");
    }
    let url = server.admin_url("/v2/repository/models/net/load");
    let refused = server.client.post(url).send().await.unwrap();
    assert_eq!(refused.status(), 400, "and loading says what is wrong with it");
    contains(&refused.text().await.unwrap(), &["net/1/bundle.json"]);
    check("111111").await;
    server.stop();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A batch of which nothing is seen for long is not alive; a queue that is long is no reason to start a server again.
#[tokio::test]
async fn a_worker_that_is_stuck_is_said_and_a_long_queue_is_not() {
    let net = heavy(4);
    let dir = models("net", &net);
    let image = picture(2, net.side as u32, ImageFormat::Png);
    for (after, stuck) in [("1ms", true), ("0s", false), ("1h", false)] {
        let server = Server::start(
            dir.path(),
            &["--workers", "1", "--max-batch", "2", "--request-timeout", "1min", "--stuck-after", after],
        );
        let live = async || server.get_admin("/livez").await;
        assert_eq!(live().await.json::<Value>().await.unwrap(), json!({"live": true}));
        let url = server.url("/v1/classify?path=full");
        let busy = tokio::spawn(server.client.post(url).multipart(parts(&vec![image.clone(); 10])).send());
        server.until(|series| series.of("blockdrop_worker_busy_seconds") > 0.002).await;
        if stuck {
            let found = async {
                loop {
                    let found = live().await;
                    if found.status() == 503 {
                        break found;
                    }
                }
            };
            let found: Value = found.await.json().await.unwrap();
            assert_eq!(found["live"], false);
            assert!(found["busy_seconds"].as_f64() > Some(0.001), "{found}");
            let asked = ["healthcheck", "--live", "--admin-addr", &server.admin.to_string()].map(str::to_owned);
            // It may come between two batches.
            let found = (0..100).map(|_| run(&asked)).find(|found| found.code != Some(0)).unwrap();
            found.failed(1, &["/livez: not alive: a worker has been at one batch for "]);
        }
        while !busy.is_finished() {
            let status = live().await.status();
            assert!(stuck || status == 200, "--stuck-after {after}");
        }
        assert_eq!(answered(busy.await.unwrap().unwrap()).await["results"].as_array().unwrap().len(), 10);
        let idle = server.until(|series| series.of("blockdrop_worker_busy_seconds") == 0.0).await;
        assert_eq!(idle.of("blockdrop_workers"), 1.0);
        assert_eq!(live().await.status(), 200, "it came back");
    }
}
