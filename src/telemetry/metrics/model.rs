//! What one model counts.

use std::time::{Duration, Instant};

use prometheus::{Counter, Histogram, IntCounter, IntGauge};

use super::labels::Dropped;
use crate::engine::{Answer, PathMetrics};
use crate::policy::Costs;
use crate::telemetry::kept::Kept;
use crate::telemetry::policy::Decided;

/// The series of one model.
pub struct ModelMetrics {
    pub(super) images: IntCounter,
    pub(super) blocks_kept: Kept,
    pub(super) decided: Decided,
    pub(super) kept: Vec<IntCounter>,
    pub(super) dropped: Vec<IntCounter>,
    pub(super) flops_executed: Counter,
    pub(super) flops_policy: Counter,
    pub(super) flops_full: Counter,
    pub(super) batch_size: Histogram,
    pub(super) mixed_batches: IntCounter,
    pub(super) policy: Histogram,
    pub(super) backbone: Histogram,
    pub(super) shadow_runs: IntCounter,
    pub(super) shadow_agree: IntCounter,
    pub(super) shadow_path: Counter,
    pub(super) shadow_full: Counter,
    pub(super) shadow_dropped: [IntCounter; Dropped::ALL.len()],
    pub(super) ready: IntGauge,
    pub(super) queue_full: IntCounter,
    pub(super) started: Instant,
    /// For the engine to count its compiled paths.
    pub paths: PathMetrics,
}

/// What a model's images came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counts {
    pub images: u64,
    /// Of all images together, as the FLOPs are.
    pub blocks_kept: u64,
    pub flops_executed: u64,
    pub flops_policy: u64,
    pub flops_full: u64,
    /// When they were zero.
    pub since: Instant,
}

impl ModelMetrics {
    /// Counts an image that was run; whether its path is the policy's `own` decision.
    pub fn answered(&self, costs: &Costs, answer: &Answer, own: bool) {
        self.images.inc();
        self.blocks_kept.observe(answer.mask.kept());
        for ((keep, kept), dropped) in answer.mask.iter().zip(&self.kept).zip(&self.dropped) {
            if keep { kept.inc() } else { dropped.inc() }
        }
        self.flops_executed.inc_by(costs.executed(&answer.mask) as f64);
        self.flops_full.inc_by(costs.full() as f64);
        if own {
            self.decided.own(&answer.mask);
        }
        if answer.brownout.is_some() {
            self.decided.brownout();
        }
        if answer.policy_ran {
            self.flops_policy.inc_by(costs.policy as f64);
            self.policy.observe(answer.policy.as_secs_f64());
        }
        self.backbone.observe(answer.backbone.as_secs_f64());
    }

    /// What the images so far came to.
    pub fn counts(&self) -> Counts {
        // The counters are floating point, as Prometheus has it, of whole numbers.
        let whole = |value: f64| value as u64;
        Counts {
            images: self.images.get(),
            blocks_kept: self.blocks_kept.sum(),
            flops_executed: whole(self.flops_executed.get()),
            flops_policy: whole(self.flops_policy.get()),
            flops_full: whole(self.flops_full.get()),
            since: self.started,
        }
    }

    /// Counts an image that ran again: what policy and path took, what the full net took, whether it names the class that
    /// was answered.
    pub fn shadow(&self, path: Duration, full: Duration, agree: bool) {
        self.shadow_path.inc_by(path.as_secs_f64());
        self.shadow_full.inc_by(full.as_secs_f64());
        // Shown in the order of their names: never more that agree than that ran.
        self.shadow_runs.inc();
        self.shadow_agree.inc_by(agree.into());
    }

    pub fn shadow_dropped(&self, reason: Dropped) {
        self.shadow_dropped[reason as usize].inc();
    }

    /// Counts a batch of images with so many different masks.
    pub fn batch(&self, images: usize, masks: usize) {
        self.batch_size.observe(images as f64);
        if masks > 1 {
            self.mixed_batches.inc();
        }
    }

    /// Counts a request that was refused since as many of the model's images waited as may.
    pub fn queue_full(&self) {
        self.queue_full.inc();
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.set(ready.into());
    }
}
