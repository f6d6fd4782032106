//! Several models and versions: which one answers, and what is shown of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use blockdrop_testkit::Net;
use common::reference::Reference;
use common::server::{Server, answered};
use common::{contains, models, png};
use serde_json::{Value, json};

/// The model `one` in versions 2, 9 and 10, the model `other` of another shape in version 1.
fn nets() -> [(&'static str, u64, Net); 4] {
    let other = Net { segments: vec![1, 2], classes: 4, side: 8, ..Net::tiny(40) };
    [("one", 2, Net::tiny(20)), ("one", 9, Net::tiny(21)), ("one", 10, Net::tiny(22)), ("other", 1, other)]
}

fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, version, net) in nets() {
        net.write(&dir.path().join(name).join(version.to_string())).unwrap();
    }
    dir
}

async fn refused(response: reqwest::Response, status: u16, code: &str, parts: &[&str]) {
    assert_eq!(response.status(), status);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], code);
    contains(body["error"].as_str().unwrap(), parts);
}

#[tokio::test]
async fn a_request_goes_to_the_model_and_version_it_names() {
    let dir = written();
    let server = Server::start(dir.path(), &["--default-model", "one"]);
    let image = png(1);
    let reference = |name: &str, version: u64| Reference::load(&dir.path().join(format!("{name}/{version}")));
    let cases = [
        ("", "one", 10),
        ("?model=one", "one", 10),
        ("?model=one&version=10", "one", 10),
        ("?version=2", "one", 2),
        ("?model=one&version=9", "one", 9),
        ("?model=other", "other", 1),
        ("?version=1&model=other", "other", 1),
    ];
    for (query, name, version) in cases {
        let answer = server.classify(query, image.clone()).await;
        assert_eq!((&answer["model"], &answer["version"]), (&json!(name), &json!(version.to_string())), "{query}");
        let reference = reference(name, version);
        reference.check(&answer["results"][0], &image, &reference.selection("policy"), 0);
    }

    let post = async |query: &str| server.post(query, image.clone()).await;
    let names = ["model 'two' not found", "one of: one, other"];
    refused(post("?model=two").await, 404, "unknown_model", &names).await;
    let versions = ["version '3' of model 'one' not found", "one of: 2, 9, 10"];
    refused(post("?version=3").await, 404, "unknown_model", &versions).await;
    refused(post("?model=other&version=10").await, 404, "unknown_model", &["version '10'", "one of: 1"]).await;
    refused(post("?version=newest").await, 404, "unknown_model", &["version 'newest'", "one of: 2, 9, 10"]).await;
    // A mask is as long as the model has blocks.
    refused(post("?model=other&path=mask:111111").await, 400, "invalid_parameter", &["6 bits", "expected 3"]).await;
}

#[tokio::test]
async fn without_a_default_a_request_names_its_model() {
    let server = Server::start(written().path(), &[]);
    let parts = ["model: none named and no default", "one of: one, other"];
    refused(server.post("", png(1)).await, 400, "invalid_parameter", &parts).await;
    assert_eq!(server.classify("?model=other", png(1)).await["model"], "other");
    let shown = answered(server.get("/v1/models").await).await;
    assert!(shown["models"].as_array().unwrap().iter().all(|model| model["default"] == false), "{shown}");
}

