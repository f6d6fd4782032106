//! The run over time, in as many points as a plot can show.

use serde_json::{Value, json};

use super::super::{ArmReport, Report, Round, Second};

/// Points of an arm, at most.
const POINTS: u64 = 2000;

/// The arms' series.
pub(super) struct Series {
    /// Seconds of a point.
    pub(super) bin: u64,
    pub(super) data: Value,
}

/// A point of an arm's series.
#[derive(Default)]
struct Bin {
    /// Under load, seconds.
    loaded: f64,
    /// When they came.
    came: u64,
    /// When they were due, those that timed out included.
    answered: u64,
    refused: u64,
    failed: u64,
    timed_out: u64,
    /// Sum of the seconds' p50 by their answers, milliseconds.
    p50: f64,
    /// The worst second's.
    p99: f64,
}

/// `None` where no arm has two seconds to draw a line through.
pub(super) fn of(report: &Report) -> Option<Series> {
    if report.arms.iter().all(|arm| arm.series.len() < 2) {
        return None;
    }
    let ends = report.arms.iter().flat_map(|arm| [arm.series.first(), arm.series.last()]).flatten().map(|of| of.at);
    let (first, last) = ends.fold((u64::MAX, 0), |(first, last), at| (first.min(at), last.max(at)));
    let bin = last.saturating_sub(first).saturating_add(1).div_ceil(POINTS);
    let arms = report.arms.iter().enumerate().filter(|(_, arm)| !arm.series.is_empty()).map(|(at, arm)| {
        let bins = bins(arm, first, bin);
        let column = |of: fn(&Bin) -> Option<f64>| bins.iter().map(|(_, bin)| of(bin)).collect::<Vec<_>>();
        json!({
            "arm": at,
            "at": bins.iter().map(|(at, _)| at).collect::<Vec<_>>(),
            "rate": column(|bin| (bin.loaded > 0.1).then(|| bin.came as f64 / bin.loaded)),
            "p50": column(|bin| (bin.answered > 0).then(|| bin.p50 / bin.answered as f64)),
            "p99": column(|bin| (bin.answered > 0).then_some(bin.p99)),
            "refused": column(|bin| Some(bin.refused as f64)),
            "failed": column(|bin| Some(bin.failed as f64)),
            "timed_out": column(|bin| Some(bin.timed_out as f64)),
        })
    });
    Some(Series { bin, data: json!({"bin": bin, "arms": arms.collect::<Vec<_>>()}) })
}

/// The arm's points and the seconds at which they begin.
fn bins(arm: &ArmReport, first: u64, bin: u64) -> Vec<(u64, Bin)> {
    let mut bins: Vec<(u64, Bin)> = Vec::new();
    for (second, loaded) in arm.series.iter().zip(loaded(&arm.series, &arm.rounds)) {
        let start = first + second.at.saturating_sub(first) / bin * bin;
        if bins.last().is_none_or(|(at, _)| *at != start) {
            bins.push((start, Bin::default()));
        }
        let Some((_, bin)) = bins.last_mut() else { continue };
        bin.loaded += loaded;
        bin.came += second.came;
        bin.answered += second.counts.answered + second.counts.timed_out;
        bin.refused += second.counts.refused;
        bin.failed += second.counts.failed;
        bin.timed_out += second.counts.timed_out;
        bin.p50 += second.p50 * (second.counts.answered + second.counts.timed_out) as f64;
        bin.p99 = bin.p99.max(second.p99);
    }
    // Answers that came after a turn are no throughput of a second of it.
    bins.retain(|(_, bin)| bin.loaded > 0.1 || bin.answered + bin.refused + bin.failed > 0);
    bins
}

/// For each second, how much of it the arm was under load: turns begin and end within seconds, and what was due in half a
/// second is no fall of the rate. All of it where no turn is known.
fn loaded(series: &[Second], rounds: &[Round]) -> Vec<f64> {
    let known = !rounds.is_empty();
    let mut rounds = rounds.iter().peekable();
    let within = |round: &Round, at: f64| ((round.at + round.seconds).min(at + 1.0) - round.at.max(at)).max(0.0);
    let mut parts = Vec::with_capacity(series.len());
    for second in series {
        let at = second.at as f64;
        while rounds.next_if(|round| round.at + round.seconds <= at).is_some() {}
        let part: f64 = rounds.clone().take_while(|round| round.at < at + 1.0).map(|round| within(round, at)).sum();
        parts.push(if part > 0.0 || known { part.min(1.0) } else { 1.0 });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::super::made_up;
    use super::*;
    use crate::record::Counts;

    fn second(at: u64, answered: u64, failed: u64) -> Second {
        let counts = Counts { sent: answered + failed, answered, failed, ..Counts::default() };
        Second { at, counts, came: answered, p50: 2.0, p99: at as f64 }
    }

    fn round(at: f64, seconds: f64) -> Round {
        Round { at, seconds, throughput: 0.0, answered: 0, p50: 0.0, p95: 0.0, p99: 0.0 }
    }

    #[test]
    fn hours_become_few_points_and_lose_no_error() {
        let mut report = made_up::full();
        report.arms.truncate(1);
        report.arms[0].rounds.clear();
        report.arms[0].series = (0..4 * 3600).map(|at| second(at, 100, u64::from(at == 5000))).collect();
        let series = of(&report).unwrap();
        assert_eq!(series.bin, 8);
        let arm = &series.data["arms"][0];
        let sum = |name: &str| arm[name].as_array().unwrap().iter().map(|of| of.as_f64().unwrap()).sum::<f64>();
        assert!(arm["at"].as_array().unwrap().len() <= 2000);
        assert_eq!(sum("failed"), 1.0);
        assert_eq!(sum("rate") / 1800.0, 100.0);
        assert_eq!(arm["p99"][0], 7.0);
        assert_eq!(arm["p50"][0], 2.0);
    }

    #[test]
    fn a_turn_that_ends_within_a_second_is_no_fall() {
        let series: Vec<_> = (10..13).map(|at| second(at, 50, 0)).collect();
        let parts = loaded(&series, &[round(8.0, 1.0), round(10.5, 1.75), round(12.5, 0.25)]);
        assert_eq!(parts, [0.5, 1.0, 0.5]);
        assert_eq!(loaded(&series, &[]), [1.0; 3]);
    }

    #[test]
    fn one_second_is_no_line() {
        let mut report = made_up::full();
        report.arms.iter_mut().for_each(|arm| arm.series.truncate(1));
        assert!(of(&report).is_none());
    }
}
