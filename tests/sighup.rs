//! SIGHUP: what is in the directory of models is what is served, each model for itself, while the server serves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use blockdrop_testkit::Net;
use common::reference::Reference;
use common::server::{Server, answered};
use common::{contains, heavy, models, png, put};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Sends SIGHUP and waits for what became of it: what was loaded, kept and unloaded (versions), and refused (models).
fn hang_up(server: &mut Server) -> [u64; 4] {
    server.signal(Signal::HUP);
    let said = server.logged(|line| line["message"] == "models reloaded");
    ["loaded", "kept", "unloaded", "models_refused"].map(|what| said[what].as_u64().unwrap())
}

async fn index(server: &Server) -> Vec<(String, String, String)> {
    let found = server.client.post(server.admin_url("/v2/repository/index")).send().await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found = answered(found).await;
    let entry = |entry: &Value| {
        let name = format!("{}/{}", text(&entry["name"]), text(&entry["version"]));
        (name, text(&entry["state"]), text(&entry["reason"]))
    };
    found.as_array().unwrap().iter().map(entry).collect()
}

/// The names and versions that are served.
async fn served(server: &Server) -> Vec<String> {
    let ready = index(server).await.into_iter().filter(|(_, state, _)| state == "READY");
    ready.map(|(name, ..)| name).collect()
}

async fn reloads(server: &Server) -> [f64; 3] {
    let series = server.metrics().await;
    let of = |result: &str| series.of(&format!("blockdrop_model_reloads_total{{result=\"{result}\"}}"));
    [of("ok"), of("refused"), series.of("blockdrop_models_refused")]
}

/// Cuts the last byte off a graph of a bundle.
fn damage(bundle: &Path) {
    let graph = bundle.join("head.onnx");
    let whole = std::fs::read(&graph).unwrap();
    std::fs::write(&graph, &whole[..whole.len() - 1]).unwrap();
}

/// Checks that the model is served as the bundle `at` has it.
async fn serves(server: &Server, model: &str, at: &Path) {
    let reference = Reference::load(at);
    let answer = server.classify(&format!("?model={model}"), png(1)).await;
    reference.check(&answer["results"][0], &png(1), &reference.selection("policy"), 0);
}

#[tokio::test]
async fn all_models_are_read_anew_and_each_for_itself() {
    let (dir, apart) = (models("one", &Net::tiny(5)), tempfile::tempdir().unwrap());
    put(dir.path(), "two", 1, &Net::tiny(6));
    put(dir.path(), "three", 1, &Net::tiny(7));
    let mut server = Server::start(dir.path(), &["--default-model", "one"]);
    assert_eq!(hang_up(&mut server), [0, 3, 0, 0], "nothing changed");
    assert_eq!(reloads(&server).await, [3.0, 0.0, 0.0]);

    // A new version, a changed one, a model that is new, one that is gone, and one that is broken.
    put(dir.path(), "one", 2, &Net::tiny(8));
    put(dir.path(), "three", 1, &Net::tiny(9));
    put(dir.path(), "new", 4, &Net::tiny(10));
    std::fs::remove_dir_all(dir.path().join("two")).unwrap();
    put(dir.path(), "broken", 1, &Net::tiny(11));
    damage(&dir.path().join("broken/1"));
    server.signal(Signal::HUP);
    let error = server.logged(|line| line["level"] == "ERROR");
    assert_eq!(error["model"], "broken", "{error}");
    contains(error["reason"].as_str().unwrap(), &["broken/1/head.onnx: sha256: found "]);
    server.logged(|line| line["message"] == "models reloaded");
    assert_eq!(served(&server).await, ["new/4", "one/1", "one/2", "three/1"]);
    for (name, version) in [("one", 2), ("three", 1), ("new", 4)] {
        serves(&server, name, &dir.path().join(format!("{name}/{version}"))).await;
    }
    let gone = server.post("?model=two", png(1)).await;
    assert_eq!(gone.status(), 404);
    let entries = index(&server).await;
    assert_eq!((&*entries[0].0, &*entries[0].1), ("broken/1", "UNAVAILABLE"));
    contains(&entries[0].2, &["head.onnx: sha256"]);
    assert_eq!(reloads(&server).await, [7.0, 1.0, 1.0]);
    let series = server.metrics().await;
    assert!(!series.values.contains_key("blockdrop_model_ready{model=\"two\"}"), "it is not one that is to be ready");
    assert_eq!(series.of("blockdrop_images_total{model=\"two\"}"), 0.0, "its counts stay");

    // What is broken keeps what was served of it, and no other from changing.
    put(apart.path(), "new", 4, &Net::tiny(10));
    damage(&dir.path().join("new/4"));
    put(dir.path(), "broken", 1, &Net::tiny(11));
    assert_eq!(hang_up(&mut server), [1, 3, 0, 1]);
    serves(&server, "new", &apart.path().join("new/4")).await;
    serves(&server, "broken", &dir.path().join("broken/1")).await;
    assert_eq!(reloads(&server).await, [10.0, 2.0, 1.0]);

    // Versions that are all gone, in a directory that is there, are no reason to unload what runs.
    std::fs::remove_dir_all(dir.path().join("new/4")).unwrap();
    assert_eq!(hang_up(&mut server)[3], 1);
    serves(&server, "new", &apart.path().join("new/4")).await;
    std::fs::remove_dir_all(dir.path().join("new")).unwrap();
    assert_eq!(hang_up(&mut server), [0, 4, 1, 0]);
    assert_eq!(reloads(&server).await[2], 0.0, "nothing that is there is refused");
}

