//! Whether a condition of the plan came true.

use super::words::{amount, latency, plain, share};
use super::{ArmReport, Ratio, Report, Verdict};
use crate::objective::{Condition, Kind, Metric, Vocabulary};

/// Judges a condition. One on a value that the report does not have, or on an arm that it does not have, fails the run.
pub fn judge(condition: &Condition, report: &Report) -> Verdict {
    let (failed, found) = match asked(condition, report) {
        Ok(arms) => weigh(condition, &arms.map(|arm| (&*report.arms[arm].name, read(condition, report, arm)))),
        Err(why) => (true, why),
    };
    Verdict { condition: condition.text.clone(), failed, found }
}

/// The arms that a condition is about.
struct Asked(Vec<usize>);

impl Asked {
    fn map<T>(&self, read: impl Fn(usize) -> T) -> Vec<T> {
        self.0.iter().map(|&arm| read(arm)).collect()
    }
}

fn asked(condition: &Condition, report: &Report) -> Result<Asked, String> {
    let baseline = report.plan.baseline;
    match &condition.arm {
        Some(name) => match report.arms.iter().position(|arm| arm.name == *name) {
            Some(arm) => Ok(Asked(vec![arm])),
            None => {
                let names: Vec<_> = report.arms.iter().map(|arm| &*arm.name).collect();
                Err(format!("there is no arm {name:?}; the arms are {}", names.join(", ")))
            }
        },
        None => {
            let arms: Vec<_> =
                (0..report.arms.len()).filter(|&arm| !condition.metric.relative() || arm != baseline).collect();
            if arms.is_empty() {
                return Err(format!("{} is not known: there is no arm beside the baseline", condition.metric.name()));
            }
            Ok(Asked(arms))
        }
    }
}

/// Whether the condition holds for one of the values, and what was found: those for which it holds, else all.
pub(super) fn weigh<M: Vocabulary>(condition: &Condition<M>, values: &[(&str, Result<f64, String>)]) -> (bool, String) {
    let (mut failing, mut rest) = (Vec::new(), Vec::new());
    for (arm, value) in values {
        let subject = format!("{arm}.{}", condition.metric.name());
        match value {
            Ok(value) => {
                let said = format!("{subject} is {}", written(condition.metric.kind(), condition.share, *value));
                if condition.op.holds(*value, condition.value) { failing.push(said) } else { rest.push(said) }
            }
            Err(why) => failing.push(format!("{subject} is not known: {why}")),
        }
    }
    let failed = !failing.is_empty();
    (failed, if failed { failing } else { rest }.join(", "))
}

fn written(kind: Kind, counted: bool, value: f64) -> String {
    match kind {
        Kind::Latency => format!("{}ms", latency(value)),
        Kind::Rate => plain(value),
        Kind::Count if counted => share(value),
        Kind::Count => amount(value as u64),
        Kind::Share => format!("{value:.4}"),
    }
}

/// The value of a metric, or why there is none.
fn read(condition: &Condition, report: &Report, at: usize) -> Result<f64, String> {
    let arm = &report.arms[at];
    let counts = &arm.counts;
    let value = match condition.metric {
        Metric::P50 => quantile(arm, 0.5)?,
        Metric::P90 => quantile(arm, 0.9)?,
        Metric::P95 => quantile(arm, 0.95)?,
        Metric::P99 => quantile(arm, 0.99)?,
        Metric::P999 => quantile(arm, 0.999)?,
        Metric::Max => answered(arm)?.latency.max(),
        Metric::Mean => answered(arm)?.latency.mean(),
        Metric::RefusalP99 if arm.refusal.is_empty() => return Err("nothing was refused".to_owned()),
        Metric::RefusalP99 => arm.refusal.quantile(0.99),
        Metric::Throughput => arm.throughput,
        Metric::Goodput => arm.goodput,
        Metric::Refused => part(condition, counts.refused, counts.sent, "request was sent")?,
        Metric::Failed => part(condition, counts.failed, counts.sent, "request was sent")?,
        Metric::TimedOut => part(condition, counts.timed_out, counts.sent, "request was sent")?,
        Metric::Broken => part(condition, counts.broken, counts.sent, "request was sent")?,
        Metric::Errors => part(condition, counts.failed + counts.timed_out, counts.sent, "request was sent")?,
        Metric::Changed => part(condition, arm.changed, arm.images, "image was answered")?,
        Metric::Accuracy => arm.accuracy().ok_or("no image with a label was answered")?,
        Metric::Blocks => arm.mean_blocks().ok_or("no answer told the blocks kept")?,
        Metric::FlopsRatio => ratio(report, at)?.flops.ok_or("not all arms told FLOPs")?,
        Metric::Speedup => ratio(report, at)?.throughput.value,
        Metric::SpeedupLow => ratio(report, at)?.throughput.low,
        Metric::P50Ratio => ratio(report, at)?.p50.value,
        Metric::P95Ratio => ratio(report, at)?.p95.value,
        Metric::P99Ratio => ratio(report, at)?.p99.value,
        Metric::Capacity => {
            let ramp = report.ramp.as_ref().ok_or("the load was no ramp")?;
            ramp.best.get(at).copied().flatten().ok_or("no rate of the ramp met the objective")?
        }
        Metric::GoodputShare => match arm.peak.ok_or("the load was no overload")? {
            peak if peak > 0.0 => arm.goodput / peak,
            _ => return Err("the closed load before was not answered".to_owned()),
        },
    };
    if value.is_nan() { Err("too little was measured".to_owned()) } else { Ok(value) }
}

