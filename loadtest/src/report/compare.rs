//! Two reports beside one another: what became faster or slower from the old one to the new one.
//!
//! A ratio is that of what both runs found as a whole, new to old. Its interval comes from their rounds (an arm's turns),
//! which are all that a report keeps of the run's variation: of each report, on its own, as many rounds as it has are drawn
//! with replacement, 2,000 times; the throughput of a draw is the rounds' mean by their seconds, a latency the mean of the
//! rounds' quantiles by their answers. The middle 95 % of the draws' ratios, over the same ratio of all rounds, are laid
//! onto the ratio. So the interval says how much the rounds within each run vary. It does not say how much one run differs
//! from the next for other reasons (another machine, other neighbours, a warmer processor): arms of one run, which take
//! turns, are compared better than two runs.

mod conditions;
mod rounds;
mod text;

use serde::Serialize;

use super::words::{load, protocol};
use super::{ArmReport, Machine, Report, Verdict, verdict};
use crate::plan::Load;
use crate::record::Counts;

pub use conditions::{Condition, Metric};

/// Of the JSON. Rises when a reader of the old one would misread the new one.
pub const SCHEMA: u32 = 1;

/// What two reports come to.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub schema: u32,
    pub old: Side,
    pub new: Side,
    /// Those of the same name in both, in the new report's order.
    pub arms: Vec<ArmComparison>,
    /// Names of the arms that one report only has.
    pub only_old: Vec<String>,
    pub only_new: Vec<String>,
    /// What differs between the runs, so that more than the servers may be behind a ratio.
    pub warnings: Vec<String>,
    /// Of [`Comparison::judge`], in its order.
    pub verdicts: Vec<Verdict>,
}

/// One of the reports.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub title: String,
    pub harness: String,
    /// RFC 3339, UTC.
    pub started: String,
    pub machine: Machine,
}

/// An arm in both reports. What one of them does not have is absent.
#[derive(Debug, Clone, Serialize)]
pub struct ArmComparison {
    pub name: String,
    /// What the servers said they were.
    pub servers: [String; 2],
    /// Images in a second.
    pub throughput: Option<Change>,
    /// Requests answered in time in a second.
    pub goodput: Option<Change>,
    /// Milliseconds. Absent of a ramp, whose latencies are of many rates.
    pub p50: Option<Change>,
    pub p95: Option<Change>,
    pub p99: Option<Change>,
    /// 0 to 1.
    pub accuracy: Option<Change>,
    /// Mean blocks kept.
    pub blocks: Option<Change>,
    /// Mean FLOPs of an image.
    pub flops: Option<Change>,
    /// Requests a second: a ramp's highest rate within the objective.
    pub capacity: Option<Change>,
    /// Old, new.
    pub counts: [Counts; 2],
    pub images: [u64; 2],
    pub changed: [u64; 2],
}

/// A value before and after.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    pub old: f64,
    pub new: f64,
    /// New to old; absent where the old value is 0.
    pub ratio: Option<f64>,
    /// The ratio's 95 % interval (see the module); absent where there are too few rounds, or none.
    pub interval: Option<(f64, f64)>,
}

impl Change {
    fn of(old: Option<f64>, new: Option<f64>) -> Option<Self> {
        let (old, new) = (old.filter(|value| value.is_finite())?, new.filter(|value| value.is_finite())?);
        Some(Self { old, new, ratio: (old != 0.0).then(|| new / old), interval: None })
    }

    /// With an interval: low and high over the ratio.
    fn within(mut self, spread: Option<(f64, f64)>) -> Self {
        self.interval = self.ratio.zip(spread).map(|(ratio, (low, high))| (ratio * low, ratio * high));
        self
    }
}

/// Compares two reports.
pub fn compare(old: &Report, new: &Report) -> Comparison {
    let pairs = new.arms.iter().enumerate().filter_map(|(at, arm)| {
        let before = old.arms.iter().position(|before| before.name == arm.name)?;
        Some(arms((old, before), (new, at)))
    });
    let only = |these: &Report, those: &Report| -> Vec<String> {
        let names = these.arms.iter().map(|arm| &arm.name);
        names.filter(|name| those.arms.iter().all(|arm| arm.name != **name)).cloned().collect()
    };
    Comparison {
        schema: SCHEMA,
        old: side(old),
        new: side(new),
        arms: pairs.collect(),
        only_old: only(old, new),
        only_new: only(new, old),
        warnings: warnings(old, new),
        verdicts: Vec::new(),
    }
}

fn side(of: &Report) -> Side {
    Side {
        title: of.plan.title.clone(),
        harness: of.harness.clone(),
        started: of.started.clone(),
        machine: of.machine.clone(),
    }
}

/// A report, and one of its arms.
type At<'a> = (&'a Report, usize);

