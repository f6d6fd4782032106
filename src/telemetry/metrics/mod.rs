//! Prometheus metrics. Every series is there, at zero, before the first request.

mod labels;
mod model;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use labels::{Closed, Dropped, Rejected, Stage};
pub use model::{Counts, ModelMetrics};

use super::kept::KeptBlocks;
use super::policy::Decisions;
use super::workers::Workers;
use crate::engine::PathMetrics;

/// 0.5 ms to 2 s, and finer below for tiny networks.
const SECONDS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

const BATCHES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Every status that the HTTP side answers with.
const HTTP_CODES: [&str; 12] = ["200", "400", "401", "404", "405", "408", "413", "415", "499", "500", "503", "504"];

/// Every status that the gRPC side answers with.
const GRPC_CODES: [&str; 12] = [
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
];

/// The connections of one listener.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    pub open: IntGauge,
    closed: [IntCounter; Closed::ALL.len()],
}

impl ConnectionMetrics {
    pub fn closed(&self, reason: Closed) {
        self.closed[reason as usize].inc();
    }
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    stages: [Histogram; Stage::ALL.len()],
    rejected: [IntCounter; Rejected::ALL.len()],
    images: IntCounterVec,
    block_kept: IntCounterVec,
    block_dropped: IntCounterVec,
    flops: [CounterVec; 3],
    batch_size: HistogramVec,
    mixed_batches: IntCounterVec,
    /// Hits, misses, evictions, failures.
    path_cache: [IntCounterVec; 4],
    path_cache_bytes: IntGaugeVec,
    /// Runs, agreements.
    shadow: [IntCounterVec; 2],
    /// Of policy and path, of the full net.
    shadow_seconds: [CounterVec; 2],
    shadow_dropped: IntCounterVec,
    blocks_kept: KeptBlocks,
    decisions: Decisions,
    model_ready: IntGaugeVec,
    model_queue_full: IntCounterVec,
    /// Taken over, refused.
    reloads: [IntCounter; 2],
    models: Mutex<HashMap<String, Arc<ModelMetrics>>>,
    started: Instant,
    connections: IntGaugeVec,
    connections_closed: IntCounterVec,
    /// Images admitted whose path does not run yet.
    pub queue_depth: IntGauge,
    /// How many of these there may be.
    pub queue_limit: IntGauge,
    /// Requests being answered.
    pub inflight: IntGauge,
    /// Threads that run images.
    pub workers: Workers,
    /// Models whose directory was refused when it was last read.
    pub models_refused: IntGauge,
}