fn answered(arm: &ArmReport) -> Result<&ArmReport, String> {
    if arm.latency.is_empty() { Err("no request was answered".to_owned()) } else { Ok(arm) }
}

fn quantile(arm: &ArmReport, quantile: f64) -> Result<f64, String> {
    Ok(answered(arm)?.latency.quantile(quantile))
}

/// A count, or its share, as the condition wants it.
fn part(condition: &Condition, count: u64, all: u64, none: &str) -> Result<f64, String> {
    match (condition.share, all) {
        (false, _) => Ok(count as f64),
        (true, 0) => Err(format!("no {none}")),
        (true, _) => Ok(count as f64 / all as f64),
    }
}

fn ratio(report: &Report, arm: usize) -> Result<&Ratio, String> {
    report.ratios.iter().find(|ratio| ratio.arm == arm).ok_or_else(|| {
        if arm == report.plan.baseline {
            "it is the baseline itself".to_owned()
        } else {
            "the report has no ratio of it".to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;
    use crate::objective::Op;
    use proptest::prelude::*;

    fn verdict(text: &str, report: &Report) -> Verdict {
        judge(&text.parse().unwrap(), report)
    }

    #[test]
    fn conditions_are_judged_by_what_was_found() {
        let report = made_up::full();
        for (text, failed, found) in [
            ("policy.p99>1s", false, "policy.p99 is "),
            ("policy.p99>1us", true, "policy.p99 is "),
            ("p99>1us", true, "full.p99 is "),
            ("failed>1000000", false, "full.failed is 3, policy.failed is 4"),
            ("failed>3", true, "policy.failed is 4"),
            ("failed>50%", false, "full.failed is 0.0"),
            ("speedup<1.2", false, "policy.speedup is 1.5"),
            ("speedup>1.2", true, "policy.speedup is 1.5"),
            ("speedup.low<1.2", false, "policy.speedup.low is 1.4"),
            ("flops_ratio>70%", false, "policy.flops_ratio is 0.5"),
            ("accuracy<0.5", false, "full.accuracy is 0.9"),
            ("capacity<100", false, "full.capacity is "),
            ("policy.blocks>=4", true, "policy.blocks is "),
        ] {
            let verdict = verdict(text, &report);
            assert_eq!(verdict.failed, failed, "{verdict:?}");
            assert!(verdict.found.starts_with(found), "{verdict:?}");
            assert_eq!(verdict.condition, text);
        }
    }

    #[test]
    fn what_is_not_known_fails() {
        let report = made_up::poor();
        for (text, found) in [
            ("polcy.p99>20ms", "there is no arm \"polcy\"; the arms are one"),
            ("accuracy<0.1", "one.accuracy is not known: no image with a label was answered"),
            ("blocks>100", "not known: no answer told the blocks kept"),
            ("speedup<0", "speedup is not known: there is no arm beside the baseline"),
            ("one.speedup<0", "one.speedup is not known: it is the baseline itself"),
            ("capacity<0", "not known: the load was no ramp"),
            ("goodput_share<0", "not known: the load was no overload"),
            ("changed>100%", "one.changed is not known: no image was answered"),
            ("p99>1s", "one.p99 is not known: no request was answered"),
        ] {
            let verdict = verdict(text, &report);
            assert!(verdict.failed && verdict.found.contains(found), "{verdict:?}");
        }
    }

    #[test]
    fn a_rate_that_no_step_held_is_not_known() {
        let mut report = made_up::full();
        if let Some(ramp) = &mut report.ramp {
            ramp.best[1] = None;
        }
        let verdict = verdict("policy.capacity<1", &report);
        assert!(verdict.failed && verdict.found.contains("no rate of the ramp met the objective"), "{verdict:?}");
    }

    #[test]
    fn a_ratio_that_is_no_number_is_not_known() {
        let mut report = made_up::full();
        report.ratios[0].p99.value = f64::NAN;
        let verdict = verdict("p99_ratio>100", &report);
        assert!(verdict.failed && verdict.found.contains("too little was measured"), "{verdict:?}");
    }

    proptest! {
        /// Each condition and its negation: exactly one of them fails the run, where the value is known.
        #[test]
        fn a_condition_or_its_negation_holds(at in 0..Metric::ALL.len(), value in 0.0..2000.0_f64) {
            let report = made_up::full();
            let (name, metric) = Metric::ALL[at];
            let ask = |op| verdict(&format!("policy.{name}{op}{value}"), &report);
            let (more, most) = (ask(">"), ask("<="));
            if metric == Metric::GoodputShare {
                prop_assert!(more.failed && most.failed);
            } else {
                prop_assert!(more.failed != most.failed, "{more:?} {most:?}");
            }
            prop_assert!(Op::More.holds(1.0, 0.0) && !Op::More.holds(f64::NAN, 0.0) && !Op::AtMost.holds(f64::NAN, 0.0));
        }
    }
}
