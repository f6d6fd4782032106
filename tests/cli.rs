//! The command line: what inspect, classify and evaluate print (of bench, see bench.rs), where options come from, and how it fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use blockdrop::policy::Selection;
use blockdrop_testkit::{Net, encoded};
use common::reference::Reference;
use common::server::Server;
use common::{Ended, FORMATS, blockdrop, contains, models, picture, png, run, text};
use image::{ImageFormat, RgbImage};
use serde_json::Value;

/// A bundle in `models/net/1`, and its engine in this process.
fn bundle(net: &Net) -> (tempfile::TempDir, PathBuf, Reference) {
    let dir = models("net", net);
    let bundle = dir.path().join("net/1");
    let reference = Reference::load(&bundle);
    (dir, bundle, reference)
}

#[test]
fn inspect_shows_what_a_bundle_is() {
    let net = Net::tiny(5);
    let (_dir, bundle, reference) = bundle(&net);
    let shown = run(["inspect", text(&bundle), "--json"]).json();
    let costs = reference.costs();
    let expected = serde_json::json!({
        "policy": net.policy_flops(), "stem": costs.stem, "head": costs.head, "full": net.full_flops(),
    });
    assert_eq!(shown["flops"], expected);
    assert_eq!((&shown["classes"], &shown["threshold"]), (&10.into(), &0.5.into()));
    assert_eq!(shown["labels"][9], "class 9");
    assert_eq!(shown["provenance"]["seed"], 5);
    let blocks = shown["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 6);
    for (block, cost) in blocks.iter().zip(&costs.blocks) {
        assert_eq!(block["segment"], cost.segment);
        assert_eq!((&block["flops_kept"], &block["flops_dropped"]), (&cost.kept.into(), &cost.dropped.into()));
    }
    assert_eq!((&blocks[2]["input"], &blocks[2]["output"]), (&[4, 16, 16][..].into(), &[8, 8, 8][..].into()));

    let table = run(["inspect", text(&bundle)]);
    assert_eq!((table.code, table.err.as_str()), (Some(0), ""));
    contains(&table.out, &["net version 1: Basic [2, 2, 2] with a tiny policy", "random weights", "6 blocks"]);
    contains(&table.out, &["part", "segment", "input", "output", "FLOPs", "policy", "stem", "head"]);
    for (index, cost) in costs.blocks.iter().enumerate() {
        let row = table.out.lines().find(|line| line.contains(&format!("block {index} "))).unwrap();
        let share = format!("{:.1} %", 100.0 * cost.kept as f64 / costs.full() as f64);
        contains(row, &[&format!("{:.2e}", cost.kept as f64), &share]);
    }
    for (value, json) in [("true", true), ("1", true), ("false", false), ("0", false), ("", false)] {
        let found = blockdrop().env("BLOCKDROP_JSON", value).args(["inspect", text(&bundle)]).output();
        let found = Ended::of(found.unwrap());
        assert_eq!(found.out.starts_with('{'), json, "BLOCKDROP_JSON={value}: {found:?}");
        assert_eq!(if json { found.json() } else { shown.clone() }, shown);
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let (_dir, bundle, _) = bundle(&Net::tiny(5));
    let mut child = blockdrop().args(["inspect", text(&bundle)]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn classify_answers_as_the_engine_does() {
    let (dir, bundle, reference) = bundle(&Net::tiny(5));
    let files: Vec<String> = FORMATS
        .into_iter()
        .zip(0..)
        .map(|(format, seed)| {
            let file = dir.path().join(format!("{seed}.image"));
            fs::write(&file, picture(seed, 20 + 3 * seed as u32, format)).unwrap();
            text(&file).to_owned()
        })
        .collect();
    let classify = |flags: &[&str]| {
        let files = files.iter().map(String::as_str);
        run(["classify", "--bundle", text(&bundle)].into_iter().chain(flags.iter().copied()).chain(files))
    };
    for path in ["policy", "full", "mask:100110", "first_k:2", "random_k:3:7", "distribute_k:4"] {
        let found = classify(&["--json", "--top-k", "3", "--path", path]).json();
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), 5);
        for (index, (entry, file)) in found.iter().zip(&files).enumerate() {
            assert_eq!(&entry["image"], file);
            assert_eq!(entry["predictions"].as_array().unwrap().len(), 3);
            let bytes = fs::read(file).unwrap();
            reference.check_described(entry, &bytes, &reference.selection(path), index as u64);
        }
    }
    let table = classify(&[]);
    assert_eq!((table.code, table.err.as_str()), (Some(0), ""));
    for file in &files {
        let expected = reference.answer(&fs::read(file).unwrap(), &reference.selection("policy"), 0);
        let row = table.out.lines().find(|line| line.contains(file.as_str())).unwrap();
        contains(row, &["class ", &expected.mask.to_string(), &format!("{} of 6", expected.mask.kept())]);
    }
    // Without --bundle it is the default model's newest version.
    let net = Net::tiny(8);
    net.write(&dir.path().join("net/12")).unwrap();
    let found = run(["classify", "--models", text(dir.path()), "--json", &files[0]]).json();
    let newest = Reference::load(&dir.path().join("net/12"));
    newest.check_described(&found[0], &fs::read(&files[0]).unwrap(), &newest.selection("policy"), 0);
}

#[test]
fn classify_names_the_files_it_cannot_read_and_classifies_the_others() {
    let (dir, bundle, _) = bundle(&Net::tiny(5));
    let [good, cut, missing] = ["good.png", "cut.png", "missing.png"].map(|name| dir.path().join(name));
    fs::write(&good, png(1)).unwrap();
    fs::write(&cut, &png(1)[..40]).unwrap();
    let files = [text(&cut), text(&good), text(&missing)];
    let found = run(["classify", "--bundle", text(&bundle), "--json"].into_iter().chain(files));
    assert_eq!(found.code, Some(1), "{found:?}");
    let lines: Vec<&str> = found.err.lines().collect();
    assert_eq!(lines.len(), 2, "one for each: {lines:?}");
    contains(lines[0], &["error: ", text(&cut), "the PNG image is damaged"]);
    contains(lines[1], &["error: ", text(&missing), "No such file"]);
    let entries: Value = serde_json::from_str(&found.out).unwrap();
    let errors: Vec<bool> = entries.as_array().unwrap().iter().map(|entry| entry.get("error").is_some()).collect();
    assert_eq!(errors, [true, false, true]);
    let table = run(["classify", "--bundle", text(&bundle)].into_iter().chain(files));
    assert_eq!(table.code, Some(1));
    contains(&table.out, &[text(&good), "class "]);
    contains(&table.err, &[text(&cut), text(&missing)]);
}

/// Labelled images, and what evaluating them has to give.
struct Labelled(Vec<(RgbImage, usize)>);

impl Labelled {
    fn new(count: u64) -> Self {
        let image = |seed| RgbImage::from_raw(32, 32, encoded(seed, 32, 32)).unwrap();
        Self((0..count).map(|seed| (image(seed), (seed * 7 % 10) as usize)).collect())
    }

    /// CIFAR's binary file, with `coarse` labels before the fine ones for CIFAR-100's.
    fn cifar(&self, coarse: bool) -> Vec<u8> {
        let record = |(image, class): &(RgbImage, usize)| {
            let mut bytes = if coarse { vec![99] } else { vec![] };
            bytes.push(*class as u8);
            (0..3).for_each(|channel| bytes.extend(image.pixels().map(|pixel| pixel[channel])));
            bytes
        };
        self.0.iter().flat_map(record).collect()
    }

    /// A folder for each class.
    fn folders(&self, dir: &Path) {
        for (number, (image, class)) in self.0.iter().enumerate() {
            let folder = dir.join(format!("class {class}"));
            fs::create_dir_all(&folder).unwrap();
            image.save_with_format(folder.join(format!("{number:03}.png")), ImageFormat::Png).unwrap();
        }
    }

    /// Checks a summary of the first `count` images.
    fn check(&self, summary: &Value, reference: &Reference, selection: &Selection, count: usize) {
        let costs = reference.costs();
        let (mut right, mut blocks, mut flops, mut masks) = (0, Vec::new(), Vec::new(), HashSet::new());
        for (index, (image, class)) in self.0[..count].iter().enumerate() {
            let answer = reference.answer_image(image, selection, index as u64);
            let best = (0..10).max_by(|&a, &b| answer.logits[a].total_cmp(&answer.logits[b])).unwrap();
            right += usize::from(best == *class);
            blocks.push(answer.mask.kept() as f64);
            let policy = if answer.policy_ran { costs.policy } else { 0 };
            flops.push((policy + costs.executed(&answer.mask)) as f64);
            masks.insert(answer.mask);
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let std = |values: &[f64]| {
            (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64 - mean(values).powi(2))
                .max(0.0)
                .sqrt()
        };
        let expected = [
            ("accuracy", right as f64 / count as f64),
            ("blocks_mean", mean(&blocks)),
            ("blocks_std", std(&blocks)),
            ("flops_mean", mean(&flops)),
            ("flops_std", std(&flops)),
            ("flops_ratio", mean(&flops) / costs.full() as f64),
            ("distinct_masks", masks.len() as f64),
        ];
        assert_eq!(summary.as_object().unwrap().len(), expected.len());
        for (name, expected) in expected {
            let found = summary[name].as_f64().unwrap();
            // The deviations are computed another way here, from numbers of some 1e6.
            assert!(
                (found - expected).abs()
                    <= 1e-6 * expected.abs().max(1.0) + if name == "flops_std" { 0.1 } else { 0.0 },
                "{name}: {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn evaluate_counts_what_the_engine_gives() {
    let (dir, bundle, reference) = bundle(&Net::tiny(5));
    // More than the two or three chunks that threads share.
    let data = Labelled::new(90);
    let ten = dir.path().join("test_batch.bin");
    fs::write(&ten, data.cifar(false)).unwrap();
    let evaluate = |data: &Path, flags: &[&str]| {
        run(["evaluate", text(&bundle), "--data", text(data), "--json"].into_iter().chain(flags.iter().copied())).json()
    };
    for path in ["policy", "mask:011010", "random_k:3:5"] {
        let found = evaluate(&ten, &["--path", path]);
        assert_eq!((&found["bundle"], &found["images"]), (&"net version 1".into(), &90.into()));
        assert_eq!(found["path"], path);
        data.check(&found["chosen"], &reference, &reference.selection(path), 90);
        data.check(&found["full"], &reference, &reference.selection("full"), 90);
    }
    let learned = evaluate(&ten, &[]);
    assert!(learned["chosen"]["distinct_masks"].as_u64() > Some(2) && learned["chosen"]["blocks_std"] != 0.0);
    let right = learned["full"]["accuracy"].as_f64().unwrap();
    assert!(right > 0.0 && right < 1.0, "an accuracy that says something: {right}");

    let full = evaluate(&ten, &["--path", "full"]);
    assert_eq!(full["chosen"], full["full"], "the same net twice");
    assert_eq!((&full["full"]["flops_ratio"], &full["full"]["distinct_masks"]), (&1.0.into(), &1.into()));

    for limit in [1, 33, 90, 1000] {
        let found = evaluate(&ten, &["--limit", &limit.to_string(), "--workers", "3"]);
        assert_eq!(found["images"], limit.min(90));
        data.check(&found["chosen"], &reference, &reference.selection("policy"), limit.min(90));
    }
    // A directory with a test file in it, and CIFAR-100's records.
    data.check(&evaluate(dir.path(), &[])["chosen"], &reference, &reference.selection("policy"), 90);
    let hundred = dir.path().join("hundred.bin");
    fs::write(&hundred, data.cifar(true)).unwrap();
    data.check(&evaluate(&hundred, &[])["chosen"], &reference, &reference.selection("policy"), 90);
    let folders = tempfile::tempdir().unwrap();
    data.folders(folders.path());
    let by_folder = evaluate(folders.path(), &[]);
    assert_eq!(by_folder["images"], 90);
    for name in ["accuracy", "blocks_mean", "flops_mean", "distinct_masks"] {
        assert_eq!(by_folder["chosen"][name], learned["chosen"][name], "{name}");
    }

    let table = run(["evaluate", text(&bundle), "--data", text(&ten)]);
    assert_eq!((table.code, table.err.as_str()), (Some(0), ""), "no bar where nobody watches");
    contains(&table.out, &["net version 1, 90 images of ", text(&ten), "accuracy", "blocks kept", "distinct masks"]);
    for (row, summary) in [("policy", &learned["chosen"]), ("full", &learned["full"])] {
        let number = |name: &str| summary[name].as_f64().unwrap();
        let line = table.out.lines().find(|line| line.trim_start().starts_with(row)).unwrap();
        contains(line, &[&format!("{:.2} %", 100.0 * number("accuracy")), &format!("{:.2e} ±", number("flops_mean"))]);
        contains(line, &[&format!("{:.2} ± {:.2}", number("blocks_mean"), number("blocks_std"))]);
    }
}

#[test]
fn evaluate_refuses_data_that_does_not_fit() {
    let (dir, bundle, _) = bundle(&Net::tiny(5));
    let evaluate = |data: &Path| run(["evaluate", text(&bundle), "--data", text(data)]);
    let file = dir.path().join("data.bin");
    let whole = Labelled::new(3).cifar(false);
    fs::write(&file, &whole[..5000]).unwrap();
    evaluate(&file).failed(1, &[text(&file), "found 5000 bytes", "3073", "3074"]);
    let mut other = whole;
    other[3073] = 10;
    fs::write(&file, other).unwrap();
    evaluate(&file).failed(1, &[text(&file), "found class 10", "expected the model's 10 classes"]);
    evaluate(Path::new("/nowhere")).failed(1, &["/nowhere", "cannot be read"]);

    let folders = tempfile::tempdir().unwrap();
    evaluate(folders.path()).failed(1, &[text(folders.path()), "found no images", "a folder for each class"]);
    fs::create_dir(folders.path().join("class 1")).unwrap();
    fs::write(folders.path().join("class 1/cut.png"), &png(1)[..40]).unwrap();
    evaluate(folders.path()).failed(1, &["class 1/cut.png", "the PNG image is damaged"]);
    fs::create_dir(folders.path().join("cats")).unwrap();
    evaluate(folders.path()).failed(1, &["found a folder 'cats'", "expected one of: class 0, class 1"]);
}

#[test]
fn wrong_paths_and_budgets_are_named_as_flags() {
    let (dir, bundle, _) = bundle(&Net::tiny(5));
    let file = dir.path().join("image.png");
    fs::write(&file, png(1)).unwrap();
    let classify = |flags: &[&str]| {
        run(["classify", "--bundle", text(&bundle), text(&file)].into_iter().chain(flags.iter().copied()))
    };
    classify(&["--path", "mask:10"]).failed(2, &["--path: found a mask of 2 bits, expected 6"]);
    classify(&["--path", "first_k:7"]).failed(2, &["--path: found 7 blocks to keep, expected 0 to 6"]);
    classify(&["--max-flops", "1"]).failed(2, &["--max-flops: found 1, expected at least "]);
    classify(&["--path", "full", "--max-blocks", "1"]).failed(2, &["--max-blocks: found it beside path=full"]);
}

/// For each option that is checked: a wrong value, and what the message says was expected.
const WRONG: [(&str, &str, &str); 25] = [
    ("--http-addr", "localhost", "an IP address and a port"),
    ("--admin-addr", "8081", "an IP address and a port"),
    ("--provider", "gpu", "cpu, cuda or cuda:N"),
    ("--workers", "0", "1 to 1024 threads"),
    ("--max-batch", "513", "1 to 512 images"),
    ("--max-queue", "none", "1 to 1000000 images"),
    ("--max-connections", "0", "1 to 1000000 connections"),
    ("--max-queue-per-connection", "0", "from 1 to --max-queue images"),
    ("--serving-nice", "20", "0 to 19"),
    ("--write-timeout", "0s", "a time from 1ms to 1day"),
    ("--max-queue-per-model", "0", "1 to --max-queue images"),
    ("--model-limit", "net:queue=0", "NAME:LIMIT=VALUE,..."),
    ("--shadow-rate", "1.5", "a share from 0 to 1"),
    ("--brownout", "1", "a threshold above each model's own and below 1"),
    ("--brownout-wait", "0s", "a time from 1ms to 1min"),
    ("--path-cache-bytes", "1GiB", "a number of bytes from 0"),
    ("--warm-up", "2days", "a time from 0s to 1day"),
    ("--max-images", "-1", "1 to 4096 images"),
    ("--max-body-bytes", "16MiB", "a number of bytes from 1"),
    ("--max-bodies-bytes", "x", "at least --max-body-bytes"),
    ("--max-pixels", "0", "a number of pixels from 1"),
    ("--request-timeout", "0s", "a time from 1ms to 1day"),
    ("--drain-timeout", "soon", "a time from 1ms to 1day"),
    ("--stuck-after", "2days", "a time from 0s to 1day"),
    ("--log-format", "xml", "text or json"),
];

#[test]
fn cuda_graphs_want_a_gpu() {
    let expected = ["--cuda-graphs: found --provider cpu, expected cuda or cuda:N"];
    run(["serve", "--cuda-graphs"]).failed(2, &expected);
    let by_env = blockdrop().arg("serve").env("BLOCKDROP_CUDA_GRAPHS", "1").output().unwrap();
    Ended::of(by_env).failed(2, &expected);
}

fn env_name(flag: &str) -> String {
    format!("BLOCKDROP_{}", flag.trim_start_matches("--").to_uppercase().replace('-', "_"))
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let by_flag =
        run(["serve".to_owned()].into_iter().chain(WRONG.iter().map(|(flag, value, _)| format!("{flag}={value}"))));
    let by_env = blockdrop().arg("serve").envs(WRONG.iter().map(|(flag, value, _)| (env_name(flag), value))).output();
    for found in [by_flag, Ended::of(by_env.unwrap())] {
        assert_eq!(found.code, Some(2), "{found:?}");
        let lines: Vec<&str> = found.err.lines().collect();
        assert_eq!(lines.len(), WRONG.len(), "a line each: {}", found.err);
        for (flag, value, expected) in WRONG {
            let start = format!("error: {flag}: found '{value}', expected {expected}");
            assert!(lines.iter().any(|line| line.starts_with(&start)), "'{start}' is not in: {}", found.err);
        }
    }
    let masks =
        ["--path=some", "--threshold=2", "--max-blocks=-1", "--max-flops=x", "--provider=tpu", "--workers=many"];
    let classify = run(["classify", "image.png", "--top-k=0"].into_iter().chain(masks));
    let evaluate = run(["evaluate", "bundle", "--data=data", "--limit=0"].into_iter().chain(masks));
    for (found, own) in [(classify, "--top-k: found '0'"), (evaluate, "--limit: found '0'")] {
        assert_eq!((found.code, found.err.lines().count()), (Some(2), 7), "{found:?}");
        let each = ["--path", "--threshold", "--max-blocks", "--max-flops", "--provider", "--workers"];
        each.iter().for_each(|flag| contains(&found.err, &[&format!("error: {flag}: found '")]));
        contains(&found.err, &[own]);
    }
    for (args, part) in [
        (&["serve", "--no-such-flag"][..], "--no-such-flag"),
        (&["classify"], "IMAGES"),
        (&["evaluate", "bundle"], "--data"),
        (&["bench", "bundle"], "--images"),
        (&["inspect"], "BUNDLE"),
        (&["dance"], "dance"),
        (&[], "Usage"),
    ] {
        let found = run(args);
        assert_eq!(found.code, Some(2), "{found:?}");
        contains(&found.err, &[part]);
    }
    let levels = Ended::of(blockdrop().env("RUST_LOG", "blockdrop=loud").args(["inspect", "x"]).output().unwrap());
    levels.failed(2, &["RUST_LOG: found 'blockdrop=loud'", "expected levels such as info"]);
}

#[test]
fn every_flag_has_its_name_in_the_environment_and_in_the_help() {
    let mut flags = HashSet::new();
    for command in ["serve", "classify", "inspect", "evaluate", "bench", "healthcheck"] {
        let help = run([command, "--help"]);
        assert_eq!((help.code, help.err.as_str()), (Some(0), ""));
        // From a line that begins with a flag to the next one is its help.
        let mut found: Vec<String> = Vec::new();
        for line in help.out.lines() {
            let start = line.trim_start();
            match found.last_mut() {
                _ if line.starts_with("      --") || line.starts_with("  -") => found.push(start.to_owned()),
                Some(last) => *last += &format!(" {start}"),
                None => {}
            }
        }
        for help in found.iter().filter(|help| help.starts_with("--")) {
            let flag = help.split([' ', '=']).next().unwrap();
            let env = format!("[env: {}=", env_name(flag));
            contains(help, &[&env]);
            // Without the flag, its value's name and what stands in brackets, there is a sentence left.
            let said = help.split(['[', '<']).map(|part| part.split([']', '>']).next_back().unwrap());
            let words: usize = said.map(|part| part.split_whitespace().count()).sum();
            assert!(words >= 4, "no help: {help}");
            flags.insert(flag.to_owned());
        }
    }
    assert!(WRONG.iter().all(|(flag, ..)| flags.contains(*flag)), "{flags:?}");
    assert!(flags.len() > 20, "{flags:?}");
    assert!(run(["--version"]).out.starts_with(concat!("blockdrop ", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn a_server_is_set_up_by_its_environment_and_flags_win() {
    let dir = models("one", &Net::tiny(5));
    Net::tiny(6).write(&dir.path().join("two/1")).unwrap();
    let mut command = blockdrop();
    command.arg("serve").envs([
        ("BLOCKDROP_HTTP_ADDR", "127.0.0.1:0"),
        ("BLOCKDROP_ADMIN_ADDR", "127.0.0.1:0"),
        ("BLOCKDROP_MODELS", text(dir.path())),
        ("BLOCKDROP_DEFAULT_MODEL", "two"),
        ("BLOCKDROP_LOG_FORMAT", "json"),
        ("BLOCKDROP_WORKERS", "1"),
        ("BLOCKDROP_MAX_IMAGES", "2"),
        ("BLOCKDROP_MAX_PIXELS", "1"),
        // Set to nothing, as compose files leave it: not set.
        ("BLOCKDROP_MAX_BATCH", ""),
        ("BLOCKDROP_ONNXRUNTIME", ""),
    ]);
    let server = Server::spawn(command.args(["--max-pixels", "1000"]));
    assert_eq!(server.classify("", png(1)).await["model"], "two");
    assert_eq!(server.classify_all("", &[png(1), png(2)]).await["model"], "two");
    let form = common::server::parts(&[png(1), png(2), png(3)]);
    let found = server.client.post(server.url("/v1/classify")).multipart(form).send().await.unwrap();
    contains(&found.text().await.unwrap(), &["the request has more than 2 images, expected at most 2"]);
    let found = server.post("", picture(1, 32, ImageFormat::Png)).await;
    contains(&found.text().await.unwrap(), &["expected at most 1000 pixels"]);
    server.stop();
}

/// Runs a server that is not to start, with nothing but errors on standard error.
fn serve(models: &Path, flags: &[&str]) -> Ended {
    let mut command = blockdrop();
    command.env("RUST_LOG", "error").args(["serve", "--models", text(models), "--workers", "1"]);
    for flag in ["--http-addr", "--grpc-addr", "--admin-addr"] {
        if !flags.contains(&flag) {
            command.args([flag, "127.0.0.1:0"]);
        }
    }
    Ended::of(command.args(flags).output().unwrap())
}

#[test]
fn a_server_that_cannot_start_says_why_in_one_sentence() {
    let (dir, bundle, _) = bundle(&Net::tiny(5));
    let models = dir.path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--http-addr", "--grpc-addr", "--admin-addr"] {
        serve(models, &[flag, &address]).failed(1, &[flag, &address, "cannot listen on", "in use"]);
    }
    let names = ["default model 'other' not found", "expected one of: net"];
    serve(models, &["--default-model", "other"]).failed(1, &names);
    serve(Path::new("/nowhere"), &[]).failed(1, &["/nowhere", "cannot be read", "No such file"]);
    let file = models.join("default");
    for (content, parts) in [("other\n", names), (&"n".repeat(5000), [text(&file), "longer than the name of a model"])]
    {
        fs::write(&file, content).unwrap();
        serve(models, &[]).failed(1, &parts);
        run(["classify", "image.png", "--models", text(models)]).failed(1, &parts);
    }
    fs::remove_file(file).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let layout = "expected <name>/<version>/bundle.json";
    serve(empty.path(), &[]).failed(1, &[text(empty.path()), "no model found", layout]);
    // Device 65535 is nowhere; a machine without CUDA has not even the provider.
    serve(models, &["--provider", "cuda:65535"]).failed(1, &["net/1", "cuda:65535"]);

    let classify = |flags: &[&str]| run(["classify", "image.png"].into_iter().chain(flags.iter().copied()));
    classify(&["--models", text(models), "--default-model", "other"]).failed(1, &names);
    classify(&["--models", text(empty.path())]).failed(1, &["no model found", layout]);
    classify(&["--bundle", "/nowhere"]).failed(1, &["/nowhere/bundle.json", "cannot be read"]);
    run(["inspect", "/nowhere"]).failed(1, &["/nowhere/bundle.json", "cannot be read"]);

    // One broken bundle among good ones: the server does not start with less than it was given.
    Net::tiny(6).write(&models.join("other/3")).unwrap();
    let head = models.join("other/3/head.onnx");
    let mut bytes = fs::read(&head).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&head, bytes).unwrap();
    let parts = [text(&head), "sha256: found ", "expected "];
    serve(models, &["--default-model", "net"]).failed(1, &parts);
    run(["inspect", text(head.parent().unwrap())]).failed(1, &parts);
    // And two: each has its line.
    fs::write(bundle.join("bundle.json"), "{").unwrap();
    let both = serve(models, &["--default-model", "net"]);
    assert_eq!((both.code, both.err.lines().count()), (Some(1), 2), "{both:?}");
    contains(&both.err, &["other/3/head.onnx", "net/1/bundle.json"]);
}

#[test]
fn onnxruntime_that_is_not_there_is_named() {
    let (dir, bundle, _) = bundle(&Net::tiny(5));
    let (image, other) = (dir.path().join("image.png"), dir.path().join("libother.so"));
    fs::write(&image, png(1)).unwrap();
    fs::write(&other, "no library").unwrap();
    let data = dir.path().join("data.bin");
    fs::write(&data, Labelled::new(2).cifar(false)).unwrap();
    let commands: [&[&str]; 4] = [
        &["classify", "--bundle", text(&bundle), text(&image)],
        &["evaluate", text(&bundle), "--data", text(&data)],
        &["bench", text(&bundle), "--images", text(&data)],
        &[
            "serve",
            "--models",
            text(dir.path()),
            "--http-addr=127.0.0.1:0",
            "--grpc-addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
        ],
    ];
    for args in commands {
        let without = |set: &[(&str, &str)]| {
            let mut command = blockdrop();
            command.env_remove("ORT_DYLIB_PATH").env("RUST_LOG", "error").envs(set.iter().copied()).args(args);
            Ended::of(command.output().unwrap())
        };
        let named = ["ONNX Runtime's library", "ORT_DYLIB_PATH", "scripts/fetch-onnxruntime"];
        without(&[]).failed(1, &named);
        without(&[("ORT_DYLIB_PATH", "")]).failed(1, &named);
        for name in ["ORT_DYLIB_PATH", "BLOCKDROP_ONNXRUNTIME"] {
            without(&[(name, "/nowhere/lib.so")]).failed(1, &["/nowhere/lib.so", "no such file"]);
            without(&[(name, text(&other))]).failed(1, &[text(&other), "1.24 or newer"]);
        }
    }
    // What shows a bundle does without.
    assert_eq!(
        Ended::of(blockdrop().env_remove("ORT_DYLIB_PATH").args(["inspect", text(&bundle)]).output().unwrap()).code,
        Some(0)
    );
}

#[test]
fn nothing_is_left_in_the_home_directory() {
    let (dir, bundle, _) = bundle(&Net::tiny(5));
    let (home, image) = (tempfile::tempdir().unwrap(), dir.path().join("1.png"));
    fs::write(&image, common::png(1)).unwrap();
    let mut command = common::blockdrop();
    command.args(["classify", "--bundle", text(&bundle), text(&image)]).env("HOME", home.path());
    let output = command.env_remove("XDG_CACHE_HOME").env_remove("ORT_DISABLE_TELEMETRY").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "ONNX Runtime's telemetry: {left:?}");
}

fn health(flags: &[&str]) -> Ended {
    run(["healthcheck"].iter().chain(flags))
}

#[tokio::test]
async fn healthcheck_says_how_a_server_is() {
    let models = models("net", &Net::tiny(5));
    let server = Server::start(models.path(), &[]);
    let port = server.admin.port();
    for address in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")] {
        for (flags, said) in [(&[][..], "readyz: ready"), (&["--live"], "livez: alive")] {
            let found = health(&[&["--admin-addr", &address], flags].concat());
            assert_eq!((found.code, found.err.as_str()), (Some(0), ""), "{found:?}");
            assert_eq!(found.out, format!("http://127.0.0.1:{port}/{said}\n"));
        }
    }
    // As a container has it: by the variables of the server.
    let by_env = [("BLOCKDROP_ADMIN_ADDR", format!("0.0.0.0:{port}")), ("BLOCKDROP_LOG_FORMAT", "json".to_owned())];
    let found = Ended::of(blockdrop().arg("healthcheck").envs(by_env).output().unwrap());
    assert_eq!((found.code, found.out), (Some(0), format!("http://127.0.0.1:{port}/readyz: ready\n")));
    // Another listener that answers is not the admin one.
    let found = health(&["--admin-addr", &server.http.to_string()]);
    found.failed(1, &["/readyz: found status 404, expected 200"]);
}

#[test]
fn healthcheck_fails_in_one_sentence_where_no_server_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // It takes the connection and says nothing.
    health(&["--admin-addr", &address, "--timeout", "100ms"]).failed(1, &[&address, "no answer within 100ms"]);
    drop(listener);
    health(&["--admin-addr", &address]).failed(1, &[&address, "no answer: "]);
    let found = health(&["--admin-addr", "127.0.0.1:0", "--timeout", "never"]);
    assert_eq!((found.code, found.err.lines().count()), (Some(2), 2), "{found:?}");
    contains(&found.err, &["--admin-addr: found '127.0.0.1:0'", "--timeout: found 'never'"]);
}
