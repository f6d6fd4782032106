//! The cache of compiled paths as users and operators meet it: answers that do not depend on it, its metrics, its
//! limit, what it keeps from run to run, and a stop while it works.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use blockdrop::policy::Mask;
use blockdrop_testkit::Net;
use common::reference::Reference;
use common::server::{PathCounts, Server};
use common::{PATIENCE, contains, models, png, run, text, write_paths};
use rustix::process::Signal;
use serde_json::Value;

/// Room for every path of a made-up net.
const ROOM: &[&str] = &["--path-cache-bytes", "4000000000"];

/// Ready only when every path is compiled that is known at the start.
const WARM: &[&str] = &["--warm-up", "1day"];

/// A net of 12 blocks, which has more masks than any cache here holds.
fn deep(seed: u64) -> Net {
    Net { segments: vec![4, 4, 4], ..Net::tiny(seed) }
}

fn served(models: &Path, flags: &[&[&str]]) -> Server {
    Server::start(models, &[&["--workers", "1"], flags.concat().as_slice()].concat())
}

/// A server of the one model `net`, and what its answers have to be.
struct Served {
    server: Server,
    reference: Reference,
    images: usize,
}

impl Served {
    fn start(models: &Path, flags: &[&[&str]]) -> Self {
        let reference = Reference::load(&models.join("net/1"));
        Self { server: served(models, flags), reference, images: 0 }
    }

    async fn counts(&self) -> PathCounts {
        self.server.metrics().await.paths("net")
    }

    /// Sends `files` in one request, checks every answer, and gives what the metrics say then.
    async fn ask(&mut self, path: &str, files: &[Vec<u8>]) -> PathCounts {
        let answer = self.server.classify_all(&format!("?path={path}"), files).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), files.len());
        let selection = self.reference.selection(path);
        for ((result, file), index) in results.iter().zip(files).zip(0..) {
            self.reference.check(result, file, &selection, index);
        }
        self.images += files.len();
        let counts = self.counts().await;
        counts.check(self.images);
        counts
    }

    /// Asks for an image's path until a compiled one answers; how often that was.
    async fn until_hit(&mut self, path: &str, file: &[u8]) -> usize {
        let (until, before) = (Instant::now() + PATIENCE, self.counts().await.hits);
        let mut asked = 0;
        loop {
            asked += 1;
            if self.ask(path, &[file.to_vec()]).await.hits > before {
                return asked;
            }
            assert!(Instant::now() < until, "{path} was asked for {asked} times and is not compiled");
        }
    }
}

#[tokio::test]
async fn a_path_that_recurs_is_compiled_and_answers_the_same() {
    let models = models("net", &Net::tiny(5));
    let mut served = Served::start(models.path(), &[ROOM, WARM]);
    let at_rest = served.counts().await;
    assert!(at_rest.bytes > 0.0, "the full net is compiled at the start");
    assert_eq!((at_rest.hits, at_rest.misses), (0.0, 0.0), "which is nobody's hit or miss");
    let full = served.ask("full", &[png(0)]).await;
    assert_eq!((full.hits, full.misses), (1.0, 0.0), "it is there for the first image");

    let asked = [("policy", 3), ("mask:000000", 1), ("mask:100110", 1), ("first_k:2", 1), ("distribute_k:4", 1)];
    let mask = |path: &str, file: u64| {
        served.reference.answer(&png(file), &served.reference.selection(path), 0).mask.to_string()
    };
    let masks: HashSet<String> = asked.iter().map(|&(path, file)| mask(path, file)).collect();
    assert_eq!(masks.len(), asked.len(), "each mask is new: {masks:?}");
    for (number, (path, file)) in asked.into_iter().enumerate() {
        let before = served.counts().await;
        let first = served.ask(path, &[png(file)]).await;
        assert_eq!((first.hits, first.misses), (before.hits, before.misses + 1.0), "{path} was not known");
        assert!(served.until_hit(path, &png(file)).await >= 2, "the second image of {path} runs while it is compiled");
        let after = served.counts().await;
        assert!(after.bytes > before.bytes, "{path} takes memory: {after:?}");
        // Those before it are still there.
        let hits = asked[..=number].len() as f64;
        for (path, file) in &asked[..=number] {
            served.ask(path, &[png(*file)]).await;
        }
        let again = served.counts().await;
        assert_eq!((again.hits, again.misses), (after.hits + hits, after.misses));
    }
    assert_eq!(served.counts().await.evictions, 0.0);
    served.server.stop();
}