fn arms(old: At<'_>, new: At<'_>) -> ArmComparison {
    let [before, after] = [old, new].map(|(report, at)| &report.arms[at]);
    let change = |of: fn(&ArmReport) -> Option<f64>| Change::of(of(before), of(after));
    let ramped = [old, new].iter().any(|(report, _)| matches!(report.plan.load, Load::Ramp { .. }));
    let spread = if ramped { rounds::Spread::default() } else { rounds::spread(&before.rounds, &after.rounds) };
    let latency = |quantile: f64, spread| {
        let of = |arm: &ArmReport| (!ramped && !arm.latency.is_empty()).then(|| arm.latency.quantile(quantile));
        Change::of(of(before), of(after)).map(|change| change.within(spread))
    };
    let best = |(report, at): At<'_>| report.ramp.as_ref().and_then(|ramp| ramp.best.get(at).copied().flatten());
    ArmComparison {
        name: after.name.clone(),
        servers: [before.server.clone(), after.server.clone()],
        throughput: change(|arm| Some(arm.throughput)).map(|change| change.within(spread.throughput)),
        goodput: change(|arm| Some(arm.goodput)),
        p50: latency(0.5, spread.p50),
        p95: latency(0.95, spread.p95),
        p99: latency(0.99, spread.p99),
        accuracy: change(ArmReport::accuracy),
        blocks: change(ArmReport::mean_blocks),
        flops: change(|arm| arm.flops.map(|(spent, _)| spent)),
        capacity: Change::of(best(old), best(new)),
        counts: [before.counts, after.counts],
        images: [before.images, after.images],
        changed: [before.changed, after.changed],
    }
}

fn warnings(old: &Report, new: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    let [before, after] = [&old.plan, &new.plan];
    let mut differs = |what: &str, values: [String; 2]| {
        if values[0] != values[1] {
            let [old, new] = values;
            warnings.push(format!("the {what} differs: {old}, then {new}"));
        }
    };
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    let of = |machine: &Machine| format!("{}, {} cores, {}", machine.cpu, machine.cores, machine.system);
    differs("machine", [of(&old.machine), of(&new.machine)]);
    differs("load", [load(&before.load), load(&after.load)]);
    if load(&before.load) == load(&after.load) {
        let whole = [before, after].map(|plan| json(serde_json::to_string(&plan.load)));
        differs("load", whole);
    }
    let spoken = [before, after].map(|plan| protocol(plan.request.protocol).to_owned());
    if spoken[0] == spoken[1] {
        differs("request", [before, after].map(|plan| json(serde_json::to_string(&plan.request))));
    }
    differs("protocol", spoken);
    differs("choice of images", [before, after].map(|plan| json(serde_json::to_string(&plan.images))));
    differs("share of broken requests", [before, after].map(|plan| json(serde_json::to_string(&plan.faults))));
    differs("seed", [before, after].map(|plan| plan.seed.to_string()));
    differs("objective", [before, after].map(|plan| plan.slo.map_or_else(|| "none".to_owned(), |slo| slo.to_string())));
    let duration = humantime::format_duration;
    differs("time measured", [before, after].map(|plan| duration(plan.measure).to_string()));
    differs("harness", [old, new].map(|report| format!("version {}", report.harness)));
    for arm in &after.arms {
        if let Some(was) = before.arms.iter().find(|was| was.name == arm.name) {
            let asked = [was, arm].map(|arm| json(serde_json::to_string(&(&arm.model, &arm.version, &arm.parameters))));
            differs(&format!("request of the arm {}", arm.name), asked);
        }
    }
    for (report, which) in [(old, "old"), (new, "new")] {
        if report.interrupted {
            warnings.push(format!("the {which} run was interrupted"));
        }
        for arm in report.arms.iter().filter(|arm| arm.held_up().is_some()) {
            warnings.push(format!("the harness itself was late in the {which} run of {}", arm.name));
        }
    }
    warnings
}

impl Comparison {
    /// Judges conditions, and keeps the verdicts. One on a value or an arm that is not in both reports fails.
    pub fn judge(&mut self, conditions: &[Condition]) {
        self.verdicts = conditions
            .iter()
            .map(|condition| {
                let (failed, found) = self.weigh(condition);
                Verdict { condition: condition.text.clone(), failed, found }
            })
            .collect();
    }

    fn weigh(&self, condition: &Condition) -> (bool, String) {
        let asked: Vec<_> = self
            .arms
            .iter()
            .filter(|arm| condition.arm.as_ref().is_none_or(|name| arm.name == *name))
            .map(|arm| (&*arm.name, condition.metric.read(arm)))
            .collect();
        if asked.is_empty() {
            let names: Vec<_> = self.arms.iter().map(|arm| &*arm.name).collect();
            let known = if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
            let wanted = condition.arm.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
            return (true, format!("no arm{wanted} is in both reports; those that are: {known}"));
        }
        verdict::weigh(condition, &asked)
    }

