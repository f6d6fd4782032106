//! Models loaded, replaced and unloaded on the admin listener while the server serves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use blockdrop_testkit::Net;
use common::raw::{Raw, post};
use common::reference::Reference;
use common::server::{Series, Server, answered, parts};
use common::{contains, heavy, models, picture, png, put, write_paths};
use image::ImageFormat;
use rustix::process::Signal;
use serde_json::{Value, json};

/// `change` is `load` or `unload`.
async fn ask(server: &Server, name: &str, change: &str) -> reqwest::Response {
    ask_with(server, name, change, "").await
}

async fn ask_with(server: &Server, name: &str, change: &str, body: &str) -> reqwest::Response {
    let url = server.admin_url(&format!("/v2/repository/models/{name}/{change}"));
    server.client.post(url).body(body.to_owned()).send().await.unwrap()
}

async fn changed(server: &Server, name: &str, change: &str) -> Value {
    answered(ask(server, name, change).await).await
}

async fn refused(response: reqwest::Response, status: u16, code: &str, parts: &[&str]) {
    assert_eq!(response.status(), status);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], code, "{body}");
    contains(body["error"].as_str().unwrap(), parts);
}

async fn index(server: &Server, body: &str) -> Value {
    let url = server.admin_url("/v2/repository/index");
    answered(server.client.post(url).body(body.to_owned()).send().await.unwrap()).await
}

fn ready(name: &str, version: &str) -> Value {
    json!({"name": name, "version": version, "state": "READY", "reason": ""})
}

/// Whether a result is what `reference` answers for the whole net.
fn is_of(reference: &Reference, result: &Value, file: &[u8]) -> bool {
    let answer = reference.answer(file, &reference.selection("full"), 0);
    let best = (0..answer.logits.len()).max_by(|&a, &b| answer.logits[a].total_cmp(&answer.logits[b])).unwrap();
    let largest = f64::from(answer.logits[best]);
    let total: f64 = answer.logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    let found = &result["predictions"][0];
    found["class"] == best && (found["probability"].as_f64().unwrap() - 1.0 / total).abs() < 1e-4
}

