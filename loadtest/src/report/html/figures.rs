//! What the page's plots are drawn from. A figure without data is left out.

use serde_json::{Value, json};

use super::super::terminal::{OF_A_RAMP, best};
use super::super::{Interval, Ramp, Report};
use super::series;
use crate::latencies::Latencies;

/// Arms with a colour of their own; the next has the first one's again, with another line.
pub(super) const COLOURS: usize = 6;

/// Points of a distribution, about.
const POINTS: f64 = 400.0;

/// How the series is to be read.
const LINES: &str = "p50 is solid, p99 dotted; pale bars were refused, full ones failed or timed out.";

/// A plot.
pub(super) struct Figure {
    /// Of the element, and of the script's function that draws it.
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) note: String,
    /// It needs the page's width.
    pub(super) wide: bool,
    data: Value,
}

/// Those that the report has data for, in the page's order.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let quantile = nearest(report);
    let series = series::of(report);
    let figures = [
        (
            "ratios",
            "Against the baseline",
            "Dots are the ratio, whiskers its 95 % interval; a whisker over 1 says that neither arm is ahead. FLOPs are \
             counted, not timed."
                .to_owned(),
            ratios(report),
        ),
        (
            "cdf",
            "Latency",
            "The share of requests that were answered within a time, counted from when each was due; one that timed out \
             counts with the timeout."
                .to_owned(),
            cdf(report),
        ),
        (
            "ramp",
            "Throughput against latency",
            report.ramp.as_ref().map_or_else(String::new, |ramp| {
                format!(
                    "{quantile} latency at the rate that was reached; filled where the objective was met. {}. {OF_A_RAMP}",
                    best(report, ramp)
                )
            }),
            report.ramp.as_ref().and_then(|ramp| steps(ramp, quantile)),
        ),
        ("blocks", "Blocks kept", "The share of images by how many residual blocks ran.".to_owned(), blocks(report)),
        (
            "by_blocks",
            "Latency against blocks kept",
            "The median of the requests, bars from their 10th to their 90th percentile.".to_owned(),
            by_blocks(report),
        ),
        (
            "stages",
            "Where the server spent the time",
            "Mean milliseconds of an image in each stage, as the server tells them.".to_owned(),
            stages(report),
        ),
        (
            "series",
            "Over time",
            match series.as_ref().map_or(1, |series| series.bin) {
                1 => format!("Each point is a second of an arm's turn. {LINES}"),
                bin => format!(
                    "Each point is {bin} s: the throughput and the p50 are the seconds' mean, the p99 is the worst \
                     second's, what was not answered is their sum. {LINES}"
                ),
            },
            series.map(|series| series.data),
        ),
    ];
    let with_data = figures.into_iter().filter_map(|(id, name, note, data)| {
        Some(Figure { id, name, note, wide: matches!(id, "stages" | "series"), data: data? })
    });
    with_data.collect()
}

/// All that the script needs.
pub(super) fn data(report: &Report, figures: &[Figure]) -> Value {
    let arms: Vec<_> = report.arms.iter().map(|arm| &arm.name).collect();
    let slo = report.plan.slo.map(|slo| json!({"text": slo.to_string(), "ms": slo.most}));
    let figures: serde_json::Map<_, _> =
        figures.iter().map(|figure| (figure.id.to_owned(), figure.data.clone())).collect();
    json!({"arms": arms, "slo": slo, "figures": figures})
}

/// `None` of nothing.
fn some(entries: Vec<Value>) -> Option<Value> {
    (!entries.is_empty()).then(|| Value::Array(entries))
}

fn ratios(report: &Report) -> Option<Value> {
    let row = |name: &str, of: &Interval| json!({"name": name, "value": of.value, "low": of.low, "high": of.high});
    let point = |name: &str, value: Option<f64>| value.map(|value| json!({"name": name, "value": value}));
    let entries = report.ratios.iter().map(|of| {
        let measured = [("throughput", of.throughput), ("p50", of.p50), ("p95", of.p95), ("p99", of.p99)];
        let rows = measured.iter().filter(|(_, of)| of.value.is_finite()).map(|(name, of)| row(name, of));
        let counted = [point("highest rate", of.capacity), point("FLOPs", of.flops)].into_iter().flatten();
        json!({"arm": of.arm, "rows": rows.chain(counted).collect::<Vec<_>>()})
    });
    some(entries.filter(|entry| entry["rows"] != json!([])).collect())
}

fn cdf(report: &Report) -> Option<Value> {
    let answered = report.arms.iter().enumerate().filter(|(_, arm)| !arm.latency.is_empty());
    some(
        answered
            .map(|(at, arm)| {
                let (ms, shares) = distribution(&arm.latency);
                json!({"arm": at, "count": arm.latency.len(), "ms": ms, "shares": shares})
            })
            .collect(),
    )
}

