//! The report as text for a terminal.

use comfy_table::Table;

use crate::latencies::Latencies;

use super::table::{lines, table, tame, wrap};
use super::words::{self, accuracy, amount, latency, plain, ratio, share};
use super::{ArmReport, Ramp, Report};

/// The report in at most `width` columns, but at least 60: what the arms came to, how they stand to the baseline, and
/// whether the run failed. Without colours.
pub fn text(report: &Report, width: u16) -> String {
    let width = width.max(60);
    let mut text = String::new();
    for finding in words::findings(report) {
        let sentence = [format!("{}: {}", finding.subject, finding.claim)].into_iter().chain(finding.rest);
        text += &wrap(&tame(&sentence.collect::<Vec<_>>().join(", ")), width, 2);
    }
    let plan = format!("{}: {}", report.plan.title, words::plan(&report.plan));
    text += &wrap(&tame(&plan), width, 2);
    text += "\n";
    text += &lines(&speeds(&report.arms, width));
    text += "\n";
    text += &lines(&counts(&report.arms, width));
    if let Some(ramp) = &report.ramp {
        text += "\n";
        text += &lines(&steps(report, ramp, width));
        text += &wrap(&tame(&best(report, ramp)), width, 2);
        text += &wrap(OF_A_RAMP, width, 2);
    }
    let causes = causes(&report.arms, width);
    if !causes.is_empty() {
        text += "\n";
        text += &lines(&causes);
    }
    let harness = harness(report, width);
    let notes: Vec<_> = words::warnings(report).iter().map(|warning| format!("warning: {warning}")).collect();
    let verdicts = report.verdicts.iter().map(|verdict| {
        let mark = if verdict.failed { "FAILED" } else { "passed" };
        format!("{mark}: fails if {}; {}", verdict.condition, verdict.found)
    });
    text += "\n";
    text += &harness;
    for note in notes.into_iter().chain(verdicts) {
        text += &wrap(&tame(&note), width, 2);
    }
    text
}

fn speeds(arms: &[ArmReport], width: u16) -> Table {
    let mut heads = vec!["arm", "images/s>", "p50 ms>", "p95>", "p99>", "p99.9>", "max>"];
    let labelled = arms.iter().any(|arm| arm.labelled > 0);
    if labelled {
        heads.push("accuracy>");
    }
    let mut table = table(&heads, width);
    for arm in arms {
        let mut row = vec![tame(&arm.name), plain(arm.throughput)];
        let quantiles = [0.5, 0.95, 0.99, 0.999].map(|quantile| arm.latency.quantile(quantile));
        row.extend(
            quantiles
                .into_iter()
                .chain([arm.latency.max()])
                .map(|ms| if arm.latency.is_empty() { absent() } else { latency(ms) }),
        );
        if labelled {
            row.push(arm.accuracy().map_or_else(absent, accuracy));
        }
        table.add_row(row);
    }
    table
}

/// What became of the requests. Columns that would hold only noughts are left out, but those that say that all is well.
fn counts(arms: &[ArmReport], width: u16) -> Table {
    type Cell = fn(&ArmReport) -> Option<String>;
    let any = |has: fn(&ArmReport) -> bool| arms.iter().any(has);
    let columns: Vec<(&str, Cell, bool)> = vec![
        ("sent>", |arm| Some(amount(arm.counts.sent)), true),
        ("answered>", |arm| Some(amount(arm.counts.answered)), true),
        ("refused>", |arm| Some(amount(arm.counts.refused)), true),
        ("failed>", |arm| Some(amount(arm.counts.failed)), true),
        ("timed out>", |arm| Some(amount(arm.counts.timed_out)), true),
        ("broken>", |arm| Some(amount(arm.counts.broken)), any(|arm| arm.counts.broken > 0)),
        ("changed>", |arm| Some(amount(arm.changed)), any(|arm| arm.changed > 0)),
        ("in time>", |arm| in_time(arm), any(|arm| arm.in_time < arm.good)),
        ("of peak>", |arm| of_peak(arm), any(|arm| arm.peak.is_some())),
        ("blocks>", |arm| arm.mean_blocks().map(plain), any(|arm| !arm.blocks.is_empty())),
        ("FLOPs>", |arm| arm.flops_share().map(share), any(|arm| arm.flops.is_some())),
    ];
    let shown: Vec<_> = columns.into_iter().filter(|(.., shown)| *shown).collect();
    let heads: Vec<_> = ["arm"].into_iter().chain(shown.iter().map(|(head, ..)| *head)).collect();
    let mut table = table(&heads, width);
    for arm in arms {
        let cells = shown.iter().map(|(_, cell, _)| cell(arm).unwrap_or_else(absent));
        table.add_row([tame(&arm.name)].into_iter().chain(cells).collect::<Vec<_>>());
    }
    table
}

pub(super) fn absent() -> String {
    "–".to_owned()
}

/// The share of the good requests that were answered in time.
pub(super) fn in_time(arm: &ArmReport) -> Option<String> {
    (arm.good > 0).then(|| share(arm.in_time as f64 / arm.good as f64))
}

