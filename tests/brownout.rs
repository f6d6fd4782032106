//! Brownout: a server that is flooded keeps fewer blocks, says so in each answer, and goes back once the flood is over.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use base64::Engine as _;
use blockdrop::policy::{Choice, Mask};
use blockdrop::proto::v1::ClassifyRequest;
use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop_testkit::Net;
use common::reference::Reference;
use common::server::{Server, answered};
use common::{contains, heavy, models, picture, run, text};
use image::ImageFormat;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

/// The highest threshold, and those on the way to it from 0.5.
const MOST: f64 = 0.9;
const THRESHOLDS: [f64; 4] = [0.6, 0.7, 0.8, MOST];

/// Clients of a flood.
const CLIENTS: usize = 8;

/// A net that takes a worker far longer for an image than what is called too long here.
fn net() -> Net {
    Net { width: 24, side: 64, ..heavy(3) }
}

const FLAGS: [&str; 6] = ["--workers", "1", "--max-batch", "1", "--brownout-wait", "1ms"];

/// An image, with what the policy decides for it by each threshold.
struct Bench {
    server: Server,
    reference: Reference,
    image: Vec<u8>,
}

impl Bench {
    fn start(flags: &[&str]) -> Self {
        let dir = models("net", &net());
        let server = Server::start(dir.path(), &[&FLAGS, flags].concat());
        let reference = Reference::load(&dir.path().join("net/1"));
        let image = (0..100).map(|seed| picture(seed, 64, ImageFormat::Png)).find(|image| {
            let kept = [0.5, 0.7, MOST].map(|threshold| learned(&reference, image, threshold).kept());
            kept[0] > kept[1] && kept[1] > kept[2]
        });
        Self { server, reference, image: image.expect("an image whose blocks are not all wanted alike") }
    }

    fn learned(&self, threshold: f64) -> Mask {
        learned(&self.reference, &self.image, threshold)
    }

    /// Sends the image again and again, by several clients at once, until the flood is told to end.
    fn flood(&self) -> Flood {
        let (over, mut clients) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for _ in 0..CLIENTS {
            let (client, url, image) =
                (self.server.client.clone(), self.server.url("/v1/classify"), self.image.clone());
            let over = Arc::clone(&over);
            clients.spawn(async move {
                let mut answers = Vec::new();
                while !over.load(Relaxed) {
                    answers.push(answered(client.post(&url).body(image.clone()).send().await.unwrap()).await);
                }
                answers
            });
        }
        Flood { over, clients }
    }

    /// Checks the path of an answer, and returns the threshold that it names.
    fn check(&self, path: &Value) -> Option<f64> {
        let raised = path.get("brownout_threshold").map(|threshold| threshold.as_f64().unwrap());
        let mask = self.learned(raised.unwrap_or(0.5));
        assert_eq!((&path["mask"], &path["policy"]), (&json!(mask.to_string()), &json!("learned")), "{path}");
        if let Some(raised) = raised {
            assert!(THRESHOLDS.iter().any(|threshold| (threshold - raised).abs() < 1e-9), "{path}");
        }
        raised
    }

    /// Asks until an answer names the highest threshold, in whatever way it is asked.
    async fn until_highest<F: Future<Output = Option<f64>>>(&self, ask: impl Fn() -> F) {
        while ask().await.is_none_or(|threshold| threshold < MOST) {}
    }

    async fn infer(&self, images: usize) -> Value {
        let file = base64::engine::general_purpose::STANDARD.encode(&self.image);
        let data = vec![file; images];
        let body = json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [images], "data": data}]});
        answered(self.server.client.post(self.server.url("/v2/models/net/infer")).json(&body).send().await.unwrap())
            .await
    }
}

struct Flood {
    over: Arc<AtomicBool>,
    clients: JoinSet<Vec<Value>>,
}

impl Flood {
    /// Ends it, and gives all its answers.
    async fn end(self) -> Vec<Value> {
        self.over.store(true, Relaxed);
        self.clients.join_all().await.concat()
    }
}

fn learned(reference: &Reference, image: &[u8], threshold: f64) -> Mask {
    let selection = reference.select(Choice { threshold: Some(threshold), ..Choice::default() });
    reference.answer(image, &selection, 0).mask
}