/// Milliseconds, and the share of values up to them: as many points as a plot shows, in the body and in the tail.
fn distribution(latencies: &Latencies) -> (Vec<f64>, Vec<f64>) {
    let all = latencies.len() as f64;
    let (mut ms, mut shares) = (Vec::new(), Vec::new());
    let (mut seen, mut last, mut last_nines) = (0, f64::NEG_INFINITY, f64::NEG_INFINITY);
    for (micros, count) in latencies.counts() {
        seen += count;
        let share = seen as f64 / all;
        let nines = -(1.0 - share).log10();
        if share - last >= 1.0 / POINTS || nines - last_nines >= 4.0 / POINTS || seen == latencies.len() {
            (last, last_nines) = (share, nines);
            ms.push(micros as f64 / 1000.0);
            shares.push(share);
        }
    }
    (ms, shares)
}

/// The quantile of a ramp's steps that is nearest to the objective's.
fn nearest(report: &Report) -> &'static str {
    match report.plan.slo.map_or(0.99, |slo| slo.quantile) {
        quantile if quantile < 0.9 => "p50",
        quantile if quantile < 0.97 => "p95",
        _ => "p99",
    }
}

fn steps(ramp: &Ramp, quantile: &'static str) -> Option<Value> {
    let answered = ramp.steps.iter().filter(|step| step.counts.answered > 0);
    let mut steps: Vec<_> = answered.collect();
    steps.sort_by(|a, b| a.arm.cmp(&b.arm).then(a.rate.total_cmp(&b.rate)));
    let ms = |step: &super::super::Step| match quantile {
        "p50" => step.p50,
        "p95" => step.p95,
        _ => step.p99,
    };
    let steps = steps.iter().map(|step| {
        json!({"arm": step.arm, "rate": step.rate, "achieved": step.achieved, "ms": ms(step), "held": step.held})
    });
    some(steps.collect()).map(|steps| json!({"quantile": quantile, "steps": steps}))
}

fn blocks(report: &Report) -> Option<Value> {
    let told = report.arms.iter().enumerate().filter(|(_, arm)| !arm.blocks.is_empty());
    some(
        told.map(|(at, arm)| {
            let images: u64 = arm.blocks.values().sum();
            let shares: Vec<_> = arm.blocks.values().map(|&count| count as f64 / images.max(1) as f64).collect();
            let (blocks, counts) = (arm.blocks.keys().collect::<Vec<_>>(), arm.blocks.values().collect::<Vec<_>>());
            json!({"arm": at, "blocks": blocks, "shares": shares, "counts": counts})
        })
        .collect(),
    )
}

fn by_blocks(report: &Report) -> Option<Value> {
    let told = report.arms.iter().enumerate().filter(|(_, arm)| !arm.by_blocks.is_empty());
    some(
        told.map(|(at, arm)| {
            let at_quantile = |quantile| arm.by_blocks.values().map(|of| of.quantile(quantile)).collect::<Vec<_>>();
            let counts: Vec<_> = arm.by_blocks.values().map(Latencies::len).collect();
            let (p10, p50, p90) = (at_quantile(0.1), at_quantile(0.5), at_quantile(0.9));
            let blocks: Vec<_> = arm.by_blocks.keys().collect();
            json!({"arm": at, "blocks": blocks, "p10": p10, "p50": p50, "p90": p90, "counts": counts})
        })
        .collect(),
    )
}

fn stages(report: &Report) -> Option<Value> {
    let told = report.arms.iter().enumerate().filter_map(|(at, arm)| Some((at, arm.stages?)));
    some(
        told.map(|(at, of)| {
            let named = of.decode + of.preprocess + of.queue + of.policy + of.backbone;
            let rest = (of.total - named).max(0.0);
            let mut ms = vec![of.decode, of.preprocess, of.queue, of.policy, of.backbone];
            // What the server has no name for, where it is not rounding.
            ms.push(if rest > of.total / 100.0 { rest } else { 0.0 });
            json!({"arm": at, "ms": ms})
        })
        .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_keeps_its_ends_and_few_points() {
        let mut latencies = Latencies::default();
        (1..200_000_u64).for_each(|at| latencies.record(1_000 + at * 7 % 900_000));
        latencies.record(3_000_000);
        let (ms, shares) = distribution(&latencies);
        assert!(ms.len() < 900, "{}", ms.len());
        assert!(ms.is_sorted() && shares.is_sorted());
        assert_eq!(shares.last(), Some(&1.0));
        assert_eq!(ms.last(), Some(&latencies.max()));
    }
}