#[tokio::test]
async fn without_memory_for_paths_everything_runs_block_by_block() {
    let models = models("net", &Net::tiny(5));
    // None at all, and less than any path takes.
    for limit in ["0", "1000"] {
        let mut served = Served::start(models.path(), &[WARM, &["--path-cache-bytes", limit]]);
        let files: Vec<Vec<u8>> = (0..6).map(png).collect();
        for _ in 0..4 {
            for path in ["policy", "full", "mask:100110", "random_k:3:1"] {
                served.ask(path, &files).await;
            }
        }
        let counts = served.counts().await;
        assert_eq!((counts.hits, counts.misses + counts.mixed), (0.0, counts.batches), "a limit of {limit}");
        assert_eq!((counts.bytes, counts.evictions), (0.0, 0.0), "a limit of {limit}");
        served.server.stop();
    }
}

#[tokio::test]
async fn paths_compete_within_the_limit() {
    let models = models("net", &deep(5));
    let of_full = Served::start(models.path(), &[ROOM, WARM]).counts().await.bytes;
    // For the full net, which stays, and two or three others.
    let limit = 3.0 * of_full;
    let mut served = Served::start(models.path(), &[WARM, &["--path-cache-bytes", &limit.to_string()]]);
    assert_eq!(served.counts().await.bytes, of_full);
    let files: Vec<Vec<u8>> = (0..6).map(png).collect();
    let mut largest = 0.0f64;
    for seed in 0..60 {
        // Six masks a request, each of them twice in all.
        let counts = served.ask(&format!("random_k:6:{}", seed % 30), &files).await;
        assert!(counts.bytes <= limit, "{counts:?}, at most {limit}");
        largest = largest.max(counts.bytes);
    }
    for _ in 0..2 {
        for mask in ["100000000000", "111111000000", "000000111111", "101010101010", "110110110110", "011111111111"] {
            served.until_hit(&format!("mask:{mask}"), &files[0]).await;
            let counts = served.counts().await;
            assert!(counts.bytes <= limit, "{counts:?}, at most {limit}");
            largest = largest.max(counts.bytes);
        }
    }
    let before = served.counts().await;
    assert!(largest > of_full, "there was room for more than the full net");
    assert!(before.evictions > 0.0, "{before:?}");
    let after = served.ask("full", &files[..1]).await;
    assert_eq!((after.hits, after.misses), (before.hits + 1.0, before.misses), "the full net stays");
    served.server.stop();
}

#[tokio::test]
async fn a_path_takes_batches_of_every_size() {
    // Of one block: the shortest paths that there are.
    let models = models("net", &Net { segments: vec![1], ..Net::tiny(6) });
    let mut served = Served::start(models.path(), &[ROOM, WARM, &["--max-batch", "5"]]);
    let files: Vec<Vec<u8>> = (0..12).map(png).collect();
    for path in ["mask:0", "mask:1", "policy", "random_k:1"] {
        for size in (1..=12).chain((1..=12).rev()) {
            served.ask(path, &files[..size]).await;
        }
    }
    for path in ["mask:0", "mask:1"] {
        served.until_hit(path, &files[0]).await;
    }
    let (before, images) = (served.counts().await, vec![png(1); 12]);
    for path in ["mask:0", "mask:1"] {
        served.ask(path, &images).await;
    }
    let after = served.counts().await;
    assert_eq!((after.misses, after.evictions), (before.misses, 0.0), "both paths are compiled");
    assert!(after.batches >= before.batches + 6.0, "12 images are at least three groups of five at most");
    served.server.stop();
}

