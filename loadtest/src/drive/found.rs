//! What a run found, and what a report says of it.

use super::track::{Rounds, Series};
use crate::plan::Plan;
use crate::record::{Stages, Tally};
use crate::report::{ArmReport, Interval, Quantiles, Ramp, Ratio};
use crate::stats::{Compared, Sample, compare};

/// What a run found.
#[derive(Debug, Clone)]
pub struct Driven {
    pub(super) arms: Vec<Found>,
    pub ramp: Option<Ramp>,
    /// For each arm of a ramp the rates, and the highest one that each arm held before it missed.
    pub(super) climbs: Vec<Climb>,
    /// From the first request, warm-up included, to the last answer.
    pub seconds: f64,
    /// Stopped before its time.
    pub interrupted: bool,
}

/// What an arm came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) tally: Tally,
    pub(super) peak: Option<f64>,
    pub(super) rounds: Rounds,
    pub(super) series: Series,
}

/// How far an arm came in a ramp.
#[derive(Debug, Clone, Default)]
pub(super) struct Climb {
    /// The rates that it held, in order, with the rounds there.
    pub(super) held: Vec<(f64, Rounds)>,
    /// The highest rate that it held and the lowest that it missed.
    pub(super) best: Option<f64>,
    pub(super) missed: Option<f64>,
}

/// 0 where there was no time.
pub(super) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl Driven {
    /// A report for each arm, in the plan's order, without what the server says it is.
    pub fn arms(&self, plan: &Plan) -> Vec<ArmReport> {
        plan.arms.iter().zip(&self.arms).map(|(arm, found)| found.report(&arm.name)).collect()
    }

    /// Of each arm but the baseline to the baseline, where both answered something in [`crate::stats::FEWEST`] rounds.
    ///
    /// Of a ramp the latencies are compared at the rates that both held, and the throughput is the ratio of the highest
    /// of these; its interval goes from what is certain to be held and missed by the one to what is by the other. An arm
    /// that held the last rate of the ramp could do more, so its ratio is a bound.
    pub fn ratios(&self, plan: &Plan) -> Vec<Ratio> {
        (0..self.arms.len()).filter(|arm| *arm != plan.baseline).filter_map(|arm| self.ratio(arm, plan)).collect()
    }

    fn ratio(&self, arm: usize, plan: &Plan) -> Option<Ratio> {
        let (ours, theirs) = (self.arms.get(arm)?, self.arms.get(plan.baseline)?);
        let (samples, capacity) = if self.ramp.is_some() {
            let (ours, theirs) = (self.climbs.get(arm)?, self.climbs.get(plan.baseline)?);
            (ours.paired(theirs), Some(ours.over(theirs)?))
        } else {
            (ours.rounds.paired(&theirs.rounds), None)
        };
        let Compared { throughput, p50, p95, p99 } = compare(&samples.0, &samples.1, plan.seed)?;
        let flops = |tally: &Tally| (tally.flops_spent > 0.0).then(|| tally.flops_spent / tally.counted as f64);
        Some(Ratio {
            arm,
            throughput: capacity.unwrap_or(throughput),
            p50,
            p95,
            p99,
            flops: flops(&ours.tally).zip(flops(&theirs.tally)).map(|(ours, theirs)| ours / theirs),
            capacity: capacity.map(|capacity| capacity.value),
        })
    }
}

impl Climb {
    /// The rounds at rates that both held.
    fn paired(&self, other: &Self) -> (Vec<Sample>, Vec<Sample>) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (rate, rounds) in &self.held {
            if let Some((_, others)) = other.held.iter().find(|held| held.0 == *rate) {
                let (one, another) = rounds.paired(others);
                ours.extend(one);
                theirs.extend(another);
            }
        }
        (ours, theirs)
    }

    /// The highest rate over another's.
    fn over(&self, other: &Self) -> Option<Interval> {
        let (ours, theirs) = (self.best?, other.best?);
        Some(Interval {
            value: ours / theirs,
            low: ours / other.missed.unwrap_or(theirs),
            high: self.missed.unwrap_or(ours) / theirs,
        })
    }
}

impl Found {
    fn report(&self, name: &str) -> ArmReport {
        let tally = self.tally.clone();
        let mean = |sum: f64, count: u64| sum / count.max(1) as f64;
        ArmReport {
            name: name.to_owned(),
            server: String::new(),
            counts: tally.counts,
            good: tally.good,
            in_time: tally.in_time,
            seconds: tally.seconds,
            throughput: per_second(tally.images, tally.seconds),
            goodput: per_second(tally.in_time, tally.seconds),
            peak: self.peak,
            flops: (tally.counted > 0)
                .then(|| (mean(tally.flops_spent, tally.counted), mean(tally.flops_full, tally.counted))),
            stages: (tally.timed > 0).then(|| Stages {
                decode: mean(tally.stages.decode, tally.timed),
                preprocess: mean(tally.stages.preprocess, tally.timed),
                queue: mean(tally.stages.queue, tally.timed),
                policy: mean(tally.stages.policy, tally.timed),
                backbone: mean(tally.stages.backbone, tally.timed),
                total: mean(tally.stages.total, tally.timed),
            }),
            quantiles: Quantiles::from(&tally.latency),
            latency: tally.latency,
            service: tally.service,
            delay: tally.delay,
            refusal: tally.refusal,
            images: tally.images,
            labelled: tally.labelled,
            correct: tally.correct,
            changed: tally.changed,
            blocks: tally.blocks,
            by_blocks: tally.by_blocks,
            causes: tally.causes,
            rounds: self.rounds.report(),
            series: self.series.report(),
        }
    }
}
