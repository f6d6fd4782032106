//! What a run found: written as JSON, drawn as a page, printed as tables, compared with another.

pub mod compare;
mod file;
pub mod html;
#[cfg(test)]
mod made_up;
pub mod table;
pub mod terminal;
mod verdict;
mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::latencies::Latencies;
use crate::plan::Plan;
use crate::record::{Counts, Stages};

pub use file::Unreadable;
pub use verdict::judge;

/// Of the JSON. Rises when a reader of the old one would misread the new one.
pub const SCHEMA: u32 = 1;

/// A run and what it found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    /// Version of the harness.
    pub harness: String,
    /// RFC 3339, UTC.
    pub started: String,
    /// From the first request, warm-up included, to the last answer.
    pub seconds: f64,
    pub machine: Machine,
    pub plan: Plan,
    /// In the plan's order.
    pub arms: Vec<ArmReport>,
    /// Of each arm but the baseline to the baseline.
    pub ratios: Vec<Ratio>,
    pub ramp: Option<Ramp>,
    /// In the order of [`Plan::fail_if`].
    pub verdicts: Vec<Verdict>,
    /// Ended by a signal before its time.
    pub interrupted: bool,
}

/// Where the harness ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub system: String,
}

/// What an arm came to. Of a ramp: at the highest rate that it held, or at the lowest that it tried where it held none; its
/// rounds and its series are those of all rates.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArmReport {
    pub name: String,
    /// What the server says it is, where it says so: `blockdrop 0.1.0, cifar10-resnet32 version 1`.
    pub server: String,
    pub counts: Counts,
    /// Requests that carried good images, to which an answer is due.
    pub good: u64,
    /// Answers within the objective, or the timeout.
    pub in_time: u64,
    /// Under load.
    pub seconds: f64,
    /// Images answered in a second.
    pub throughput: f64,
    /// Requests answered in time in a second.
    pub goodput: f64,
    /// Overload: requests answered in a second by the closed load before.
    pub peak: Option<f64>,
    /// Microseconds, from due to answered. A request that timed out counts with the timeout, so that an objective is not
    /// met by leaving requests unanswered.
    pub latency: Latencies,
    /// Of `latency`.
    pub quantiles: Quantiles,
    /// From sent to answered.
    pub service: Latencies,
    /// From due to sent.
    pub delay: Latencies,
    /// From due to refused.
    pub refusal: Latencies,
    pub images: u64,
    pub labelled: u64,
    pub correct: u64,
    pub changed: u64,
    pub blocks: BTreeMap<u16, u64>,
    pub by_blocks: BTreeMap<u16, Latencies>,
    /// Mean FLOPs of an image, policy included, and of the full net; absent where no answer told them.
    pub flops: Option<(f64, f64)>,
    /// Mean milliseconds that an image spent in each stage; absent where no answer told them.
    pub stages: Option<Stages>,
    /// How many, and the first message, by kind.
    pub causes: BTreeMap<String, (u64, String)>,
    /// The arm's turns, in order.
    pub rounds: Vec<Round>,
    /// Of the whole run, warm-up left out; seconds in which the arm was not under load are not in it.
    pub series: Vec<Second>,
}

/// Milliseconds below which so many percent of the latencies lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

impl From<&Latencies> for Quantiles {
    fn from(of: &Latencies) -> Self {
        let [p50, p90, p95, p99, p999] = [0.5, 0.9, 0.95, 0.99, 0.999].map(|at| of.quantile(at));
        Self { p50, p90, p95, p99, p999, max: of.max(), mean: of.mean() }
    }
}

/// One turn of an arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// Since the start.
    pub at: f64,
    pub seconds: f64,
    /// Images answered in a second.
    pub throughput: f64,
    /// Requests that the latencies count: answered, or timed out.
    pub answered: u64,
    /// Milliseconds.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// What was due in a second of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Second {
    /// Whole seconds since the start.
    pub at: u64,
    pub counts: Counts,
    /// Answers that came in it, whenever they were due.
    pub came: u64,
    /// Milliseconds; 0 where none was answered.
    pub p50: f64,
    pub p99: f64,
}

/// A value and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    #[serde(deserialize_with = "or_nan")]
    pub value: f64,
    #[serde(deserialize_with = "or_nan")]
    pub low: f64,
    #[serde(deserialize_with = "or_nan")]
    pub high: f64,
}

/// JSON has no word for what is no number (the ratio to an arm that answered nothing) but null.
fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// An arm over the baseline: above 1 is more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ratio {
    pub arm: usize,
    pub throughput: Interval,
    pub p50: Interval,
    pub p95: Interval,
    pub p99: Interval,
    /// Of the mean FLOPs.
    pub flops: Option<f64>,
    /// Of the highest rates that met the objective; of a ramp only.
    pub capacity: Option<f64>,
}

/// What a ramp found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ramp {
    /// In the order in which they were tried.
    pub steps: Vec<Step>,
    /// For each arm the highest rate that met the objective.
    pub best: Vec<Option<f64>>,
}

/// An arm at a rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    pub arm: usize,
    /// Requests due in a second.
    pub rate: f64,
    /// Requests answered in a second.
    pub achieved: f64,
    pub counts: Counts,
    /// Milliseconds.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    /// The objective was met, at least 99 % of the requests were answered, and latencies did not rise through the turn.
    pub held: bool,
}

/// Whether a condition of [`Plan::fail_if`] came true.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    pub condition: String,
    /// The condition holds, so the run failed.
    pub failed: bool,
    /// What was found, in words: `policy.p99 is 23.1ms`.
    pub found: String,
}

impl ArmReport {
    /// 0 to 1, of the images with a label; `None` without any.
    pub fn accuracy(&self) -> Option<f64> {
        (self.labelled > 0).then(|| self.correct as f64 / self.labelled as f64)
    }

    /// Blocks kept, the mean over images; `None` where no answer told them.
    pub fn mean_blocks(&self) -> Option<f64> {
        let images: u64 = self.blocks.values().sum();
        let kept: u64 = self.blocks.iter().map(|(&blocks, &images)| u64::from(blocks) * images).sum();
        (images > 0).then(|| kept as f64 / images as f64)
    }

    /// FLOPs to those of the full net.
    pub fn flops_share(&self) -> Option<f64> {
        self.flops.filter(|(_, full)| *full > 0.0).map(|(spent, full)| spent / full)
    }

    /// Milliseconds by which the harness itself was late at the 99th percentile, where that is so much that the latencies
    /// say as much of the harness (or of too few connections) as of the server: more than 1 ms or a tenth of the p50.
    pub fn held_up(&self) -> Option<f64> {
        let late = self.delay.quantile(0.99);
        let much = late > 1.0 || late > self.latency.quantile(0.5) / 10.0;
        (much && !self.delay.is_empty() && !self.latency.is_empty()).then_some(late)
    }
}