/// Models of two versions and of one block share the cache under many clients.
#[tokio::test]
async fn several_models_share_the_cache_under_load() {
    let dir = models("one", &deep(5));
    deep(6).write(&dir.path().join("one/2")).unwrap();
    Net { segments: vec![1], ..Net::tiny(7) }.write(&dir.path().join("short/1")).unwrap();
    let references: BTreeMap<(&str, u64), Reference> = [("one", 1), ("one", 2), ("short", 1)]
        .map(|(name, version)| ((name, version), Reference::load(&dir.path().join(format!("{name}/{version}")))))
        .into();
    let start = |limit: f64| {
        let limit = limit.to_string();
        Server::start(dir.path(), &["--path-cache-bytes", &limit, "--warm-up", "1day", "--max-batch", "4"])
    };
    let bytes = async |server: &Server| {
        let metrics = server.metrics().await;
        metrics.paths("one").bytes + metrics.paths("short").bytes
    };
    let of_full = bytes(&start(4e9)).await;
    // Room for the full nets, and for few of the masks that are asked for.
    let limit = 2.0 * of_full;
    let server = start(limit);
    let files: Vec<Vec<u8>> = (0..8).map(png).collect();
    let client = async |number: usize| {
        let mut sent: BTreeMap<&str, usize> = BTreeMap::new();
        for turn in 0..40 {
            let (&(name, version), reference) = references.iter().nth((number + turn) % 3).unwrap();
            let paths: &[&str] = if name == "short" {
                &["policy", "full", "mask:0", "random_k:1:3"]
            } else {
                &["policy", "full", "mask:100110011001", "random_k:6:1", "first_k:5", "random_k:3:2"]
            };
            let path = paths[turn * 7 % paths.len()];
            let files = &files[..1 + (number + turn) % files.len()];
            let query = format!("?model={name}&version={version}&path={path}");
            let answer = server.classify_all(&query, files).await;
            let selection = reference.selection(path);
            for ((result, file), index) in answer["results"].as_array().unwrap().iter().zip(files).zip(0..) {
                reference.check(result, file, &selection, index);
            }
            *sent.entry(name).or_default() += files.len();
        }
        sent
    };
    let mut sent: BTreeMap<&str, usize> = BTreeMap::new();
    for of_client in futures_util::future::join_all((0..8).map(client)).await {
        of_client.into_iter().for_each(|(name, images)| *sent.entry(name).or_default() += images);
    }
    let metrics = server.metrics().await;
    for (name, images) in sent {
        let counts = metrics.paths(name);
        counts.check(images);
        assert!(counts.hits > 0.0 && counts.misses > 0.0, "{name}: {counts:?}");
    }
    // The gauges of two models are not read at the same moment.
    server.until(|metrics| metrics.paths("one").bytes + metrics.paths("short").bytes <= limit).await;
    server.stop();
}

fn profile(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
}

