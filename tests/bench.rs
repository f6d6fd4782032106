//! `blockdrop bench`: what it runs and reports; never how fast that was.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use blockdrop::policy::Mask;
use blockdrop_testkit::{Net, encoded};
use common::reference::Reference;
use common::{Ended, FORMATS, blockdrop, contains, models, picture, png, run, text, write_paths};
use serde_json::Value;

/// What runs, as it is named in a report, in its order there.
const WAYS: [&str; 8] = [
    "full net, one graph",
    "policy network",
    "kept blocks, one by one",
    "kept blocks, one graph",
    "policy and kept blocks",
    "as they come, mask by mask",
    "as they come, masks mixed",
    "as they come, as planned",
];

/// A model, and a folder of five images of all types and other sizes than the model's, among other files.
struct Given {
    dir: tempfile::TempDir,
    reference: Reference,
}

impl Given {
    fn new() -> Self {
        let dir = models("net", &Net::tiny(5));
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        for (number, format) in (0..).zip(FORMATS) {
            let file = images.join(format!("{number}.{}", format.extensions_str()[0]));
            fs::write(file, picture(number, 20 + number as u32, format)).unwrap();
        }
        fs::write(images.join("README.txt"), "no image").unwrap();
        let reference = Reference::load(&dir.path().join("net/1"));
        Self { dir, reference }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("net/1")
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn bench(&self, images: &Path, flags: &[&str]) -> Ended {
        let bundle = self.bundle();
        let args = ["bench", text(&bundle), "--images", text(images), "--seconds", "0.1"];
        run(args.into_iter().chain(flags.iter().copied()))
    }

    /// The masks that the policy decides for the images, in the order of their names.
    fn learned(&self) -> Vec<Mask> {
        let entries = fs::read_dir(self.images()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = entries.filter(|file| !file.ends_with("README.txt")).collect();
        files.sort();
        files.iter().map(|file| self.reference.learned(&fs::read(file).unwrap())).collect()
    }

    /// Checks a report of images with `masks` for these numbers of workers and batch sizes.
    fn check(&self, report: &Value, masks: &[Mask], workers: &[u64], batches: &[u64]) {
        assert_eq!(report["bundle"], "net version 1");
        assert_eq!(report["provider"], "cpu");
        assert!(report["onnxruntime"].as_str().unwrap().starts_with("1."), "{report}");
        assert_eq!(report["images"], masks.len());
        assert_eq!(report["blocks_total"], 6);
        let blocks = masks.iter().map(|mask| mask.kept() as f64).sum::<f64>() / masks.len() as f64;
        close(&report["blocks_mean"], blocks);
        assert_eq!(report["distinct_masks"], masks.iter().collect::<HashSet<_>>().len());
        assert!(report["path_bytes"].as_u64().unwrap() > 0, "{report}");

        let costs = self.reference.costs();
        let (full, policy) = (costs.full() as f64, costs.policy as f64);
        let path = masks.iter().map(|mask| costs.executed(mask) as f64).sum::<f64>() / masks.len() as f64;
        let flops = [full, policy, path, path, policy + path, path, path, path].map(|flops| flops / full);
        let arms = report["measured"].as_array().unwrap();
        let cases = workers.iter().flat_map(|workers| batches.iter().map(move |batch| (*workers, *batch)));
        // Images that run alone have no masks to mix.
        let ways = |(_, batch): (u64, u64)| if batch == 1 { 5 } else { WAYS.len() };
        let expected = cases.flat_map(|case| WAYS.into_iter().zip(flops).take(ways(case)).map(move |way| (case, way)));
        let expected: Vec<_> = expected.collect();
        assert_eq!(arms.len(), expected.len());
        for (arm, ((workers, batch), (what, flops))) in arms.iter().zip(expected) {
            assert_eq!((&arm["workers"], &arm["batch"], &arm["what"]), (&workers.into(), &batch.into(), &what.into()));
            assert!(arm["rounds"].as_u64().unwrap() >= 5, "{arm}");
            close(&arm["flops_ratio"], flops);
            let time = arm["ms_per_image"].as_f64().unwrap();
            assert!(time > 0.0, "{arm}");
            close(&arm["images_per_second"], 1e3 * workers as f64 / time);
            let [median, low, high] = ["median", "low", "high"].map(|name| arm["time_ratio"][name].as_f64().unwrap());
            assert!(0.0 < low && low <= median && median <= high, "{arm}");
            if what == WAYS[0] {
                assert_eq!((median, low, high), (1.0, 1.0, 1.0), "it is compared with itself: {arm}");
                close(&arm["flops_ratio"], 1.0);
            }
            let compiled = arm["compiled"].as_f64();
            match what {
                "policy network" | "kept blocks, one by one" | "as they come, masks mixed" => {
                    assert_eq!(arm["compiled"], Value::Null, "{arm}");
                }
                // Where all run mixed nothing runs compiled.
                "as they come, as planned" if compiled.is_none() => {}
                _ if workers == 1 => assert_eq!(compiled, Some(1.0), "there is memory for every path: {arm}"),
                // Two workers may want the one session of a path at the same moment.
                _ => assert!(compiled.is_some_and(|share| share > 0.0 && share <= 1.0), "{arm}"),
            }
        }
    }
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found}, expected {expected}");
}

#[test]
fn a_report_says_what_ran() {
    let given = Given::new();
    let learned = given.learned();
    assert!(learned.iter().collect::<HashSet<_>>().len() > 1, "images of several masks");
    // More images than files, fewer, and one; batches that do not divide them; more workers than batches.
    for (count, workers, batches) in [(12, 1, &[1, 5][..]), (3, 2, &[2]), (1, 3, &[8, 1])] {
        let masks: Vec<Mask> = learned.iter().cycle().take(count).cloned().collect();
        let batch: Vec<String> = batches.iter().map(u64::to_string).collect();
        let flags =
            ["--json", "--count", &count.to_string(), "--workers", &workers.to_string(), "--batch", &batch.join(",")];
        let found = given.bench(&given.images(), &flags);
        assert_eq!(found.err, "", "no bar where nobody watches");
        let both = [1, workers];
        given.check(&found.json(), &masks, if workers == 1 { &both[..1] } else { &both }, batches);
    }
}

#[test]
fn a_table_says_the_same() {
    let given = Given::new();
    let masks = given.learned();
    let table = given.bench(&given.images(), &["--count", "5", "--workers", "1", "--batch", "2"]);
    assert_eq!((table.code, table.err.as_str()), (Some(0), ""), "{table:?}");
    let blocks = masks.iter().map(|mask| mask.kept() as f64).sum::<f64>() / 5.0;
    let distinct = masks.iter().collect::<HashSet<_>>().len();
    let first = table.out.lines().next().unwrap();
    contains(first, &["net version 1 on cpu, ONNX Runtime 1.", "5 images", &format!("{blocks:.2} of 6 blocks")]);
    contains(first, &[&format!("{distinct} masks"), "compiled paths", " MB"]);
    let heads =
        ["workers", "batch", "what runs", "ms per image", "images/s", "time/full", "95 % interval", "FLOPs/full"];
    contains(table.out.lines().nth(1).unwrap(), &heads);
    let costs = given.reference.costs();
    let path = masks.iter().map(|mask| costs.executed(mask) as f64).sum::<f64>() / 5.0;
    let row = |what: &str| table.out.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{table:?}"));
    for what in WAYS {
        row(what);
    }
    contains(row(WAYS[0]), &[" 1.000", "1.000 to 1.000", "100 %"]);
    contains(row(WAYS[3]), &[&format!(" {:.3} ", path / costs.full() as f64), "100 %"]);
    assert!(!row(WAYS[2]).contains('%'), "nothing is compiled for it");
}

#[test]
fn requests_are_timed_where_asked_for() {
    let given = Given::new();
    let flags = ["--http", "--count", "5", "--workers", "1", "--batch", "1"];
    let report = given.bench(&given.images(), &[&flags[..], &["--json"]].concat()).json();
    given.check(&report, &given.learned(), &[1], &[1]);
    let http = &report["http"];
    assert!(http["requests"].as_u64().unwrap() > 0, "{http}");
    let stages = ["request", "engine", "added", "decode", "preprocess", "queue"];
    for name in stages {
        let [median, low, high] = ["median", "low", "high"].map(|of| http[name][of].as_f64().unwrap());
        assert!(0.0 <= low && low <= median && median <= high, "{name}: {http}");
    }
    let median = |name: &str| http[name]["median"].as_f64().unwrap();
    assert!(median("engine") < median("request"), "{http}");

    let table = given.bench(&given.images(), &flags);
    assert_eq!((table.code, table.err.as_str()), (Some(0), ""), "{table:?}");
    contains(
        &table.out,
        &["HTTP, one client, ", "request, as the client sees it", "policy and path", "added by the server"],
    );
    contains(&table.out, &["decode", "preprocess", "thread to thread"]);
    let without = given.bench(&given.images(), &[&flags[1..], &["--json"]].concat()).json();
    assert_eq!(without.get("http"), None);
}

#[test]
fn masks_are_drawn_by_the_shares_of_the_bundle() {
    let given = Given::new();
    let file = given.bundle().join("paths.json");
    let bench =
        || given.bench(&given.images(), &["--masks=frequent", "--count=64", "--workers=1", "--batch=8", "--json"]);

    let none = ["net/1", "no frequent masks (paths.json)", "--masks frequent"];
    bench().failed(1, &none);
    write_paths(&file, &[]);
    bench().failed(1, &none);
    write_paths(&file, &[("100110", 0.0)]);
    bench().failed(1, &none);

    write_paths(&file, &[("100110", 0.3), ("111111", 0.0)]);
    let mask: Mask = "100110".parse().unwrap();
    given.check(&bench().json(), &vec![mask; 64], &[1], &[8]);

    // Drawn by their shares, and the same ones each time.
    write_paths(&file, &[("000000", 0.4), ("111111", 0.4)]);
    let (one, two) = (bench().json(), bench().json());
    assert_eq!(one["distinct_masks"], 2);
    let kept = one["blocks_mean"].as_f64().unwrap() / 6.0;
    assert!((0.25..0.75).contains(&kept), "about half of 64: {kept}");
    for name in ["blocks_mean", "distinct_masks"] {
        assert_eq!(one[name], two[name]);
    }
    write_paths(&file, &[("000000", 0.4), ("11", 0.4)]);
    bench().failed(1, &[text(&file), "found 2 bits, expected 6"]);
}

#[test]
fn images_may_be_cifar_files() {
    let given = Given::new();
    let data = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    for record in 0..4u8 {
        bytes.push(record);
        let pixels = encoded(u64::from(record), 32, 32);
        (0..3).for_each(|channel| bytes.extend(pixels.chunks_exact(3).map(|pixel| pixel[channel])));
    }
    let file = data.path().join("test_batch.bin");
    fs::write(&file, bytes).unwrap();
    let masks: Vec<Mask> =
        (0..4).map(|seed| given.reference.learned(&picture(seed, 32, image::ImageFormat::Png))).collect();
    for images in [&*file, data.path()] {
        let found = given.bench(images, &["--count=4", "--workers=1", "--batch=4", "--json"]);
        given.check(&found.json(), &masks, &[1], &[4]);
    }
}

#[test]
fn images_that_cannot_be_had_are_named() {
    let given = Given::new();
    let bench = |images: &Path| given.bench(images, &["--count", "2", "--workers", "1"]);
    let images = tempfile::tempdir().unwrap();
    let none = ["found no images", "expected files such as .jpg or .png"];
    bench(images.path()).failed(1, &[&[text(images.path())], &none[..]].concat());
    fs::write(images.path().join("README.txt"), "no image").unwrap();
    bench(images.path()).failed(1, &[&[text(images.path())], &none[..]].concat());
    fs::write(images.path().join("b.PNG"), png(1)).unwrap();
    assert_eq!(bench(images.path()).code, Some(0));
    let cut = images.path().join("a.png");
    fs::write(&cut, &png(1)[..40]).unwrap();
    bench(images.path()).failed(1, &[text(&cut), "the PNG image is damaged"]);
    bench(Path::new("/nowhere")).failed(1, &["/nowhere", "cannot be read"]);
    bench(&cut).failed(1, &[text(&cut), "CIFAR"]);
    let none = images.path().join("none.bin");
    fs::write(&none, "").unwrap();
    bench(&none).failed(1, &[text(&none), "found"]);
    run(["bench", "/nowhere", "--images", text(&given.images())])
        .failed(1, &["/nowhere/bundle.json", "cannot be read"]);
}

#[test]
fn nothing_is_compared_with_a_full_net_that_is_not_one_graph() {
    let given = Given::new();
    let flags = ["--path-cache-bytes=0", "--count=1", "--workers=1"];
    given.bench(&given.images(), &flags).failed(1, &["no room for the full net as one graph", "--path-cache-bytes"]);
}

#[test]
fn every_wrong_option_is_reported_at_once() {
    let wrong = [
        ("--count", "0", "1 to 100000 images"),
        ("--masks", "best", "policy or frequent"),
        ("--batch", "513", "1 to 512 images"),
        ("--seconds", "NaN", "0.1 to 3600 seconds"),
        ("--provider", "tpu", "cpu, cuda or cuda:N"),
        ("--workers", "many", "1 to 1024 threads"),
        ("--log-format", "xml", "text or json"),
    ];
    let flags = wrong.map(|(flag, value, _)| format!("{flag}={value}"));
    let by_flag = run(["bench", "bundle", "--images=images"].into_iter().chain(flags.iter().map(String::as_str)));
    let env = |flag: &str| format!("BLOCKDROP_{}", flag.trim_start_matches("--").to_uppercase().replace('-', "_"));
    let by_env = blockdrop()
        .args(["bench", "bundle", "--images=images"])
        .envs(wrong.map(|(flag, value, _)| (env(flag), value)))
        .output();
    for found in [by_flag, Ended::of(by_env.unwrap())] {
        assert_eq!((found.code, found.err.lines().count()), (Some(2), wrong.len()), "a line each: {found:?}");
        for (flag, value, expected) in wrong {
            contains(&found.err, &[&format!("error: {flag}: found '{value}', expected {expected}")]);
        }
    }
    for (batch, found) in [("1,0", "0"), ("8,x,1", "x"), ("", ""), ("1,,2", ""), ("-1", "-1")] {
        let expected = format!("--batch: found '{found}', expected 1 to 512 images");
        run(["bench", "bundle", "--images=images", &format!("--batch={batch}")]).failed(2, &[&expected]);
    }
    let graphs = ["bench", "bundle", "--images=images", "--cuda-graphs"];
    run(graphs).failed(2, &["--cuda-graphs: found --provider cpu, expected cuda or cuda:N"]);
    let missing = run(["bench", "bundle"]);
    assert_eq!(missing.code, Some(2));
    contains(&missing.err, &["--images"]);
}

#[test]
fn requests_go_to_the_bundle_that_was_named_wherever_it_lies() {
    let given = Given::new();
    // A newer version, which cannot be loaded, and a bundle in no repository.
    fs::create_dir_all(given.dir.path().join("net/2")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    Net::tiny(5).write(&elsewhere.path().join("some/bundle")).unwrap();
    for bundle in [given.dir.path().join("net/1"), elsewhere.path().join("some/bundle")] {
        let flags = ["--http", "--count=5", "--workers=1", "--batch=1", "--seconds=0.1", "--json"];
        let found = run(["bench", text(&bundle), "--images", text(&given.images())].into_iter().chain(flags));
        assert_eq!((found.code, found.err.as_str()), (Some(0), ""), "{found:?}");
        let report: Value = serde_json::from_str(&found.out).unwrap();
        assert!(report["http"]["requests"].as_u64().is_some_and(|requests| requests > 0), "{report}");
    }
}

#[test]
fn every_wrong_batch_is_named() {
    let found = run(["bench", "bundle", "--images=x", "--batch=0,513", "--count=0"]);
    assert_eq!(found.err.lines().count(), 3, "{found:?}");
    contains(&found.err, &["--batch: found '0'", "--batch: found '513'", "--count: found '0'"]);
}
