//! `/metrics` of the real server: everything there at zero before the first request, exact after many.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use blockdrop::engine::best_class;
use blockdrop_testkit::Net;
use common::raw::{ask, post};
use common::reference::Reference;
use common::server::{Series, Server};
use common::{models, png};

/// Two models: `one` of 6 blocks, `other` of 3.
fn written() -> tempfile::TempDir {
    let dir = models("one", &Net::tiny(5));
    Net { segments: vec![1, 2], ..Net::tiny(6) }.write(&dir.path().join("other/1")).unwrap();
    dir
}

/// The names and kinds that apply so far.
const METRICS: [(&str, &str); 48] = [
    ("blockdrop_requests_total", "counter"),
    ("blockdrop_images_total", "counter"),
    ("blockdrop_rejected_total", "counter"),
    ("blockdrop_request_duration_seconds", "histogram"),
    ("blockdrop_stage_duration_seconds", "histogram"),
    ("blockdrop_blocks_kept", "histogram"),
    ("blockdrop_block_kept_total", "counter"),
    ("blockdrop_block_dropped_total", "counter"),
    ("blockdrop_flops_executed_total", "counter"),
    ("blockdrop_flops_policy_total", "counter"),
    ("blockdrop_flops_full_total", "counter"),
    ("blockdrop_batch_size", "histogram"),
    ("blockdrop_mixed_batches_total", "counter"),
    ("blockdrop_policy_images_total", "counter"),
    ("blockdrop_policy_blocks_kept_total", "counter"),
    ("blockdrop_policy_blocks_dropped_total", "counter"),
    ("blockdrop_brownout_images_total", "counter"),
    ("blockdrop_brownout_level", "gauge"),
    ("blockdrop_queue_depth", "gauge"),
    ("blockdrop_queue_limit", "gauge"),
    ("blockdrop_connections", "gauge"),
    ("blockdrop_connections_closed_total", "counter"),
    ("blockdrop_inflight_requests", "gauge"),
    ("blockdrop_model_ready", "gauge"),
    ("blockdrop_model_queue_full_total", "counter"),
    ("blockdrop_model_reloads_total", "counter"),
    ("blockdrop_models_refused", "gauge"),
    ("blockdrop_path_cache_bytes", "gauge"),
    ("blockdrop_path_cache_evictions_total", "counter"),
    ("blockdrop_path_cache_failures_total", "counter"),
    ("blockdrop_path_cache_hits_total", "counter"),
    ("blockdrop_path_cache_misses_total", "counter"),
    ("blockdrop_shadow_agree_total", "counter"),
    ("blockdrop_shadow_dropped_total", "counter"),
    ("blockdrop_shadow_full_seconds_total", "counter"),
    ("blockdrop_shadow_path_seconds_total", "counter"),
    ("blockdrop_shadow_runs_total", "counter"),
    ("blockdrop_worker_busy_seconds", "gauge"),
    ("blockdrop_worker_panics_total", "counter"),
    ("blockdrop_workers", "gauge"),
    ("blockdrop_build_info", "gauge"),
    // The standard ones of a process, where the system has them.
    ("process_cpu_seconds_total", "counter"),
    ("process_max_fds", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_start_time_seconds", "gauge"),
    ("process_threads", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
];

fn metrics() -> impl Iterator<Item = (&'static str, &'static str)> {
    let here = |name: &str| cfg!(target_os = "linux") || !name.starts_with("process_");
    METRICS.into_iter().filter(move |(name, _)| here(name))
}

/// The name of the metric that a series belongs to.
fn metric_of(series: &str) -> &str {
    let name = series.split('{').next().unwrap();
    let mut histogram = ["_bucket", "_sum", "_count"].into_iter().filter_map(|end| name.strip_suffix(end));
    histogram.find(|name| METRICS.contains(&(name, "histogram"))).unwrap_or(name)
}

/// Why requests are turned away and images given up.
const REASONS: [&str; 9] = [
    "unauthenticated",
    "queue_full",
    "connection_full",
    "model_queue_full",
    "too_late",
    "memory",
    "shutting_down",
    "deadline",
    "cancelled",
];

/// The series a model of `blocks` blocks has.
fn of_model(name: &str, blocks: usize) -> Vec<String> {
    let flops = ["flops_executed_total", "flops_policy_total", "flops_full_total"];
    let paths = ["hits", "misses", "evictions", "failures"].map(|what| format!("path_cache_{what}_total"));
    let shadow = ["runs", "agree", "path_seconds", "full_seconds"].map(|what| format!("shadow_{what}_total"));
    let own = ["images", "blocks_kept", "blocks_dropped"].map(|what| format!("policy_{what}_total"));
    let plain = ["images_total", "brownout_images_total", "model_queue_full_total"]
        .into_iter()
        .chain(own.iter().map(String::as_str))
        .chain(flops)
        .chain(paths.iter().chain(&shadow).map(String::as_str));
    let histograms = ["blocks_kept_count", "blocks_kept_sum", "batch_size_count", "batch_size_sum"];
    let mut series: Vec<String> =
        plain.chain(histograms).map(|metric| format!("blockdrop_{metric}{{model=\"{name}\"}}")).collect();
    for metric in ["kept", "dropped"] {
        series.extend((0..blocks).map(|block| block_series(metric, name, block)));
    }
    series.extend((0..=blocks).map(|kept| kept_bucket(name, kept)));
    series.extend(["full", "no_graph", "failed"].map(|reason| shadow_dropped(name, reason)));
    series
}

fn block_series(metric: &str, model: &str, block: usize) -> String {
    format!("blockdrop_block_{metric}_total{{block=\"{block}\",model=\"{model}\"}}")
}

fn shadow_dropped(model: &str, reason: &str) -> String {
    format!("blockdrop_shadow_dropped_total{{model=\"{model}\",reason=\"{reason}\"}}")
}

fn kept_bucket(model: &str, kept: usize) -> String {
    format!("blockdrop_blocks_kept_bucket{{model=\"{model}\",le=\"{kept}\"}}")
}

#[tokio::test]
async fn every_series_is_there_at_zero_before_the_first_request() {
    let server = Server::start(written().path(), &["--default-model", "one"]);
    let response = server.get_admin("/metrics").await;
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4");
    let found = Series::parse(&response.text().await.unwrap());

    let names: BTreeSet<&str> = found.values.keys().map(|series| metric_of(series)).collect();
    assert_eq!(names, metrics().map(|(name, _)| name).collect(), "all that apply, and no others");
    for (name, kind) in metrics() {
        assert_eq!(found.kinds.get(name).map(String::as_str), Some(kind), "{name}");
        assert!(found.helps.get(name).is_some_and(|help| help.len() > 10), "help of {name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
    }

    let mut expected: Vec<String> = [of_model("one", 6), of_model("other", 3)].concat();
    for code in [200, 400, 401, 404, 405, 408, 413, 415, 499, 500, 503, 504] {
        expected.push(format!("blockdrop_requests_total{{code=\"{code}\",protocol=\"http\"}}"));
    }
    for listener in ["http", "grpc", "admin"] {
        expected.extend(["limit", "untaken"].map(|reason| {
            format!("blockdrop_connections_closed_total{{listener=\"{listener}\",reason=\"{reason}\"}}")
        }));
    }
    expected.extend(["http", "grpc"].map(|listener| format!("blockdrop_connections{{listener=\"{listener}\"}}")));
    for reason in REASONS {
        expected.push(format!("blockdrop_rejected_total{{reason=\"{reason}\"}}"));
    }
    for stage in ["decode", "preprocess", "queue", "policy", "backbone"] {
        expected.push(format!("blockdrop_stage_duration_seconds_count{{stage=\"{stage}\"}}"));
    }
    expected.push("blockdrop_request_duration_seconds_count{protocol=\"http\"}".into());
    let gauges = ["blockdrop_queue_depth", "blockdrop_inflight_requests", "blockdrop_brownout_level"];
    expected.extend(gauges.map(String::from));
    expected.extend(["ok", "refused"].map(|result| format!("blockdrop_model_reloads_total{{result=\"{result}\"}}")));
    expected.push("blockdrop_models_refused".into());
    for series in &expected {
        assert_eq!(found.of(series), 0.0, "{series}");
    }
    // Nothing but what says that the server is there is above zero.
    for (series, value) in &found.values {
        let says_so = ["blockdrop_model_ready", "blockdrop_build_info"].contains(&metric_of(series))
            || series == "blockdrop_connections{listener=\"admin\"}";
        if series == "blockdrop_workers" {
            assert_eq!(*value, 2.0);
        } else if metric_of(series) == "blockdrop_path_cache_bytes" {
            assert!(*value > 0.0, "the full net is compiled at the start: {series}");
        } else if metric_of(series) == "blockdrop_queue_limit" {
            assert_eq!(*value, 256.0, "the default of --max-queue");
        } else if says_so || !series.starts_with("process_") {
            assert_eq!(*value, f64::from(u8::from(says_so)), "{series}");
        }
    }
    assert_eq!(found.of("blockdrop_model_ready{model=\"one\"}"), 1.0);
    assert_eq!(found.of("blockdrop_model_ready{model=\"other\"}"), 1.0);
    let info = found.values.keys().find(|series| series.starts_with("blockdrop_build_info")).unwrap();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    common::contains(info, &["provider=\"cpu\"", &version, "runtime=\"1."]);
}

/// What the metrics have to be after some images.
#[derive(Default)]
struct Expected {
    images: usize,
    kept: Vec<usize>,
    /// Images by the number of blocks they kept.
    by_count: Vec<usize>,
    /// Images for which nothing was asked but what the policy decides, and blocks that they kept.
    own: usize,
    own_kept: usize,
    executed: u64,
    policy: u64,
    full: u64,
    /// Images that the policy chose a path for that is not the full net, and those of them that it names the same class
    /// for.
    skipped: usize,
    agree: usize,
}

impl Expected {
    fn add(&mut self, reference: &Reference, image: &[u8], path: &str) {
        let answer = reference.answer(image, &reference.selection(path), 0);
        let costs = reference.costs();
        self.kept.resize(reference.blocks(), 0);
        self.by_count.resize(reference.blocks() + 1, 0);
        self.images += 1;
        self.by_count[answer.mask.kept()] += 1;
        self.kept.iter_mut().zip(answer.mask.iter()).for_each(|(count, keep)| *count += usize::from(keep));
        self.executed += costs.executed(&answer.mask);
        self.policy += if path == "policy" { costs.policy } else { 0 };
        self.full += costs.full();
        if path == "policy" {
            self.own += 1;
            self.own_kept += answer.mask.kept();
        }
        if path == "policy" && !answer.mask.is_full() {
            let full = reference.answer(image, &reference.selection("full"), 0);
            self.skipped += 1;
            self.agree += usize::from(best_class(&full.logits) == best_class(&answer.logits));
        }
    }

    fn check(&self, found: &Series, model: &str) {
        let of = |metric: &str| found.of(&format!("blockdrop_{metric}{{model=\"{model}\"}}"));
        assert_eq!(of("images_total"), self.images as f64);
        assert_eq!(of("flops_executed_total"), self.executed as f64);
        assert_eq!(of("flops_policy_total"), self.policy as f64);
        assert_eq!(of("flops_full_total"), self.full as f64);
        assert_eq!((of("policy_images_total"), of("brownout_images_total")), (self.own as f64, 0.0));
        let dropped = self.own * self.kept.len() - self.own_kept;
        assert_eq!(of("policy_blocks_kept_total"), self.own_kept as f64);
        assert_eq!(of("policy_blocks_dropped_total"), dropped as f64);
        for (block, &kept) in self.kept.iter().enumerate() {
            assert_eq!(found.of(&block_series("kept", model, block)), kept as f64);
            assert_eq!(found.of(&block_series("dropped", model, block)), (self.images - kept) as f64);
        }
        assert_eq!(of("blocks_kept_count"), self.images as f64);
        assert_eq!(of("blocks_kept_sum"), self.kept.iter().sum::<usize>() as f64);
        let mut below = 0;
        for (kept, &count) in self.by_count.iter().enumerate() {
            below += count;
            assert_eq!(found.of(&kept_bucket(model, kept)), below as f64, "images that kept at most {kept}");
        }
        // Every image ran in one group.
        assert_eq!(of("batch_size_sum"), self.images as f64);
        assert!((1.0..=self.images as f64).contains(&of("batch_size_count")));
        found.paths(model).check(self.images);
    }

    fn check_shadows(&self, found: &Series, model: &str) {
        let of = |what: &str| found.of(&format!("blockdrop_shadow_{what}_total{{model=\"{model}\"}}"));
        assert_eq!((of("runs"), of("agree")), (self.skipped as f64, self.agree as f64));
        for side in ["path_seconds", "full_seconds"] {
            assert!(of(side) > 0.0 && of(side) < 60.0, "{side}: {}", of(side));
        }
        for reason in ["full", "no_graph", "failed"] {
            assert_eq!(found.of(&shadow_dropped(model, reason)), 0.0, "{reason}");
        }
    }
}

/// All images by their full net too, and none: everything else is the same.
#[tokio::test]
async fn shadows_are_counted_and_count_as_nothing_else() {
    let dir = written();
    let [one, other] = ["one/1", "other/1"].map(|model| Reference::load(&dir.path().join(model)));
    let images: Vec<Vec<u8>> = (0..20).map(png).collect();
    for rate in ["1", "0"] {
        let flags = ["--default-model", "one", "--warm-up", "1day", "--shadow-rate", rate];
        let server = Server::start(dir.path(), &flags);
        let (mut of_one, mut of_other) = (Expected::default(), Expected::default());
        for path in ["policy", "full", "first_k:2", "mask:010110"] {
            server.classify(&format!("?path={path}"), png(30)).await;
            of_one.add(&one, &png(30), path);
        }
        server.classify_all("?model=other", &images).await;
        images.iter().for_each(|image| of_other.add(&other, image, "policy"));
        let at_once = images.iter().map(|image| server.classify("", image.clone()));
        futures_util::future::join_all(at_once).await;
        images.iter().for_each(|image| of_one.add(&one, image, "policy"));

        let shadow = |series: &Series, what: &str| -> f64 {
            let of = |model: &str| series.of(&format!("blockdrop_shadow_{what}_total{{model=\"{model}\"}}"));
            of("one") + of("other")
        };
        let agree = of_one.agree + of_other.agree;
        assert!(agree < of_one.skipped + of_other.skipped && of_one.skipped > 10 && of_other.skipped > 10);
        let found = if rate == "1" {
            let found = server.until(|series| shadow(series, "agree") == agree as f64).await;
            of_one.check_shadows(&found, "one");
            of_other.check_shadows(&found, "other");
            found
        } else {
            let found = server.metrics().await;
            let ran = found.values.iter().filter(|(series, value)| series.contains("_shadow_") && **value > 0.0);
            assert_eq!(ran.count(), 0);
            found
        };
        of_one.check(&found, "one");
        of_other.check(&found, "other");
        let by_policy = 41.0;
        assert_eq!((found.stage("backbone"), found.stage("policy")), (by_policy + 3.0, by_policy));
        assert_eq!(found.of("blockdrop_queue_depth"), 0.0);
    }
}

#[tokio::test]
async fn counters_are_exact() {
    let dir = written();
    let server = Server::start(dir.path(), &["--default-model", "one"]);
    let [one, other] = ["one/1", "other/1"].map(|model| Reference::load(&dir.path().join(model)));
    let (mut of_one, mut of_other) = (Expected::default(), Expected::default());
    let mut requests = 0.0;

    // Alone, several at once, and several in one request.
    for path in ["policy", "full", "first_k:2", "mask:010110"] {
        server.classify(&format!("?path={path}"), png(1)).await;
        of_one.add(&one, &png(1), path);
        requests += 1.0;
    }
    let images: Vec<Vec<u8>> = (0..20).map(png).collect();
    let at_once = images.iter().map(|image| server.classify("?model=one", image.clone()));
    futures_util::future::join_all(at_once).await;
    images.iter().for_each(|image| of_one.add(&one, image, "policy"));
    requests += 20.0;
    server.classify_all("?model=other", &images).await;
    images.iter().for_each(|image| of_other.add(&other, image, "policy"));
    requests += 1.0;
    let mut mixed = images[..3].to_vec();
    mixed.push(b"not an image".to_vec());
    server.classify_all("?model=other&path=full", &mixed).await;
    images[..3].iter().for_each(|image| of_other.add(&other, image, "full"));
    requests += 1.0;

    // An answer is counted before it leaves.
    let found = server.metrics().await;
    of_one.check(&found, "one");
    of_other.check(&found, "other");
    assert!(of_one.by_count.iter().filter(|count| **count > 0).count() > 2, "paths of different lengths");
    let all = (of_one.images + of_other.images) as f64;
    let by_policy = 41.0;
    for (stage, count) in
        [("decode", all), ("preprocess", all), ("queue", all), ("backbone", all), ("policy", by_policy)]
    {
        assert_eq!(found.stage(stage), count, "{stage}");
    }
    assert_eq!(found.code(200), requests);
    assert_eq!(found.of("blockdrop_request_duration_seconds_count{protocol=\"http\"}"), requests);
    assert_eq!(found.of("blockdrop_queue_depth"), 0.0);
    assert_eq!(found.of("blockdrop_inflight_requests"), 0.0);
    for reason in REASONS {
        assert_eq!(found.rejected(reason), 0.0, "{reason}");
    }
    for series in found.values.iter().filter(|(series, _)| series.starts_with("blockdrop_requests_total")) {
        assert!(series.0.contains("code=\"200\"") || *series.1 == 0.0, "{series:?}");
    }
    // Asking for metrics and health counts for nothing.
    server.get_admin("/readyz").await;
    assert_eq!(server.metrics().await.of("blockdrop_requests_total{code=\"200\",protocol=\"http\"}"), requests);
}

#[tokio::test]
async fn whatever_is_asked_makes_no_new_series() {
    let server = Server::start(written().path(), &["--default-model", "one"]);
    let names = |series: Series| series.values.into_keys().collect::<BTreeSet<String>>();
    let before = names(server.metrics().await);
    let requests = [
        (post("", "", &png(1)), 200),
        (post("?path=mask:100101", "x-request-id: 17\r\n", &png(1)), 200),
        (post("?top_k=0", "", &png(1)), 400),
        (post("", "", b""), 400),
        (post("?model=third", "", &png(1)), 404),
        (b"GET /nowhere/at/all HTTP/1.1\r\nhost: test\r\n\r\n".to_vec(), 404),
        (b"GET /v1/models/third HTTP/1.1\r\nhost: test\r\n\r\n".to_vec(), 404),
        (b"PATCH /v1/classify HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n".to_vec(), 405),
        (b"BREW /v1/models HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n".to_vec(), 405),
        (post("", "", b"not an image"), 415),
        (common::raw::head("", "content-length: 999999999\r\n"), 413),
    ];
    let mut counts = std::collections::BTreeMap::new();
    for (request, code) in requests {
        assert_eq!(ask(server.http, request).await.whole().status, code);
        *counts.entry(code).or_insert(0.0) += 1.0;
    }
    let after = server.metrics().await;
    for (code, count) in counts {
        assert_eq!(after.code(code), count, "{code}");
    }
    assert_eq!(names(after), before);
}

#[tokio::test]
async fn promtool_finds_nothing_wrong() {
    let server = Server::start(written().path(), &["--default-model", "one"]);
    server.classify_all("", &(0..5).map(png).collect::<Vec<_>>()).await;
    let text = server.metrics_text().await;
    let started =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut promtool = match started {
        Ok(promtool) => promtool,
        Err(error) => {
            let missing = format!("promtool cannot be run ({error}); it is in Debian's package prometheus");
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("NOT CHECKED: {missing}");
            return;
        }
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