/// All files below `dir`.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(text(&path).to_owned(), fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test]
async fn masks_seen_are_kept_from_run_to_run() {
    let dir = models("one", &Net::tiny(5));
    Net::tiny(6).write(&dir.path().join("one/2")).unwrap();
    Net { segments: vec![1, 2], ..Net::tiny(7) }.write(&dir.path().join("other/1")).unwrap();
    let kept = tempfile::tempdir().unwrap();
    let profiles = kept.path().join("deep/down");
    let flags = [ROOM, WARM, &["--default-model", "one", "--profile-dir", text(&profiles)]];

    let server = served(dir.path(), &flags);
    let images: Vec<Vec<u8>> = (0..12).map(png).collect();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (mask, times) in [("100110", 4), ("000000", 2), ("111111", 1)] {
        for _ in 0..times {
            server.classify(&format!("?version=1&path=mask:{mask}"), images[0].clone()).await;
        }
        *seen.entry(mask.to_owned()).or_default() += times;
    }
    let one = Reference::load(&dir.path().join("one/1"));
    server.classify_all("?version=1", &images).await;
    for image in &images {
        *seen.entry(one.learned(image).to_string()).or_default() += 1;
    }
    server.classify("?model=other&path=mask:101", images[0].clone()).await;
    server.stop();

    let found = profile(&profiles, "one/1.json");
    assert_eq!(found["schema"], 1);
    let paths = found["paths"].as_array().unwrap();
    let shares: Vec<f64> = paths.iter().map(|path| path["share"].as_f64().unwrap()).collect();
    assert!(shares.is_sorted_by(|a, b| a >= b), "the most frequent first: {shares:?}");
    let total: usize = seen.values().sum();
    let found = paths
        .iter()
        .zip(&shares)
        .map(|(path, share)| (path["mask"].as_str().unwrap().to_owned(), (share * total as f64).round() as usize));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), seen, "the images of each mask");
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
    let other = serde_json::json!({"schema": 1, "paths": [{"mask": "101", "share": 1.0}]});
    assert_eq!(profile(&profiles, "other/1.json"), other);
    assert_eq!(files(kept.path()).len(), 2, "none for the version that saw no image, and nothing else");

    // A server that sees nothing changes nothing.
    let before = files(kept.path());
    served(dir.path(), &flags).stop();
    assert_eq!(files(kept.path()), before);

    // The next one has them before the first request.
    let server = served(dir.path(), &flags);
    for mask in seen.keys() {
        server.classify(&format!("?version=1&path=mask:{mask}"), images[0].clone()).await;
    }
    server.classify("?model=other&path=mask:101", images[0].clone()).await;
    let metrics = server.metrics().await;
    let counts = [metrics.paths("one"), metrics.paths("other")].map(|counts| (counts.hits, counts.misses));
    assert_eq!(counts, [(seen.len() as f64, 0.0), (1.0, 0.0)]);
    // Of the version that has no file only the full net is there.
    server.classify("?version=2&path=full", images[0].clone()).await;
    server.classify("?version=2&path=mask:100110", images[0].clone()).await;
    let counts = server.metrics().await.paths("one");
    assert_eq!((counts.hits, counts.misses), (seen.len() as f64 + 1.0, 1.0));
    server.stop();
}