    /// Whether a condition came true.
    pub fn failed(&self) -> bool {
        self.verdicts.iter().any(|verdict| verdict.failed)
    }

    /// In at most `width` columns, but at least 60. Without colours.
    pub fn text(&self, width: u16) -> String {
        text::text(self, width)
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    #[test]
    fn a_report_is_as_fast_as_itself() {
        let report = made_up::full();
        let comparison = compare(&report, &report);
        assert!(comparison.warnings.is_empty() && comparison.only_old.is_empty() && comparison.only_new.is_empty());
        assert_eq!(comparison.arms.len(), 2);
        for arm in &comparison.arms {
            for change in [arm.throughput, arm.p50, arm.p95, arm.p99].map(Option::unwrap) {
                let (low, high) = change.interval.unwrap();
                assert!(change.ratio == Some(1.0) && low < 1.0 && high > 1.0, "{change:?}");
            }
        }
    }

    #[test]
    fn what_became_slower_is_seen() {
        let (old, mut new) = (made_up::full(), made_up::full());
        let arm = &mut new.arms[1];
        arm.throughput *= 0.8;
        arm.rounds.iter_mut().for_each(|round| round.throughput *= 0.8);
        let mut comparison = compare(&old, &new);
        let change = comparison.arms[1].throughput.unwrap();
        let (low, high) = change.interval.unwrap();
        assert!((change.ratio.unwrap() - 0.8).abs() < 1e-9 && low > 0.7 && high < 0.9, "{change:?}");
        let conditions = ["policy.throughput_ratio<0.95", "full.throughput_ratio<0.95", "throughput_ratio.high<0.95"];
        comparison.judge(&conditions.map(|text| text.parse().unwrap()));
        assert_eq!(comparison.verdicts.iter().map(|verdict| verdict.failed).collect::<Vec<_>>(), [true, false, true]);
        assert!(comparison.failed());
    }

    #[test]
    fn arms_are_matched_by_name() {
        let (old, mut new) = (made_up::full(), made_up::full());
        new.arms[0].name = "whole".to_owned();
        let comparison = compare(&old, &new);
        assert_eq!(comparison.arms.iter().map(|arm| &*arm.name).collect::<Vec<_>>(), ["policy"]);
        assert_eq!((comparison.only_old, comparison.only_new), (vec!["full".to_owned()], vec!["whole".to_owned()]));
    }

    #[test]
    fn runs_that_differ_are_warned_of() {
        let (old, mut new) = (made_up::full(), made_up::full());
        new.machine.cores = 2;
        new.plan.seed = 8;
        new.plan.load = Load::Closed { clients: 16, think: std::time::Duration::ZERO };
        new.plan.request.protocol = crate::plan::Protocol::Grpc;
        new.plan.images.limit = 10;
        new.plan.arms[1].parameters.clear();
        new.interrupted = true;
        let warnings = compare(&old, &new).warnings;
        for part in [
            "machine differs: AMD EPYC 7B13, 8 cores",
            "seed differs: 7, then 8",
            "load differs: closed loop of 8 clients, then closed loop of 16 clients",
            "protocol differs: /v1/classify, then blockdrop over gRPC",
            "choice of images differs",
            "request of the arm policy differs",
            "the new run was interrupted",
        ] {
            assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
        }
    }

    #[test]
    fn what_is_not_in_both_fails() {
        let (full, poor) = (made_up::full(), made_up::poor());
        let mut comparison = compare(&full, &poor);
        comparison.judge(&["throughput_ratio<0", "one.p99_ratio>9"].map(|text| text.parse().unwrap()));
        assert!(comparison.verdicts.iter().all(|verdict| verdict.failed));
        assert!(comparison.verdicts[0].found.contains("no arm is in both reports"), "{:?}", comparison.verdicts);
        let mut comparison = compare(&poor, &poor);
        comparison.judge(&["p99_ratio>9", "accuracy_change<-1%"].map(|text| text.parse().unwrap()));
        assert!(comparison.verdicts[0].found.contains("one.p99_ratio is not known"), "{:?}", comparison.verdicts);
        assert!(comparison.verdicts.iter().all(|verdict| verdict.failed));
    }

    #[test]
    fn json_and_text_say_it_all() {
        let (old, mut new) = (made_up::full(), made_up::full());
        new.plan.seed = 8;
        new.arms[0].name = "whole".to_owned();
        let mut comparison = compare(&old, &new);
        comparison.judge(&["policy.throughput_ratio<0.95".parse().unwrap()]);
        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!(json["arms"][0]["name"], "policy");
        assert_eq!(json["arms"][0]["throughput"]["ratio"], 1.0);
        for width in [80, 160] {
            let text = comparison.text(width);
            println!("{text}");
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
            for part in ["policy: 1.00 times", "seed differs", "only in the old", "only in the new", "passed: fails if"]
            {
                assert!(text.contains(part), "{part} in\n{text}");
            }
        }
    }
}