#[tokio::test]
async fn a_directory_that_is_not_there_unloads_nothing() {
    let dir = models("net", &Net::tiny(5));
    let mut server = Server::start(dir.path(), &[]);
    let model = dir.path().join("net");
    let aside = tempfile::tempdir().unwrap();
    std::fs::rename(&model, aside.path().join("net")).unwrap();
    server.signal(Signal::HUP);
    let said = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("models not reloaded"));
    contains(server.logged(said)["error"].as_str().unwrap(), &["no model found, expected <name>/<version>"]);
    assert_eq!(server.classify("", png(1)).await["model"], "net");
    assert_eq!(reloads(&server).await, [0.0, 1.0, 1.0]);
    std::fs::rename(aside.path().join("net"), &model).unwrap();
    assert_eq!(hang_up(&mut server), [0, 1, 0, 0]);
    assert_eq!(reloads(&server).await, [1.0, 1.0, 0.0]);
}

#[tokio::test]
async fn what_was_unloaded_by_hand_stays_so() {
    let dir = models("one", &Net::tiny(5));
    put(dir.path(), "two", 1, &Net::tiny(6));
    let mut server = Server::start(dir.path(), &[]);
    let change = async |server: &Server, change: &str| {
        let url = server.admin_url(&format!("/v2/repository/models/two/{change}"));
        answered(server.client.post(url).send().await.unwrap()).await;
    };
    change(&server, "unload").await;
    put(dir.path(), "two", 2, &Net::tiny(7));
    server.signal(Signal::HUP);
    let passed = server.logged(|line| line["message"].as_str().is_some_and(|text| text.starts_with("passed over")));
    assert_eq!(passed["model"], "two");
    server.logged(|line| line["message"] == "models reloaded");
    assert_eq!(served(&server).await, ["one/1"]);
    assert_eq!(index(&server).await[1].2, "unloaded");
    change(&server, "load").await;
    assert_eq!(served(&server).await, ["one/1", "two/1", "two/2"]);
    // One that comes back after it was gone is a new one.
    change(&server, "unload").await;
    std::fs::remove_dir_all(dir.path().join("two")).unwrap();
    assert_eq!(hang_up(&mut server), [0, 1, 0, 0]);
    put(dir.path(), "two", 1, &Net::tiny(6));
    let ready = async |server: &Server| {
        let series = server.metrics().await;
        series.values.get("blockdrop_model_ready{model=\"two\"}").copied()
    };
    assert_eq!(ready(&server).await, None);
    assert_eq!(hang_up(&mut server), [1, 1, 0, 0]);
    assert_eq!(ready(&server).await, Some(1.0));
    change(&server, "unload").await;
    assert_eq!(ready(&server).await, Some(0.0));
}

/// Puts `link` in one step where it is to lead to `target`.
fn relink(target: &Path, link: &Path) {
    let next = link.with_extension("next");
    symlink(target, &next).unwrap();
    std::fs::rename(&next, link).unwrap();
}

/// As volumes are mounted and repositories are checked out: what is there changes by where a link leads.
#[tokio::test]
async fn links_are_followed_anew() {
    let store = tempfile::tempdir().unwrap();
    for (name, seed) in [("first", 5), ("second", 6)] {
        put(store.path(), name, 1, &Net::tiny(seed));
    }
    // The version itself.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("net")).unwrap();
    relink(&store.path().join("first/1"), &dir.path().join("net/1"));
    let mut server = Server::start(dir.path(), &[]);
    serves(&server, "net", &store.path().join("first/1")).await;
    relink(&store.path().join("second/1"), &dir.path().join("net/1"));
    assert_eq!(hang_up(&mut server), [1, 0, 0, 0]);
    serves(&server, "net", &store.path().join("second/1")).await;
    // The model.
    std::fs::remove_dir_all(dir.path().join("net")).unwrap();
    relink(&store.path().join("first"), &dir.path().join("net"));
    assert_eq!(hang_up(&mut server), [1, 0, 0, 0]);
    serves(&server, "net", &store.path().join("first/1")).await;
    server.stop();
    // The whole directory.
    let current = dir.path().join("current");
    relink(dir.path(), &current);
    let mut server = Server::start(&current, &["--default-model", "net"]);
    relink(store.path(), &current);
    assert_eq!(hang_up(&mut server), [2, 0, 1, 0]);
    assert_eq!(served(&server).await, ["first/1", "second/1"]);
}