fn path(answer: &Value) -> &Value {
    &answer["results"][0]["path"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_gets_shorter_paths_and_quiet_gives_them_back() {
    let mut bench = Bench::start(&["--brownout", "0.9", "--shadow-rate", "1"]);
    let server = &bench.server;
    let alone = server.classify("", bench.image.clone()).await;
    assert_eq!(bench.check(path(&alone)), None);

    let flood = bench.flood();
    bench.until_highest(|| async { bench.check(path(&server.classify("", bench.image.clone()).await)) }).await;
    assert!(server.metrics().await.of("blockdrop_brownout_level") > 0.0);
    // Who asks for something gets just that.
    for (query, choice) in [
        ("?threshold=0.5", Choice { threshold: Some(0.5), ..Choice::default() }),
        ("?max_blocks=11", Choice { max_blocks: Some(11), ..Choice::default() }),
        ("?max_flops=99999999999", Choice { max_flops: Some(99_999_999_999), ..Choice::default() }),
        ("?path=full", Choice { path: "full".parse().unwrap(), ..Choice::default() }),
        ("?path=first_k:3", Choice { path: "first_k:3".parse().unwrap(), ..Choice::default() }),
    ] {
        let found = server.classify(query, bench.image.clone()).await;
        bench.reference.check(&found["results"][0], &bench.image, &bench.reference.select(choice), 0);
        assert_eq!(path(&found).get("brownout_threshold"), None, "{query}");
    }
    // Every protocol tells, of several images in one answer too.
    let raised = |answer: &Value| {
        let text = answer["parameters"]["brownout_threshold"].as_str();
        text.map(|text| text.parse::<f64>().unwrap())
    };
    for images in [1, 3] {
        bench.until_highest(|| async { raised(&bench.infer(images).await) }).await;
    }
    let channel = Endpoint::new(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
    let classifier = ClassifierClient::new(channel);
    let typed = || async {
        let request = ClassifyRequest { image: bench.image.clone().into(), ..ClassifyRequest::default() };
        let path = classifier.clone().classify(request).await.unwrap().into_inner().path.unwrap();
        let threshold = path.brownout_threshold.unwrap_or(0.5);
        assert_eq!(path.mask, bench.learned(threshold).to_string());
        path.brownout_threshold
    };
    bench.until_highest(typed).await;
    let answers = flood.end().await;
    let shortened = answers.iter().filter(|answer| bench.check(path(answer)).is_some()).count();

    // Nobody asks for anything any more.
    let after = server.until(|series| series.of("blockdrop_brownout_level") == 0.0).await;
    let by_brownout = after.of("blockdrop_brownout_images_total{model=\"net\"}");
    assert!(by_brownout >= shortened as f64 && shortened > 0, "{shortened} of the flood, {by_brownout} in all");
    assert_eq!(path(&server.classify("", bench.image.clone()).await), path(&alone));
    // Of the images that the policy looked at, those under brownout have no shadow.
    let of = |metric: &str| format!("blockdrop_{metric}{{model=\"net\"}}");
    server
        .until(|series| {
            let looked = series.of(&of("flops_policy_total")) / bench.reference.costs().policy as f64;
            let dropped: f64 = ["full", "no_graph", "failed"]
                .map(|reason| {
                    series.of(&format!("blockdrop_shadow_dropped_total{{model=\"net\",reason=\"{reason}\"}}"))
                })
                .iter()
                .sum();
            let shadows = series.of(&of("shadow_runs_total")) + dropped;
            let drawn = looked - by_brownout;
            assert!(shadows <= drawn, "{shadows} shadows of {drawn} images");
            // Three were asked for by a threshold or a budget.
            assert_eq!(series.of(&of("policy_images_total")), drawn - 3.0);
            shadows == drawn
        })
        .await;
    let said = |line: &Value| line["message"].as_str().unwrap_or("").to_owned();
    let warned = bench.server.logged(|line| said(line).starts_with("brownout: images wait too long"));
    assert_eq!((&warned["level"], &warned["most"]), (&json!("WARN"), &json!(MOST)));
    let ended = bench.server.logged(|line| said(line).starts_with("brownout is over"));
    assert_eq!(ended["level"], "INFO");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_it_a_flood_changes_nothing() {
    let bench = Bench::start(&[]);
    let flood = bench.flood();
    let image = "blockdrop_images_total{model=\"net\"}";
    bench.server.until(|series| series.of(image) >= 5.0 * CLIENTS as f64).await;
    for answer in flood.end().await {
        assert_eq!(bench.check(path(&answer)), None);
    }
    let found = bench.server.metrics().await;
    assert_eq!(found.of("blockdrop_brownout_level"), 0.0);
    assert_eq!(found.of("blockdrop_brownout_images_total{model=\"net\"}"), 0.0);
    assert_eq!(found.of("blockdrop_policy_images_total{model=\"net\"}"), found.of(image));
}

/// Gives the bundle in `dir` another keep threshold of its own.
fn set_threshold(dir: &Path, threshold: f64) {
    let file = dir.join("bundle.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    manifest["policy"]["threshold"] = json!(threshold);
    std::fs::write(file, manifest.to_string()).unwrap();
}

#[tokio::test]
async fn a_model_has_to_leave_room_above_its_own_threshold() {
    let dir = models("net", &Net::tiny(5));
    let bundle = dir.path().join("net/1");
    let expected = format!("--brownout: found 0.5, expected more than 0.5, the keep threshold of {}", text(&bundle));
    let ports = ["--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"];
    let flags = ["serve", "--models", text(dir.path()), "--brownout", "0.5"];
    let found = run(flags.into_iter().chain(ports));
    assert_eq!(found.code, Some(1), "{found:?}");
    contains(&found.err, &[&expected]);

    let server = Server::start(dir.path(), &["--brownout", "0.8"]);
    set_threshold(&bundle, 0.9);
    let load = || server.client.post(server.admin_url("/v2/repository/models/net/load")).send();
    let refused = load().await.unwrap();
    assert_eq!(refused.status(), 400);
    contains(&refused.text().await.unwrap(), &["--brownout: found 0.8, expected more than 0.9"]);
    server.classify("", common::png(1)).await;
    set_threshold(&bundle, 0.7);
    assert_eq!(load().await.unwrap().status(), 200);
}