/// Goodput to what the closed load before reached.
pub(super) fn of_peak(arm: &ArmReport) -> Option<String> {
    arm.peak.filter(|peak| *peak > 0.0).map(|peak| share(arm.goodput / peak))
}

fn steps(report: &Report, ramp: &Ramp, width: u16) -> Table {
    let heads = ["arm", "requests/s>", "answered/s>", "p50 ms>", "p95>", "p99>", "not answered>", "held"];
    let mut table = table(&heads, width);
    for at in 0..report.arms.len() {
        let mut steps: Vec<_> = ramp.steps.iter().filter(|step| step.arm == at).collect();
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        for step in steps {
            let lost = step.counts.sent.saturating_sub(step.counts.answered);
            let ms = |value| if step.counts.answered == 0 { absent() } else { latency(value) };
            table.add_row(vec![
                tame(&report.arms[at].name),
                plain(step.rate),
                plain(step.achieved),
                ms(step.p50),
                ms(step.p95),
                ms(step.p99),
                amount(lost),
                if step.held { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    table
}

/// What the other tables are of.
pub(super) const OF_A_RAMP: &str =
    "All else that is told of an arm is of that rate, or of the lowest that was tried where none was held.";

/// The highest rates, in a sentence.
pub(super) fn best(report: &Report, ramp: &Ramp) -> String {
    let within = report.plan.slo.map_or_else(|| "the objective".to_owned(), |slo| slo.to_string());
    let rates = report.arms.iter().zip(&ramp.best).map(|(arm, best)| match best {
        Some(rate) => format!("{} {}", arm.name, plain(*rate)),
        None => format!("{} none", arm.name),
    });
    let mut sentence = format!("Highest rate within {within}, requests/s: {}", rates.collect::<Vec<_>>().join(", "));
    for of in &report.ratios {
        if let Some(capacity) = of.capacity {
            sentence += &format!("; {} {} times the baseline", report.arms[of.arm].name, ratio(capacity));
        }
    }
    sentence
}

fn causes(arms: &[ArmReport], width: u16) -> Table {
    let mut table = table(&["arm", "cause", "requests>", "the first said"], width);
    for arm in arms {
        let mut causes: Vec<_> = arm.causes.iter().collect();
        causes.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (kind, (count, message)) in causes {
            table.add_row([tame(&arm.name), tame(kind), amount(*count), tame(message)]);
        }
    }
    table
}

/// How late the harness itself was.
fn harness(report: &Report, width: u16) -> String {
    let told = |said: &str, of: fn(&ArmReport) -> &Latencies| {
        let arms = report.arms.iter().filter(|arm| !of(arm).is_empty());
        let arms: Vec<_> =
            arms.map(|arm| format!("{} {} ms", tame(&arm.name), latency(of(arm).quantile(0.99)))).collect();
        if arms.is_empty() { String::new() } else { wrap(&format!("{said} (p99): {}", arms.join(", ")), width, 2) }
    };
    told("Refused within", |arm| &arm.refusal) + &told("The harness sent late by", |arm| &arm.delay)
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn the_speedup_stands_first() {
        let text = text(&made_up::full(), 160);
        println!("{text}");
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("policy against full: 1.5") && first.contains("times the throughput (1."), "{first}");
        assert!(first.contains("FLOPs 0.59"), "{first}");
        for part in ["images/s", "p99.9", "accuracy", "timed out", "503 overloaded", "held", "The harness sent late by"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.contains("passed: fails if policy.speedup.low<1.2; policy.speedup.low is 1.4"), "{text}");
        assert!(text.contains("FAILED: fails if policy.p99>10ms; policy.p99 is "), "{text}");
    }

    #[test]
    fn it_fits_a_narrow_terminal_and_a_wide_one() {
        for width in [80, 100, 160] {
            let text = text(&made_up::full(), width);
            println!("{text}");
            assert!(widest(&text) <= usize::from(width), "{} of {width}:\n{text}", widest(&text));
        }
        // At 80 columns no table breaks a row of numbers in two.
        let text = text(&made_up::full(), 80);
        let arms = text.lines().filter(|line| line.trim_start().starts_with("policy ")).count();
        let rows = 2 + 6 + made_up::full().arms[1].causes.len();
        assert!(arms >= rows, "{arms} of {rows}:\n{text}");
    }

    #[test]
    fn a_poor_report_has_no_empty_tables() {
        let text = text(&made_up::poor(), 80);
        println!("{text}");
        for part in ["accuracy", "blocks", "FLOPs", "held", "policy", "harness"] {
            assert!(!text.contains(part), "{part} in\n{text}");
        }
        assert!(text.contains("connection refused"), "{text}");
    }

    #[test]
    fn what_a_server_says_cannot_move_the_cursor() {
        let mut report = made_up::full();
        report.arms[0].causes.insert("\x1b[2J".to_owned(), (1, "a\x07b\nc".to_owned()));
        report.arms[1].name = "pol\x1bicy".to_owned();
        report.plan.title = "t\x1b]0;x".to_owned();
        let text = text(&report, 80);
        assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
    }
}