#[tokio::test]
async fn a_profile_that_does_not_fit_is_passed_over() {
    let bad: [(&str, &[u8], &str); 9] = [
        ("cut", b"{\"schema\": 1, \"paths\": [{\"mask\": \"100", "EOF"),
        ("empty", b"", "EOF"),
        ("list", b"[]", "expected"),
        ("bytes", b"\xff\xfe\x00", "expected"),
        ("width", br#"{"schema": 1, "paths": [{"mask": "10011", "share": 1}]}"#, "found 5 bits, expected 6"),
        ("bits", br#"{"schema": 1, "paths": [{"mask": "10011x", "share": 1}]}"#, "only 0 and 1"),
        ("share", br#"{"schema": 1, "paths": [{"mask": "100110", "share": -1}]}"#, "expected a number from 0 to 1"),
        ("schema", br#"{"schema": 9, "paths": []}"#, "found 9, expected 1"),
        ("large", &[b' '; (1 << 20) + 1], "found 1048577 bytes, expected at most 1048576"),
    ];
    let (dir, profiles) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names: Vec<&str> = bad.iter().map(|(name, ..)| *name).chain(["directory"]).collect();
    for name in &names {
        Net::tiny(5).write(&dir.path().join(name).join("1")).unwrap();
        // What the bundle says counts then.
        write_paths(&dir.path().join(name).join("1/paths.json"), &[("100110", 1.0)]);
    }
    let file = |name: &str| profiles.path().join(name).join("1.json");
    for (name, bytes, _) in bad {
        fs::create_dir_all(file(name).parent().unwrap()).unwrap();
        fs::write(file(name), bytes).unwrap();
    }
    fs::create_dir_all(file("directory")).unwrap();
    let mut server = served(dir.path(), &[ROOM, WARM, &["--profile-dir", text(profiles.path())]]);
    let reference = Reference::load(&dir.path().join("cut/1"));
    for name in &names {
        let answer = server.classify(&format!("?model={name}&path=mask:100110"), png(1)).await;
        reference.check(&answer["results"][0], &png(1), &reference.selection("mask:100110"), 0);
        let counts = server.metrics().await.paths(name);
        counts.check(1);
        assert_eq!(counts.hits, 1.0, "{name} is warm from its bundle");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let log = server.log();
    let warnings: Vec<&Value> = log.iter().filter(|line| line["level"] == "WARN").collect();
    let reasons = bad.iter().map(|(name, _, reason)| (*name, *reason)).chain([("directory", "directory")]);
    for (name, reason) in reasons {
        let of_file = |line: &&&Value| line["error"].as_str().is_some_and(|said| said.contains(text(&file(name))));
        let said = warnings.iter().find(of_file).unwrap_or_else(|| panic!("no warning of {name}: {warnings:?}"));
        contains(said["error"].as_str().unwrap(), &[reason]);
    }
    // One each, and that the directory is no place for the new profile.
    assert_eq!(warnings.len(), names.len() + 1, "{warnings:?}");
    contains(warnings[names.len()]["error"].as_str().unwrap(), &[text(&file("directory"))]);
    for (name, ..) in bad {
        assert_eq!(profile(profiles.path(), &format!("{name}/1.json"))["paths"][0]["mask"], "100110", "{name}");
    }
    assert_eq!(files(profiles.path()).len(), bad.len(), "nothing is left beside them");
}

#[test]
fn a_directory_for_profiles_that_cannot_be_written_to_is_said_at_the_start() {
    let models = models("net", &Net::tiny(5));
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "no directory").unwrap();
    for dir in [file.clone(), file.join("below"), "/proc/self".into()] {
        let ended = run([
            "serve",
            "--models",
            text(models.path()),
            "--http-addr=127.0.0.1:0",
            "--grpc-addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
        ]
        .into_iter()
        .chain(["--profile-dir", text(&dir)]));
        ended.failed(1, &["--profile-dir: ", text(&dir), "cannot be written to"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "no directory");
}

#[tokio::test]
async fn a_profile_that_cannot_be_written_in_the_end_is_no_failure() {
    let models = models("net", &Net::tiny(5));
    let dir = tempfile::tempdir().unwrap();
    let mut server = served(models.path(), &[&["--profile-dir", text(dir.path())]]);
    server.classify("", png(1)).await;
    fs::write(dir.path().join("net"), "no directory").unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let log = server.log();
    let said: Vec<&Value> = log.iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(said.len(), 1, "{said:?}");
    contains(said[0]["error"].as_str().unwrap(), &[text(&dir.path().join("net/1.json"))]);
    assert!(log.iter().any(|line| line["message"] == "stopped"));
}

#[tokio::test]
async fn a_bundle_says_which_paths_are_frequent() {
    let models = models("net", &deep(5));
    let file = models.path().join("net/1/paths.json");
    // More than are taken, in an order that says nothing.
    let mask = |number: usize| Mask::from_fn(12, |block| (number + 1) >> block & 1 == 1).to_string();
    let share = |number: usize| (100 - number) as f64 / 10_000.0;
    let masks: Vec<String> = (0..70).map(|at| mask(at * 37 % 70)).collect();
    let paths: Vec<(&str, f64)> = masks.iter().enumerate().map(|(at, mask)| (&**mask, share(at * 37 % 70))).collect();
    write_paths(&file, &paths);
    let mut served = Served::start(models.path(), &[ROOM, WARM]);
    for (asked, number) in [0, 17, 63].into_iter().enumerate() {
        let counts = served.ask(&format!("mask:{}", mask(number)), &[png(1)]).await;
        assert_eq!((counts.hits, counts.misses), (asked as f64 + 1.0, 0.0), "number {number} is compiled");
    }
    let counts = served.ask(&format!("mask:{}", mask(64)), &[png(1)]).await;
    assert_eq!((counts.hits, counts.misses), (3.0, 1.0), "number 64 is beyond the most frequent ones");
    served.server.stop();

    // None at all is nothing wrong.
    write_paths(&file, &[]);
    let mut served = Served::start(models.path(), &[ROOM, WARM]);
    let counts = served.ask(&format!("mask:{}", mask(0)), &[png(1)]).await;
    assert_eq!((counts.hits, counts.misses), (0.0, 1.0));
    let counts = served.ask("full", &[png(1)]).await;
    assert_eq!((counts.hits, counts.misses), (1.0, 1.0), "the full net is compiled all the same");
    served.server.stop();
}

#[test]
fn a_bundle_with_wrong_frequent_paths_is_refused() {
    let models = models("net", &Net::tiny(5));
    let bundle = models.path().join("net/1");
    let file = bundle.join("paths.json");
    let entry = |text: &str| format!(r#"{{"schema": 1, "paths": [{{"mask": "100110", "share": 0.5}}, {text}]}}"#);
    let cases: [(String, &[&str]); 9] = [
        (String::new(), &["EOF"]),
        ("paths".into(), &["expected value at line 1 column 1"]),
        (r#"{"schema": 1}"#.into(), &["missing field `paths`"]),
        (r#"{"schema": 2, "paths": []}"#.into(), &["schema: found 2, expected 1"]),
        (entry(r#"{"mask": "1001", "share": 0.1}"#), &["paths[1]: mask: found 4 bits, expected 6"]),
        (
            entry(r#"{"mask": "10011 ", "share": 0.1}"#),
            &["paths[1]: mask: ", "found ' ' in a mask, expected only 0 and 1"],
        ),
        (
            entry(r#"{"mask": "100110", "share": 0.1}"#),
            &["paths[1]: mask: found 100110 again, expected each mask once"],
        ),
        (
            entry(r#"{"mask": "100111", "share": 1.01}"#),
            &["paths[1]: share: found 1.01, expected a number from 0 to 1"],
        ),
        (entry(r#"{"mask": 100111, "share": 0.1}"#), &["invalid type: integer `100111`, expected a string"]),
    ];
    let addresses =
        ["--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--log-format=json"];
    for (content, parts) in cases {
        fs::write(&file, &content).unwrap();
        let parts = [&[text(&file)], parts].concat();
        run(["inspect", text(&bundle)]).failed(1, &parts);
        let found = run(["serve", "--models", text(models.path())].into_iter().chain(addresses));
        assert_eq!(found.code, Some(1), "{found:?}");
        let last = found.err.lines().last().unwrap();
        assert!(last.starts_with("error: "), "{found:?}");
        contains(last, &parts);
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    run(["inspect", text(&bundle)]).failed(1, &[text(&file)]);
}

/// Asks for random masks, each of them more than once, until the server turns it away.
async fn press(client: reqwest::Client, url: String, number: u64) {
    for turn in 0.. {
        let url = format!("{url}?path=random_k:9:{}", number * 1000 + turn / 2);
        let form = common::server::parts(&[png(1), png(2)]);
        match client.post(url).multipart(form).send().await {
            Err(_) => return,
            Ok(answer) => match answer.status().as_u16() {
                200 => assert_eq!(answer.json::<Value>().await.unwrap()["results"].as_array().unwrap().len(), 2),
                503 => return,
                status => panic!("{status}"),
            },
        }
    }
}

fn clean(server: &mut Server, what: &str) {
    let status = server.ended();
    assert_eq!(status.code(), Some(0), "{what}: {status:?}");
    let log = server.log();
    let wrong = |line: &&Value| line["level"] == "ERROR" || line["message"] == "panic" || line.is_string();
    assert_eq!(log.iter().find(wrong), None, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_paths_are_compiled_is_clean() {
    let models = models("net", &Net { segments: vec![6, 6, 6], ..Net::tiny(5) });
    let profiles = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let flags = [ROOM[0], ROOM[1], "--profile-dir", text(profiles.path())];
        let mut server = Server::start(models.path(), if round % 2 == 0 { &flags } else { ROOM });
        let at_rest = server.metrics().await.paths("net").bytes;
        let clients: Vec<_> = (0..4)
            .map(|number| tokio::spawn(press(server.client.clone(), server.url("/v1/classify"), 10 * round + number)))
            .collect();
        let more = (round / 2) as f64 * 1e6;
        server.until(|metrics| metrics.paths("net").bytes > at_rest + more).await;
        server.signal(if round % 3 == 0 { Signal::INT } else { Signal::TERM });
        for client in clients {
            client.await.unwrap();
        }
        tokio::task::block_in_place(|| clean(&mut server, &format!("round {round}")));
    }
    assert_eq!(files(profiles.path()).len(), 1);
    assert!(profile(profiles.path(), "net/1.json")["paths"].as_array().unwrap().len() > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_paths_are_warmed_up_is_clean() {
    let net = Net { segments: vec![12, 12, 12], ..Net::tiny(5) };
    let models = models("net", &net);
    let masks: Vec<String> = (0..64u64)
        .map(|number| Mask::from_fn(36, |block| ((number + 1) * 0x9e37_79b9_7f4a) >> block & 1 == 1).to_string())
        .collect();
    let paths: Vec<(&str, f64)> = masks.iter().map(|mask| (&**mask, 1.0 / 64.0)).collect();
    write_paths(&models.path().join("net/1/paths.json"), &paths);
    for round in 0..8 {
        // Before it is ready, and just after.
        let warm_up = if round % 2 == 0 { "1day" } else { "0s" };
        let mut server = Server::launch(&mut Server::command(models.path(), &["--warm-up", warm_up]));
        let series = "blockdrop_path_cache_bytes{model=\"net\"}";
        let more = f64::from(round / 2) * 1e6;
        server.until(|metrics| metrics.values.get(series).is_some_and(|bytes| *bytes > more)).await;
        server.signal(if round % 3 == 0 { Signal::INT } else { Signal::TERM });
        tokio::task::block_in_place(|| clean(&mut server, &format!("round {round}")));
    }
    // Nobody waits for what is left to be compiled.
    let server = Server::start(models.path(), &["--warm-up", "0s"]);
    server.classify("", png(1)).await;
    let until = Instant::now() + PATIENCE;
    let mut before = 0.0;
    loop {
        let bytes = server.metrics().await.paths("net").bytes;
        assert!(bytes >= before, "it only grows");
        before = bytes;
        if server.classify(&format!("?path=mask:{}", masks[63]), png(1)).await["results"].is_array()
            && server.metrics().await.paths("net").hits >= 1.0
        {
            break;
        }
        assert!(Instant::now() < until, "the last path is not compiled");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.stop();
}

#[tokio::test]
async fn warm_up_keeps_the_most_frequent_where_not_all_fit() {
    let models = models("net", &deep(5));
    let full = Server::start(models.path(), &["--warm-up", "1day"]).metrics().await.paths("net").bytes;
    let mask = |number: usize| Mask::from_fn(12, |block| (number + 1) >> block & 1 == 1).to_string();
    let masks: Vec<String> = (0..30).map(mask).collect();
    let paths: Vec<(&str, f64)> = masks.iter().enumerate().map(|(at, mask)| (&**mask, 1.0 / (at + 2) as f64)).collect();
    write_paths(&models.path().join("net/1/paths.json"), &paths);
    let limit = (3.0 * full).to_string();
    let server = Server::start(models.path(), &["--warm-up", "1day", "--path-cache-bytes", &limit]);
    let before = server.metrics().await.paths("net");
    server.classify(&format!("?path=mask:{}", masks[0]), png(1)).await;
    let after = server.metrics().await.paths("net");
    assert_eq!((before.evictions, after.hits), (0.0, 1.0), "{before:?} {after:?}");
}

#[tokio::test]
async fn a_short_run_does_not_forget_what_a_long_one_saw() {
    let models = models("net", &Net::tiny(5));
    let dir = tempfile::tempdir().unwrap();
    let start = || Server::start(models.path(), &["--profile-dir", text(dir.path())]);
    let server = start();
    for _ in 0..50 {
        server.classify("?path=mask:100110", png(1)).await;
    }
    server.stop();
    let server = start();
    server.classify("?path=mask:000000", png(1)).await;
    server.stop();
    let kept = fs::read_to_string(dir.path().join("net/1.json")).unwrap();
    assert!(kept.contains("100110"), "{kept}");
}

#[test]
fn paths_json_that_is_no_regular_file_is_refused() {
    let models = models("net", &Net::tiny(5));
    let file = models.path().join("net/1/paths.json");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    run(["inspect", text(file.parent().unwrap())]).failed(1, &[text(&file), "expected a regular file"]);
}

#[test]
fn paths_json_that_cannot_be_read_is_refused() {
    let models = models("net", &Net::tiny(5));
    let file = models.path().join("net/1/paths.json");
    std::os::unix::fs::symlink("paths.json", &file).unwrap();
    run(["inspect", text(file.parent().unwrap())]).failed(1, &[text(&file)]);
}