/// Counts a request as being answered until it is dropped.
pub struct Entered(IntGauge);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All metrics at zero; `provider` and `runtime` say what ONNX Runtime really runs on, and its version.
    pub fn new(provider: &str, runtime: &str) -> Self {
        let registry = Registry::new();
        let put = |collector: Box<dyn Collector>| registry.register(collector).expect("each name is registered once");
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            put(Box::new(counters.clone()));
            counters
        };
        let totals = |name: &str, help: &str| {
            let totals = CounterVec::new(Opts::new(name, help), &["model"]).expect("a valid name");
            put(Box::new(totals.clone()));
            totals
        };
        let histograms = |name: &str, help: &str, label: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histograms = HistogramVec::new(options, &[label]).expect("valid buckets");
            put(Box::new(histograms.clone()));
            histograms
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            put(Box::new(gauge.clone()));
            gauge
        };

        let requests = counters("blockdrop_requests_total", "Requests answered.", &["protocol", "code"]);
        HTTP_CODES.iter().for_each(|code| drop(requests.with_label_values(&["http", code])));
        GRPC_CODES.iter().for_each(|code| drop(requests.with_label_values(&["grpc", code])));
        let request_duration = histograms(
            "blockdrop_request_duration_seconds",
            "Time from a request's head to its answer.",
            "protocol",
            &SECONDS,
        );
        ["http", "grpc"].iter().for_each(|protocol| drop(request_duration.with_label_values(&[protocol])));
        let stages =
            histograms("blockdrop_stage_duration_seconds", "Time that an image spent in a stage.", "stage", &SECONDS);
        let rejected = counters(
            "blockdrop_rejected_total",
            "Requests turned away (unauthenticated, queue_full, connection_full, model_queue_full, too_late, memory, shutting_down) and images given up (deadline, cancelled).",
            &["reason"],
        );
        let gauges = |name: &str, help: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["model"]).expect("a valid name");
            put(Box::new(gauges.clone()));
            gauges
        };
        let connections =
            IntGaugeVec::new(Opts::new("blockdrop_connections", "Connections that are open."), &["listener"])
                .expect("a valid name");
        put(Box::new(connections.clone()));
        let reloads = counters(
            "blockdrop_model_reloads_total",
            "Models whose directory was read anew, by SIGHUP or by hand: taken over (ok), or refused while what was served is served on (refused).",
            &["result"],
        );
        let blocks_kept = KeptBlocks::new("blockdrop_blocks_kept", "Blocks kept for an image.");
        put(Box::new(blocks_kept.clone()));
        let workers = Workers::new();
        put(Box::new(workers.clone()));
        let info = Opts::new("blockdrop_build_info", "Always 1; the labels say what runs.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("provider", provider)
            .const_label("runtime", runtime);
        let info = IntGauge::with_opts(info).expect("a valid name");
        info.set(1);
        put(Box::new(info));
        #[cfg(target_os = "linux")]
        put(Box::new(prometheus::process_collector::ProcessCollector::for_self()));

        Self {
            stages: Stage::ALL.map(|stage| stages.with_label_values(&[stage.name()])),
            rejected: Rejected::ALL.map(|reason| rejected.with_label_values(&[reason.name()])),
            images: counters("blockdrop_images_total", "Images answered.", &["model"]),
            block_kept: counters("blockdrop_block_kept_total", "Images that kept a block.", &["model", "block"]),
            block_dropped: counters(
                "blockdrop_block_dropped_total",
                "Images that dropped a block.",
                &["model", "block"],
            ),
            flops: [
                totals("blockdrop_flops_executed_total", "FLOPs of the paths that ran, without the policy."),
                totals("blockdrop_flops_policy_total", "FLOPs of the policy network."),
                totals("blockdrop_flops_full_total", "FLOPs that the full net would have taken for the same images."),
            ],
            batch_size: histograms("blockdrop_batch_size", "Images that ran together.", "model", &BATCHES),
            mixed_batches: counters(
                "blockdrop_mixed_batches_total",
                "Batches of images with different masks.",
                &["model"],
            ),
            path_cache: [
                ("hits", "Groups of images that ran a compiled path."),
                ("misses", "Groups of images that ran without a compiled path, for want of an idle one."),
                ("evictions", "Compiled paths dropped to make room for others."),
                ("failures", "Paths that could not be compiled, whose images run without."),
            ]
            .map(|(what, help)| counters(&format!("blockdrop_path_cache_{what}_total"), help, &["model"])),
            path_cache_bytes: gauges(
                "blockdrop_path_cache_bytes",
                "Memory of the compiled paths, about, without the weights that they share.",
            ),
            shadow: [
                counters(
                    "blockdrop_shadow_runs_total",
                    "Images that ran again alone after their answer, by policy and path and by the full net (--shadow-rate).",
                    &["model"],
                ),
                counters(
                    "blockdrop_shadow_agree_total",
                    "Images among blockdrop_shadow_runs_total for which the full net names the class that was answered.",
                    &["model"],
                ),
            ],
            shadow_seconds: [
                totals(
                    "blockdrop_shadow_path_seconds_total",
                    "Time that policy and path took for the images of blockdrop_shadow_runs_total, each alone.",
                ),
                totals(
                    "blockdrop_shadow_full_seconds_total",
                    "Time that the full net as one graph took for the images of blockdrop_shadow_runs_total, each alone.",
                ),
            ],
            shadow_dropped: counters(
                "blockdrop_shadow_dropped_total",
                "Images drawn for a shadow that ran none: too many waited (full), the full net was not idle as one graph (no_graph), a run failed (failed).",
                &["model", "reason"],
            ),
            blocks_kept,
            decisions: Decisions::new(put),
            model_ready: gauges("blockdrop_model_ready", "1 where a model is loaded and warm."),
            connections,
            connections_closed: counters(
                "blockdrop_connections_closed_total",
                "Connections that the server closed: as many were open as may be (limit), or the client did not take an answer in time (untaken).",
                &["listener", "reason"],
            ),
            model_queue_full: counters(
                "blockdrop_model_queue_full_total",
                "Requests refused since as many images of their model waited as may (--max-queue-per-model, --model-limit).",
                &["model"],
            ),
            reloads: ["ok", "refused"].map(|result| reloads.with_label_values(&[result])),
            models_refused: gauge(
                "blockdrop_models_refused",
                "Models whose directory was refused when it was last read: what is served of them is older, or nothing.",
            ),
            queue_depth: gauge("blockdrop_queue_depth", "Images admitted whose path does not run yet."),
            queue_limit: gauge("blockdrop_queue_limit", "Images that may be admitted and wait (--max-queue)."),
            inflight: gauge("blockdrop_inflight_requests", "Requests being answered."),
            workers,
            requests,
            request_duration,
            models: Mutex::new(HashMap::new()),
            started: Instant::now(),
            registry,
        }
    }

    /// The series of the model called `name`, of at least `blocks` blocks. They are the same ones, and go on counting,
    /// whenever and for however many blocks they are asked for.
    pub fn model(&self, name: &str, blocks: usize) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(name)
            && model.kept.len() >= blocks
        {
            return Arc::clone(model);
        }
        let each = |counters: &IntCounterVec| {
            (0..blocks).map(|block| counters.with_label_values(&[name, &block.to_string()])).collect()
        };
        let [hits, misses, evictions, failures] = self.path_cache.each_ref().map(|of| of.with_label_values(&[name]));
        let bytes = self.path_cache_bytes.with_label_values(&[name]);
        let [shadow_runs, shadow_agree] = self.shadow.each_ref().map(|of| of.with_label_values(&[name]));
        let [shadow_path, shadow_full] = self.shadow_seconds.each_ref().map(|of| of.with_label_values(&[name]));
        let dropped = |reason: Dropped| self.shadow_dropped.with_label_values(&[name, reason.name()]);
        let model = Arc::new(ModelMetrics {
            paths: PathMetrics { hits, misses, evictions, failures, bytes },
            images: self.images.with_label_values(&[name]),
            blocks_kept: self.blocks_kept.model(name, blocks),
            decided: self.decisions.model(name),
            kept: each(&self.block_kept),
            dropped: each(&self.block_dropped),
            flops_executed: self.flops[0].with_label_values(&[name]),
            flops_policy: self.flops[1].with_label_values(&[name]),
            flops_full: self.flops[2].with_label_values(&[name]),
            batch_size: self.batch_size.with_label_values(&[name]),
            mixed_batches: self.mixed_batches.with_label_values(&[name]),
            policy: self.stages[Stage::Policy as usize].clone(),
            backbone: self.stages[Stage::Backbone as usize].clone(),
            shadow_runs,
            shadow_agree,
            shadow_path,
            shadow_full,
            shadow_dropped: Dropped::ALL.map(dropped),
            ready: self.model_ready.with_label_values(&[name]),
            queue_full: self.model_queue_full.with_label_values(&[name]),
            started: self.started,
        });
        models.insert(name.to_owned(), Arc::clone(&model));
        model
    }

    /// How far brownout raises the keep thresholds, from 0 to 1.
    pub fn brownout_level(&self) -> Gauge {
        self.decisions.level.clone()
    }

    /// The series of the listener called `name`.
    pub fn listener(&self, name: &str) -> ConnectionMetrics {
        let closed = |reason: Closed| self.connections_closed.with_label_values(&[name, reason.name()]);
        ConnectionMetrics { open: self.connections.with_label_values(&[name]), closed: Closed::ALL.map(closed) }
    }

    /// Connections of all listeners.
    pub fn open_connections(&self) -> i64 {
        ["http", "grpc", "admin"].iter().map(|name| self.connections.with_label_values(&[name]).get()).sum()
    }

    /// Says no more that the model called `name` is not ready: there is none of that name. Its counts stay, and go on if
    /// there is one again.
    pub fn gone(&self, name: &str) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.remove(name);
        drop(self.model_ready.remove_label_values(&[name])); // it may never have been there
    }

    /// Counts an answered request, over gRPC an answered message. A code that no route answers with is counted as 400,
    /// so that labels stay bounded; over gRPC as `INVALID_ARGUMENT`.
    pub fn request(&self, protocol: &str, code: &str, took: Duration) {
        let (codes, other): (&[&str], _) =
            if protocol == "grpc" { (&GRPC_CODES, "INVALID_ARGUMENT") } else { (&HTTP_CODES, "400") };
        let code = codes.iter().find(|known| **known == code).unwrap_or(&other);
        self.requests.with_label_values(&[protocol, code]).inc();
        self.request_duration.with_label_values(&[protocol]).observe(took.as_secs_f64());
    }

    /// Counts a request that is being answered from now on.
    pub fn enter(&self) -> Entered {
        self.inflight.inc();
        Entered(self.inflight.clone())
    }

    pub fn stage(&self, stage: Stage, took: Duration) {
        self.stages[stage as usize].observe(took.as_secs_f64());
    }

    pub fn reject(&self, reason: Rejected) {
        self.rejected[reason as usize].inc();
    }

    /// Counts a model whose directory was read anew: `ok`, or refused.
    pub fn reloaded(&self, ok: bool) {
        self.reloads[usize::from(!ok)].inc();
    }

    /// The text format of Prometheus.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory cannot fail");
        text
    }
}
