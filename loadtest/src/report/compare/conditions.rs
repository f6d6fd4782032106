//! What conditions on a comparison can be about.

use super::{ArmComparison, Change};
use crate::objective::{self, Kind, Vocabulary};
use crate::record::Counts;

/// A condition on which a comparison fails: `policy.throughput_ratio<0.95`, `accuracy_change<-0.5%`.
pub type Condition = objective::Condition<Metric>;

/// Of an arm in both reports. Ratios are new to old, changes new less old, of shares from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Of images in a second.
    Throughput(End),
    /// Of requests answered in time in a second.
    Goodput,
    P50(End),
    P95(End),
    P99(End),
    /// Of the mean blocks kept.
    Blocks,
    /// Of the mean FLOPs.
    Flops,
    /// Of the highest rates within the objective.
    Capacity,
    AccuracyChange,
    /// Of the shares of requests sent.
    RefusedChange,
    FailedChange,
    TimedOutChange,
    /// Failed or timed out.
    ErrorsChange,
    /// Of the share of images whose answer differs from the first one.
    ChangedChange,
}

/// The ratio, or an end of its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Value,
    Low,
    High,
}

impl Vocabulary for Metric {
    const ALL: &'static [(&'static str, Self)] = &[
        ("throughput_ratio", Self::Throughput(End::Value)),
        ("throughput_ratio.low", Self::Throughput(End::Low)),
        ("throughput_ratio.high", Self::Throughput(End::High)),
        ("goodput_ratio", Self::Goodput),
        ("p50_ratio", Self::P50(End::Value)),
        ("p50_ratio.low", Self::P50(End::Low)),
        ("p50_ratio.high", Self::P50(End::High)),
        ("p95_ratio", Self::P95(End::Value)),
        ("p95_ratio.low", Self::P95(End::Low)),
        ("p95_ratio.high", Self::P95(End::High)),
        ("p99_ratio", Self::P99(End::Value)),
        ("p99_ratio.low", Self::P99(End::Low)),
        ("p99_ratio.high", Self::P99(End::High)),
        ("blocks_ratio", Self::Blocks),
        ("flops_ratio", Self::Flops),
        ("capacity_ratio", Self::Capacity),
        ("accuracy_change", Self::AccuracyChange),
        ("refused_change", Self::RefusedChange),
        ("failed_change", Self::FailedChange),
        ("timed_out_change", Self::TimedOutChange),
        ("errors_change", Self::ErrorsChange),
        ("changed_change", Self::ChangedChange),
    ];

    fn kind(self) -> Kind {
        Kind::Share
    }
}

impl Metric {
    /// The value, or why there is none.
    pub(super) fn read(self, arm: &ArmComparison) -> Result<f64, String> {
        let sent = |of: fn(&Counts) -> u64| {
            let [old, new] = arm.counts.map(|counts| share(of(&counts), counts.sent));
            old.zip(new).map(|(old, new)| new - old).ok_or_else(|| "a run sent no request".to_owned())
        };
        match self {
            Self::Throughput(end) => ratio(arm.throughput, end),
            Self::Goodput => ratio(arm.goodput, End::Value),
            Self::P50(end) => ratio(arm.p50, end),
            Self::P95(end) => ratio(arm.p95, end),
            Self::P99(end) => ratio(arm.p99, end),
            Self::Blocks => ratio(arm.blocks, End::Value),
            Self::Flops => ratio(arm.flops, End::Value),
            Self::Capacity => ratio(arm.capacity, End::Value),
            Self::AccuracyChange => match arm.accuracy {
                Some(change) => Ok(change.new - change.old),
                None => Err("not in both reports".to_owned()),
            },
            Self::RefusedChange => sent(|counts| counts.refused),
            Self::FailedChange => sent(|counts| counts.failed),
            Self::TimedOutChange => sent(|counts| counts.timed_out),
            Self::ErrorsChange => sent(|counts| counts.failed + counts.timed_out),
            Self::ChangedChange => {
                let [old, new] = [0, 1].map(|at| share(arm.changed[at], arm.images[at]));
                old.zip(new).map(|(old, new)| new - old).ok_or_else(|| "a run had no image answered".to_owned())
            }
        }
    }
}

fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

fn ratio(change: Option<Change>, end: End) -> Result<f64, String> {
    let change = change.ok_or("not in both reports")?;
    let ratio = change.ratio.ok_or("it was 0 in the old report")?;
    let interval = || change.interval.ok_or_else(|| "too few rounds for an interval".to_owned());
    match end {
        End::Value => Ok(ratio),
        End::Low => Ok(interval()?.0),
        End::High => Ok(interval()?.1),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::made_up;
    use super::super::compare;
    use super::*;

    #[test]
    fn every_metric_of_a_full_report_is_known() {
        let (old, mut new) = (made_up::full(), made_up::full());
        new.arms[1].counts.failed += 375;
        new.arms[1].counts.answered -= 375;
        let comparison = compare(&old, &new);
        for (name, metric) in Metric::ALL {
            let value = metric.read(&comparison.arms[1]).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert!(value.is_finite());
            assert_eq!(metric.name(), *name);
        }
        let errors = Metric::ErrorsChange.read(&comparison.arms[1]).unwrap();
        assert!((errors - 0.01).abs() < 1e-4, "{errors}");
    }

    #[test]
    fn a_change_may_be_negative() {
        let condition: Condition = "policy.accuracy_change<-0.5%".parse().unwrap();
        assert_eq!((condition.metric, condition.value), (Metric::AccuracyChange, -0.005));
        let error = "policy.p99>1ms".parse::<Condition>().unwrap_err().to_string();
        assert!(error.contains("\"p99\" is no metric; known are throughput_ratio"), "{error}");
    }
}