#[tokio::test]
async fn models_are_shown_as_they_are() {
    let dir = written();
    let server = Server::start(dir.path(), &["--default-model", "other"]);
    let list = answered(server.get("/v1/models").await).await;
    let [one, other] = list["models"].as_array().unwrap().as_slice() else { panic!("expected two models: {list}") };
    let names =
        |model: &Value| [&model["name"], &model["version"], &model["versions"], &model["default"]].map(Value::clone);
    assert_eq!(names(one), [json!("one"), json!("10"), json!(["2", "9", "10"]), json!(false)]);
    assert_eq!(names(other), [json!("other"), json!("1"), json!(["1"]), json!(true)]);
    assert_eq!(&answered(server.get("/v1/models/one").await).await, one);
    assert_eq!(&answered(server.get("/v1/models/one?version=10").await).await, one);
    assert_eq!(&answered(server.get("/v1/models/other").await).await, other);

    for (name, version, net) in nets() {
        let shown = answered(server.get(&format!("/v1/models/{name}?version={version}")).await).await;
        assert_eq!((&shown["name"], &shown["version"]), (&json!(name), &json!(version.to_string())));
        let manifest = std::fs::read(dir.path().join(format!("{name}/{version}/bundle.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for key in ["architecture", "description", "classes", "provenance"] {
            assert_eq!(shown[key], manifest[key], "{key}");
        }
        assert_eq!(shown["input"]["height"], manifest["input"]["height"]);
        assert_eq!(shown["threshold"], manifest["policy"]["threshold"]);
        assert_eq!(shown["provider"], "cpu");
        assert_eq!(shown["labels"].as_array().unwrap().len() as u64, net.classes);
        assert_eq!(shown["flops"]["full"], net.full_flops());
        assert_eq!(shown["flops"]["policy"], net.policy_flops());

        let blocks = shown["blocks"].as_array().unwrap();
        let segments: Vec<u64> = blocks.iter().map(|block| block["segment"].as_u64().unwrap()).collect();
        let sizes = net.segments.iter().enumerate();
        let expected: Vec<u64> = sizes.flat_map(|(segment, &size)| std::iter::repeat_n(segment as u64, size)).collect();
        assert_eq!(segments, expected);
        let flops = |value: &Value| value.as_u64().unwrap();
        let kept: u64 = blocks.iter().map(|block| flops(&block["flops_kept"])).sum();
        let ends = flops(&shown["flops"]["stem"]) + flops(&shown["flops"]["head"]);
        assert_eq!(ends + kept, net.full_flops(), "the parts are the whole");
        let side = net.side;
        assert_eq!(blocks[0]["input"], json!([4, side, side]));
        let last = net.segments.len() as u32 - 1;
        assert_eq!(blocks[blocks.len() - 1]["output"], json!([4 << last, side >> last, side >> last]));
        assert!(blocks.windows(2).all(|pair| pair[0]["output"] == pair[1]["input"]));
    }

    let names = ["model 'two' not found", "one of: one, other"];
    refused(server.get("/v1/models/two").await, 404, "unknown_model", &names).await;
    refused(server.get("/v1/models/one?version=3").await, 404, "unknown_model", &["one of: 2, 9, 10"]).await;
    let parts = ["unknown field `versoin`", "expected `version`"];
    refused(server.get("/v1/models/one?versoin=3").await, 400, "invalid_parameter", &parts).await;
    refused(server.get("/v1/models/%ff").await, 400, "invalid_parameter", &["UTF-8"]).await;
}

#[tokio::test]
async fn what_is_no_version_is_passed_over() {
    let dir = written();
    std::fs::create_dir_all(dir.path().join("one/latest")).unwrap();
    std::fs::create_dir_all(dir.path().join("two/latest")).unwrap();
    std::fs::create_dir_all(dir.path().join(".git/1")).unwrap();
    std::fs::write(dir.path().join("README"), "models").unwrap();
    let mut server = Server::start(dir.path(), &["--default-model", "one"]);
    let shown = answered(server.get("/v1/models").await).await;
    assert_eq!(shown["models"].as_array().unwrap().len(), 2, "{shown}");
    server.signal(rustix::process::Signal::TERM);
    server.ended();
    let log = server.log();
    let warned = log.iter().any(|line| line["level"] == "WARN" && line.to_string().contains("/two"));
    assert!(warned, "{log:?}");
}

#[tokio::test]
async fn statistics_are_the_sums_of_what_was_answered() {
    let dir = models("one", &Net::tiny(5));
    Net { segments: vec![1, 2], ..Net::tiny(6) }.write(&dir.path().join("other/1")).unwrap();
    let server = Server::start(dir.path(), &["--default-model", "one"]);
    let statistics = async |name: &str| answered(server.get(&format!("/v1/models/{name}/statistics")).await).await;
    let counts = |mut shown: Value| {
        let uptime = shown.as_object_mut().unwrap().remove("uptime_seconds").unwrap();
        assert!(uptime.as_f64().unwrap() > 0.0);
        shown
    };
    let nothing = |name: &str, blocks: usize| {
        json!({
            "model": name, "version": "1", "images": 0, "blocks_kept": 0, "blocks_total": blocks,
            "flops": {"policy": 0, "executed": 0, "full": 0},
        })
    };
    assert_eq!(counts(statistics("one").await), nothing("one", 6));

    let (mut kept, mut policy, mut executed, mut full) = (0, 0, 0, 0);
    let mut images = 0;
    let queries = ["", "?threshold=0", "?threshold=1", "?path=full", "?path=mask:101010", "?max_blocks=2"];
    for (seed, query) in (0..).zip(queries) {
        let answer = server.classify_all(query, &[png(seed), png(seed + 100)]).await;
        for result in answer["results"].as_array().unwrap() {
            let flops = |of: &str| result["flops"][of].as_u64().unwrap();
            images += 1;
            kept += result["path"]["blocks_kept"].as_u64().unwrap();
            policy += flops("policy");
            executed += flops("executed");
            full += flops("full");
        }
    }
    // What was refused counts for nothing.
    assert_eq!(server.post("", "no image").await.status(), 415);
    let expected = json!({
        "model": "one", "version": "1", "images": images, "blocks_kept": kept, "blocks_total": 6,
        "flops": {"policy": policy, "executed": executed, "full": full},
    });
    assert_eq!(counts(statistics("one").await), expected);
    assert_eq!(counts(statistics("other").await), nothing("other", 3), "each model counts its own");

    let refused = server.get("/v1/models/two/statistics").await;
    assert_eq!(refused.status(), 404);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "unknown_model");
    assert_eq!(server.get("/v1/models/one/statistics?version=7").await.status(), 404);
    assert_eq!(server.get("/v1/models/one/statistics?since=7").await.status(), 400);
}