/// Version 1 is replaced again and again, and version 2 comes and goes, under eight clients: every request is answered
/// by one whole model that was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloading_loses_no_request() {
    let (net, other) = (Net::tiny(5), Net::tiny(6));
    let dir = models("net", &net);
    let server = Server::start(dir.path(), &[]);
    let apart = tempfile::tempdir().unwrap();
    let references: Arc<Vec<Reference>> = Arc::new(
        [(1, &net), (2, &other)]
            .map(|(number, net)| {
                put(apart.path(), "net", number, net);
                Reference::load(&apart.path().join(format!("net/{number}")))
            })
            .into(),
    );
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|number: u64| {
            let (stop, answers, references) = (Arc::clone(&stop), Arc::clone(&answers), Arc::clone(&references));
            let address = server.http;
            tokio::spawn(async move {
                let mut raw = Raw::open(address).await.unwrap();
                let mut of = [0; 2];
                for sent in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let image = png(100 * number + sent % 100);
                    raw.send(post("?path=full&top_k=1", "", &image)).await;
                    let whole = raw.answer().await.whole();
                    assert_eq!(whole.status, 200, "{whole:?}");
                    answers.fetch_add(1, Ordering::Relaxed);
                    let result = &whole.json()["results"][0];
                    let known = references.iter().position(|reference| is_of(reference, result, &image));
                    of[known.unwrap_or_else(|| panic!("an answer of no model: {result}"))] += 1;
                }
                of
            })
        })
        .collect();
    let more = async |count: usize| {
        let until = answers.load(Ordering::Relaxed) + count;
        while answers.load(Ordering::Relaxed) < until && !clients.iter().any(|client| client.is_finished()) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    for round in 0..10 {
        more(20).await;
        put(dir.path(), "net", 1, if round % 2 == 0 { &other } else { &net });
        let change = changed(&server, "net", "load").await;
        assert_eq!(change, json!({"name": "net", "loaded": ["1"], "kept": [], "unloaded": []}));
        more(20).await;
        put(dir.path(), "net", 2, &net);
        let change = changed(&server, "net", "load").await;
        assert_eq!(change, json!({"name": "net", "loaded": ["2"], "kept": ["1"], "unloaded": []}));
        more(20).await;
        std::fs::remove_dir_all(dir.path().join("net/2")).unwrap();
        let change = changed(&server, "net", "load").await;
        assert_eq!(change, json!({"name": "net", "loaded": [], "kept": ["1"], "unloaded": ["2"]}));
    }
    stop.store(true, Ordering::Relaxed);
    let mut of = [0; 2];
    for client in clients {
        let seen = client.await.unwrap();
        of.iter_mut().zip(seen).for_each(|(all, seen)| *all += seen);
    }
    assert!(of.iter().all(|count| *count > 0), "both nets answered: {of:?}");
    server.until(|series| series.paths("net").images == answers.load(Ordering::Relaxed) as f64).await;
    server.stop();
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_old_serves_on() {
    let net = Net::tiny(5);
    let dir = models("net", &net);
    let server = Server::start(dir.path(), &[]);
    let reference = {
        let apart = models("net", &net);
        Reference::load(&apart.path().join("net/1"))
    };
    let serves_on = async || {
        let answer = server.classify("", png(1)).await;
        assert_eq!(answer["version"], "1");
        reference.check(&answer["results"][0], &png(1), &reference.selection("policy"), 0);
    };

    put(dir.path(), "net", 2, &Net::tiny(6));
    let block = dir.path().join("net/2/blocks/003.onnx");
    let whole = std::fs::read(&block).unwrap();
    std::fs::write(&block, &whole[..whole.len() - 1]).unwrap();
    let parts = ["net/2/blocks/003.onnx: sha256: found ", "(bundle.json)"];
    refused(ask(&server, "net", "load").await, 400, "invalid_bundle", &parts).await;
    serves_on().await;
    let shown = index(&server, "{}").await;
    for (shown, version, state) in [(&shown[0], "1", "READY"), (&shown[1], "2", "UNAVAILABLE")] {
        assert_eq!((&shown["version"], &shown["state"]), (&json!(version), &json!(state)));
        contains(shown["reason"].as_str().unwrap(), &parts);
    }
    assert_eq!(index(&server, r#"{"ready":true}"#).await, json!([ready("net", "1")]));

    // One whole version beside a broken one is no reason to change either; all that is wrong is told.
    put(dir.path(), "net", 1, &Net::tiny(7));
    put(dir.path(), "net", 3, &Net::tiny(8));
    std::fs::write(dir.path().join("net/3/bundle.json"), "{").unwrap();
    let parts = ["net/2/blocks/003.onnx: sha256", "; ", "net/3/bundle.json: is not a bundle manifest"];
    refused(ask(&server, "net", "load").await, 400, "invalid_bundle", &parts).await;
    serves_on().await;
    assert_eq!(answered(server.get("/v1/models/net").await).await["versions"], json!(["1"]));

    std::fs::remove_dir_all(dir.path().join("net/3")).unwrap();
    std::fs::write(&block, &whole).unwrap();
    let change = changed(&server, "net", "load").await;
    assert_eq!(change, json!({"name": "net", "loaded": ["1", "2"], "kept": [], "unloaded": []}));
    assert_eq!(index(&server, "").await, json!([ready("net", "1"), ready("net", "2")]));
    assert_eq!(server.classify("", png(1)).await["version"], "2");

    // Versions that are all gone are no reason to unload what runs.
    for version in [1, 2] {
        std::fs::remove_dir_all(dir.path().join(format!("net/{version}"))).unwrap();
    }
    refused(ask(&server, "net", "load").await, 400, "invalid_bundle", &["no version found, expected <version>"]).await;
    assert_eq!(server.classify("", png(1)).await["version"], "2");
    assert_eq!(server.metrics().await.of("blockdrop_model_ready{model=\"net\"}"), 1.0);
}

#[tokio::test]
async fn an_unloaded_model_is_gone_until_it_is_loaded() {
    let dir = models("one", &Net::tiny(5));
    put(dir.path(), "other", 1, &Net::tiny(6));
    put(dir.path(), "other", 2, &Net::tiny(7));
    let profiles = tempfile::tempdir().unwrap();
    let flags = ["--default-model", "other", "--profile-dir", common::text(profiles.path()), "--warm-up", "1h"];
    let mut server = Server::start(dir.path(), &flags);
    assert_eq!(server.classify("", png(1)).await["model"], "other");
    assert!(server.metrics().await.paths("other").bytes > 0.0);

    let change = changed(&server, "other", "unload").await;
    assert_eq!(change, json!({"name": "other", "loaded": [], "kept": [], "unloaded": ["1", "2"]}));
    let gone = ["model 'other' not found", "expected one of: one"];
    refused(server.post("?model=other", png(1)).await, 404, "unknown_model", &gone).await;
    refused(server.get("/v1/models/other").await, 404, "unknown_model", &gone).await;
    let unnamed = ["model 'other' not found", "expected one of: one"];
    refused(server.post("", png(1)).await, 404, "unknown_model", &unnamed).await;
    refused(ask(&server, "other", "unload").await, 404, "unknown_model", &gone).await;
    assert_eq!(server.classify("?model=one", png(1)).await["model"], "one");
    let shown = answered(server.get("/v1/models").await).await;
    assert_eq!(shown["models"].as_array().unwrap().len(), 1, "{shown}");
    let unloaded =
        |version: &str| json!({"name": "other", "version": version, "state": "UNAVAILABLE", "reason": "unloaded"});
    assert_eq!(index(&server, "").await, json!([ready("one", "1"), unloaded("1"), unloaded("2")]));
    let metrics = server.until(|series| series.paths("other").bytes == 0.0).await;
    assert_eq!(metrics.of("blockdrop_model_ready{model=\"other\"}"), 0.0);
    assert_eq!(metrics.of("blockdrop_model_ready{model=\"one\"}"), 1.0);
    assert_eq!(metrics.paths("other").images, 1.0, "counts stay");
    // Of what ran, the masks are kept.
    assert!(profiles.path().join("other/2.json").is_file() && !profiles.path().join("other/1.json").exists());

    let change = changed(&server, "other", "load").await;
    assert_eq!(change, json!({"name": "other", "loaded": ["1", "2"], "kept": [], "unloaded": []}));
    assert_eq!(server.classify("", png(1)).await["model"], "other", "it is the default again");
    let metrics = server.metrics().await;
    assert_eq!(metrics.of("blockdrop_model_ready{model=\"other\"}"), 1.0);
    metrics.paths("other").check(2);
    assert_eq!(
        metrics.paths("other").misses,
        1.0,
        "the path that was seen before was compiled before it was asked for"
    );

    changed(&server, "one", "unload").await;
    changed(&server, "other", "unload").await;
    refused(server.post("", png(1)).await, 404, "unknown_model", &["expected one of: (none is there)"]).await;
    assert_eq!(answered(server.get("/v1/models").await).await, json!({"models": []}));
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0), "a server without models ends well");
}

/// What a version has done goes on being counted in what takes its place.
#[tokio::test]
async fn statistics_outlive_a_reload() {
    let dir = models("net", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    let requests = async || {
        let found = answered(server.get("/v2/models/net/stats").await).await;
        let of = &found["model_stats"][0];
        (of["inference_count"].clone(), of["inference_stats"]["success"]["count"].clone())
    };
    server.classify("", png(1)).await;
    assert_eq!(requests().await, (json!(1), json!(1)));
    put(dir.path(), "net", 1, &Net::tiny(6));
    assert_eq!(changed(&server, "net", "load").await["loaded"], json!(["1"]));
    server.classify("", png(1)).await;
    assert_eq!(requests().await, (json!(2), json!(2)));
}

#[tokio::test]
async fn a_web_page_cannot_change_what_is_served() {
    let server = Server::start(models("one", &Net::tiny(5)).path(), &[]);
    let url = server.admin_url("/v2/repository/models/one/unload");
    let page = server.client.post(url).header("origin", "http://127.0.0.1").send().await.unwrap();
    refused(page, 403, "forbidden", &["found a request of a web page", "an operator's tool"]).await;
    server.classify("", png(1)).await;
}

#[tokio::test]
async fn a_graph_that_changed_alone_is_seen() {
    let dir = models("one", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    let graph = dir.path().join("one/1/policy.onnx");
    let whole = std::fs::read(&graph).unwrap();
    std::fs::write(&graph, &whole[..whole.len() / 2]).unwrap();
    refused(ask(&server, "one", "load").await, 400, "invalid_bundle", &["policy.onnx", "sha256"]).await;
    server.classify("", png(1)).await;
    std::fs::write(&graph, whole).unwrap();
    let change = changed(&server, "one", "load").await;
    assert_eq!(change, json!({"name": "one", "loaded": [], "kept": ["1"], "unloaded": []}));
}

#[tokio::test]
async fn a_new_model_is_loaded_by_its_name() {
    let dir = models("one", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    refused(ask(&server, "new", "load").await, 404, "unknown_model", &["model 'new'", "one of: one"]).await;
    let net = Net { segments: vec![1, 2], classes: 4, side: 8, ..Net::tiny(40) };
    put(dir.path(), "new", 3, &net);
    let absent = json!({"name": "new", "version": "3", "state": "UNAVAILABLE", "reason": "not loaded"});
    assert_eq!(index(&server, "").await, json!([absent, ready("one", "1")]));
    refused(server.post("?model=new", png(1)).await, 404, "unknown_model", &["expected one of: one"]).await;
    assert_eq!(changed(&server, "new", "load").await["loaded"], json!(["3"]));
    let reference = Reference::load(&dir.path().join("new/3"));
    let answer = server.classify("?model=new", png(1)).await;
    reference.check(&answer["results"][0], &png(1), &reference.selection("policy"), 0);
    assert_eq!(server.classify("", png(1)).await["model"], "one", "the default stays");
    assert_eq!(server.metrics().await.of("blockdrop_model_ready{model=\"new\"}"), 1.0);
}

#[tokio::test]
async fn a_model_of_more_blocks_is_counted_block_by_block() {
    let dir = models("net", &Net { segments: vec![1, 2], ..Net::tiny(5) });
    let server = Server::start(dir.path(), &[]);
    server.classify("?path=full", png(1)).await;
    put(dir.path(), "net", 1, &Net::tiny(6));
    changed(&server, "net", "load").await;
    server.classify("?path=mask:100001", png(1)).await;
    server.classify("?path=full", png(1)).await;
    let metrics = server.metrics().await;
    let blocks = |what: &str| {
        let of = |block: usize| format!("blockdrop_block_{what}_total{{block=\"{block}\",model=\"net\"}}");
        (0..6).map(|block| metrics.of(&of(block))).collect::<Vec<_>>()
    };
    assert_eq!(blocks("kept"), [3.0, 2.0, 2.0, 1.0, 1.0, 2.0]);
    assert_eq!(blocks("dropped"), [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    let at_most = |kept: usize| metrics.of(&format!("blockdrop_blocks_kept_bucket{{model=\"net\",le=\"{kept}\"}}"));
    assert_eq!((0..=6).map(at_most).collect::<Vec<_>>(), [0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0]);
    assert_eq!(metrics.of("blockdrop_blocks_kept_sum{model=\"net\"}"), 11.0);
}

#[tokio::test]
async fn what_is_being_answered_is_answered_by_the_model_it_came_for() {
    let net = heavy(4);
    let dir = models("net", &net);
    put(dir.path(), "small", 1, &Net::tiny(5));
    let server = Server::start(dir.path(), &["--workers", "1", "--max-batch", "1", "--default-model", "net"]);
    let reference = Reference::load(&dir.path().join("net/1"));
    let image = picture(2, net.side as u32, ImageFormat::Png);
    for change in ["unload", "load"] {
        let form = parts(&vec![image.clone(); 6]);
        let request = tokio::spawn(server.client.post(server.url("/v1/classify?path=full")).multipart(form).send());
        let decoded = if change == "unload" { 6.0 } else { 12.0 };
        server.until(|series| series.stage("decode") == decoded).await;
        if change == "load" {
            put(dir.path(), "net", 1, &Net { seed: 9, ..net.clone() });
        }
        changed(&server, "net", change).await;
        if change == "unload" {
            assert_eq!(server.post("", image.clone()).await.status(), 404);
        }
        let answer = answered(request.await.unwrap().unwrap()).await;
        for result in answer["results"].as_array().unwrap() {
            reference.check(result, &image, &reference.selection("full"), 0);
        }
        if change == "unload" {
            server.until(|series| series.paths("net").bytes == 0.0).await;
            changed(&server, "net", "load").await;
        }
    }
    let reference = Reference::load(&dir.path().join("net/1"));
    let answer = server.classify("?path=full", image.clone()).await;
    reference.check(&answer["results"][0], &image, &reference.selection("full"), 0);
}

/// What a model holds goes with it: memory does not grow with the number of times that it was loaded.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn memory_comes_back() {
    let net = Net { width: 64, ..Net::tiny(5) };
    let dir = models("large", &net);
    put(dir.path(), "small", 1, &Net::tiny(6));
    let server = Server::start(dir.path(), &["--warm-up", "1h", "--default-model", "small"]);
    let cycles = async |count: usize| {
        for _ in 0..count {
            changed(&server, "large", "load").await;
            server.classify("?model=large", png(1)).await;
            changed(&server, "large", "unload").await;
            server.until(|series| series.paths("large").bytes == 0.0).await;
        }
    };
    let resident = |series: &Series| series.of("process_resident_memory_bytes");
    cycles(3).await;
    let few = resident(&server.metrics().await);
    cycles(8).await;
    let weights = std::fs::read_dir(dir.path().join("large/1/blocks")).unwrap();
    let weights: u64 = weights.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    server.until(|series| resident(series) < few + 3.0 * weights as f64).await;
}

#[tokio::test]
async fn wrong_requests_change_nothing() {
    let dir = models("net", &Net::tiny(5));
    std::fs::create_dir_all(dir.path().join("none")).unwrap();
    std::fs::create_dir_all(dir.path().join(".hidden/1")).unwrap();
    let server = Server::start(dir.path(), &[]);
    for name in ["none2", "..", "%2e%2e", "net%2f1", ".hidden", "net%00", "%2e"] {
        let response = ask(&server, name, "load").await;
        // The client itself resolves the dots of the second.
        let code = if name == ".." || name == "%2e%2e" || name == "%2e" { "not_found" } else { "unknown_model" };
        refused(response, 404, code, &[]).await;
    }
    refused(ask(&server, "%ff", "load").await, 400, "invalid_parameter", &["UTF-8"]).await;
    refused(ask(&server, "none", "load").await, 400, "invalid_bundle", &["none: no version found"]).await;
    refused(ask(&server, "none", "unload").await, 404, "unknown_model", &["expected one of: net"]).await;

    const NONE: &str = "expected none; a model is what its directory in --models holds";
    let bodies: [(&str, &str, u16, &str, &[&str]); 9] = [
        ("load", "{", 400, "invalid_body", &["JSON: EOF", "expected an object"]),
        ("load", "[]", 400, "invalid_body", &["JSON: invalid type: sequence"]),
        ("load", r#"{"model":"x"}"#, 400, "invalid_body", &["JSON: model: found \"x\", expected an object"]),
        ("load", r#"{"options":{}}"#, 400, "invalid_body", &["JSON: found 'options', expected parameters"]),
        ("load", r#"{"parameters":1}"#, 400, "invalid_body", &["JSON: parameters: found 1, expected an object"]),
        ("load", r#"{"parameters":{"config":"{}"}}"#, 400, "invalid_parameter", &["parameter 'config'", NONE]),
        (
            "load",
            r#"{"parameters":{"file:1/model.onnx":""}}"#,
            400,
            "invalid_parameter",
            &["'file:1/model.onnx'", NONE],
        ),
        (
            "load",
            r#"{"parameters":{"unload_dependents":true}}"#,
            400,
            "invalid_parameter",
            &["unload_dependents", NONE],
        ),
        ("unload", r#"{"parameters":{"config":"{}"}}"#, 400, "invalid_parameter", &["parameter 'config'", NONE]),
    ];
    for (change, body, status, code, parts) in bodies {
        refused(ask_with(&server, "net", change, body).await, status, code, parts).await;
    }
    refused(ask_with(&server, "net", "load", &" ".repeat(65537)).await, 413, "body_too_large", &["65536 bytes"]).await;
    let url = server.admin_url("/v2/repository/index");
    let wrong = server.client.post(&url).body(r#"{"ready":1}"#).send().await.unwrap();
    refused(wrong, 400, "invalid_body", &["ready: found 1, expected true or false"]).await;
    let wrong = server.client.get(&url).send().await.unwrap();
    refused(wrong, 405, "method_not_allowed", &["found method GET", "expected POST"]).await;
    // Applications change nothing.
    for change in ["load", "unload"] {
        let url = server.url(&format!("/v2/repository/models/net/{change}"));
        assert_eq!(server.client.post(url).send().await.unwrap().status(), 404);
    }
    assert_eq!(server.classify("", png(1)).await["version"], "1");

    for body in ["{}", r#"{"parameters":{}}"#] {
        let change = answered(ask_with(&server, "net", "load", body).await).await;
        assert_eq!(change, json!({"name": "net", "loaded": [], "kept": ["1"], "unloaded": []}));
    }
    let body = r#"{"parameters":{"unload_dependents":false}}"#;
    assert_eq!(answered(ask_with(&server, "net", "unload", body).await).await["unloaded"], json!(["1"]));
}

#[tokio::test]
async fn changes_take_turns() {
    let dir = models("net", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    let asked = (0..24).map(|number| ask(&server, "net", ["unload", "load", "load"][number % 3]));
    for response in futures_util::future::join_all(asked).await {
        let status = response.status();
        assert!(status == 200 || status == 404, "{}", response.text().await.unwrap());
    }
    changed(&server, "net", "load").await;
    assert_eq!(server.classify("", png(1)).await["version"], "1");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_starting_server_and_a_stopping_one_change_nothing() {
    let net = heavy(4);
    let dir = models("net", &net);
    let masks: Vec<String> = (0..64u32).map(|number| format!("{:012b}", 64 * number + 1)).collect();
    let masks: Vec<(&str, f64)> = masks.iter().map(|mask| (mask.as_str(), 1.0 / 64.0)).collect();
    write_paths(&dir.path().join("net/1/paths.json"), &masks);
    let mut server = Server::launch(&mut Server::command(dir.path(), &["--warm-up", "1h"]));
    refused(ask(&server, "net", "unload").await, 503, "starting", &["the models are being loaded"]).await;
    assert_eq!(ask(&server, "net", "load").await.headers()["retry-after"], "1");
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));

    // A load at work when the server is told to stop is given up, or ends.
    let mut server = Server::start(dir.path(), &["--warm-up", "0s"]);
    put(dir.path(), "net", 2, &Net { seed: 5, ..net });
    let url = server.admin_url("/v2/repository/models/net/load");
    let load = tokio::spawn(server.client.post(url).send());
    tokio::time::sleep(Duration::from_millis(5)).await;
    server.signal(Signal::TERM);
    assert_eq!(tokio::task::block_in_place(|| server.ended()).code(), Some(0));
    drop(load.await);
}