#[tokio::test]
async fn the_default_model_is_the_one_that_the_directory_names() {
    let dir = models("one", &Net::tiny(5));
    put(dir.path(), "two", 1, &Net::tiny(6));
    let file = dir.path().join("default");
    std::fs::write(&file, "two\n").unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let default = async |server: &Server| server.classify("", png(1)).await["model"].as_str().unwrap().to_owned();
    assert_eq!(default(&server).await, "two");
    std::fs::write(&file, "one").unwrap();
    assert_eq!(hang_up(&mut server), [0, 2, 0, 0]);
    assert_eq!(default(&server).await, "one");

    // A name of nothing changes nothing, and neither does no name.
    std::fs::write(&file, "three\n").unwrap();
    server.signal(Signal::HUP);
    let error = server.logged(|line| line["level"] == "ERROR");
    assert_eq!(error["error"], "default model 'three' not found, expected one of: one, two", "{error}");
    assert_eq!(server.logged(|line| line["message"] == "models reloaded")["models_refused"], 1);
    assert_eq!(default(&server).await, "one");
    let asked = server.client.post(server.admin_url("/v2/repository/reload")).send().await.unwrap();
    let refused: Value = asked.json().await.unwrap();
    contains(refused["error"].as_str().unwrap(), &["default: default model 'three' not found"]);
    server.logged(|line| line["message"] == "models reloaded");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(hang_up(&mut server), [0, 2, 0, 0]);
    assert_eq!(default(&server).await, "one");
    // The only one that is left is the one that is meant.
    std::fs::remove_dir_all(dir.path().join("one")).unwrap();
    assert_eq!(hang_up(&mut server), [0, 1, 1, 0]);
    assert_eq!(default(&server).await, "two");
    server.stop();

    // Who names one at the start means it.
    put(dir.path(), "one", 1, &Net::tiny(5));
    std::fs::write(&file, "two").unwrap();
    let mut server = Server::start(dir.path(), &["--default-model", "one"]);
    assert_eq!(hang_up(&mut server), [0, 2, 0, 0]);
    assert_eq!(default(&server).await, "one");
}

#[tokio::test]
async fn the_same_is_asked_for_on_the_admin_listener() {
    let dir = models("one", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    let reload = async || server.client.post(server.admin_url("/v2/repository/reload")).send().await.unwrap();
    put(dir.path(), "two", 1, &Net::tiny(6));
    let kept = json!({"name": "one", "loaded": [], "kept": ["1"], "unloaded": []});
    let loaded = json!({"name": "two", "loaded": ["1"], "kept": [], "unloaded": []});
    assert_eq!(answered(reload().await).await, json!({"models": [kept, loaded]}));
    damage(&dir.path().join("one/1"));
    std::fs::remove_dir_all(dir.path().join("two")).unwrap();
    let refused = reload().await;
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "invalid_bundle");
    contains(refused["error"].as_str().unwrap(), &["one: ", "head.onnx: sha256", "all other models are as on disk"]);
    assert_eq!(served(&server).await, ["one/1"]);
    let url = server.admin_url("/v2/repository/reload");
    let page = server.client.post(&url).header("origin", "http://127.0.0.1").send().await.unwrap();
    assert_eq!(page.status(), 403);
    assert_eq!(server.client.post(server.url("/v2/repository/reload")).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn it_harms_nothing_at_any_moment() {
    // While models are loaded: they are read anew after that.
    let dir = models("net", &heavy(4));
    let mut server = Server::launch(&mut Server::command(dir.path(), &["--warm-up", "0s"]));
    server.signal(Signal::HUP);
    server.logged(|line| line["message"] == "ready");
    server.logged(|line| line["message"] == "models reloaded");
    // Many at once are a few.
    (0..20).for_each(|_| server.signal(Signal::HUP));
    server.logged(|line| line["message"] == "models reloaded");
    // While it stops, and while it reads.
    put(dir.path(), "net", 2, &heavy(5));
    server.signal(Signal::HUP);
    server.signal(Signal::TERM);
    server.signal(Signal::HUP);
    assert_eq!(server.ended().code(), Some(0));
    let log = server.log();
    let times = log.iter().filter(|line| line["message"] == "models and API keys are read anew").count();
    assert!((2..=22).contains(&times), "{times}");
}
