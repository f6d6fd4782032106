//! The comparison as text for a terminal.

use super::super::table::{lines, table, tame, wrap};
use super::super::words::{accuracy, amount, latency, plain, ratio};
use super::{ArmComparison, Change, Comparison, Side};

pub(super) fn text(of: &Comparison, width: u16) -> String {
    let width = width.max(60);
    let mut text = String::new();
    for arm in &of.arms {
        text += &wrap(&tame(&sentence(arm)), width, 2);
    }
    for (which, side) in [("old", &of.old), ("new", &of.new)] {
        let Side { title, harness, started, machine } = side;
        let line = format!("{which}: {title}, {started}, {}, {} cores, harness {harness}", machine.cpu, machine.cores);
        text += &wrap(&tame(&line), width, 2);
    }
    if !of.arms.is_empty() {
        let mut rows = table(&["arm", "of", "old>", "new>", "new/old>", "95 % interval>"], width);
        for arm in &of.arms {
            rows.add_rows(self::rows(arm));
        }
        text += "\n";
        text += &lines(&rows);
    }
    text += "\n";
    let only = |names: &[String], which: &str| {
        (!names.is_empty()).then(|| format!("only in the {which} report: {}", names.join(", ")))
    };
    let servers = of.arms.iter().filter(|arm| arm.servers[0] != arm.servers[1]).map(|arm| {
        let [old, new] = &arm.servers;
        format!("{}: the server was {old}, then {new}", arm.name)
    });
    let warnings = of.warnings.iter().map(|warning| format!("warning: {warning}"));
    let verdicts = of.verdicts.iter().map(|verdict| {
        let mark = if verdict.failed { "FAILED" } else { "passed" };
        format!("{mark}: fails if {}; {}", verdict.condition, verdict.found)
    });
    let unmatched = [only(&of.only_old, "old"), only(&of.only_new, "new")].into_iter().flatten();
    for note in servers.chain(unmatched).chain(warnings).chain(verdicts) {
        text += &wrap(&tame(&note), width, 2);
    }
    text
}

/// `policy: 1.08 times the throughput (1.05 to 1.11), p50 0.93 (0.91 to 0.95), p99 0.97 (0.88 to 1.06)`
fn sentence(arm: &ArmComparison) -> String {
    let said = |change: &Change| {
        let interval = change.interval.map(|(low, high)| format!(" ({} to {})", ratio(low), ratio(high)));
        Some((ratio(change.ratio?), interval.unwrap_or_default()))
    };
    let first = match (&arm.capacity, &arm.throughput) {
        (Some(capacity), _) if arm.p50.is_none() => {
            said(capacity).map(|(value, _)| format!("{value} times the highest rate"))
        }
        (_, Some(throughput)) => {
            said(throughput).map(|(value, interval)| format!("{value} times the throughput{interval}"))
        }
        _ => None,
    };
    let latencies =
        [("p50", &arm.p50), ("p95", &arm.p95), ("p99", &arm.p99)].into_iter().filter_map(|(name, change)| {
            let (value, interval) = said(change.as_ref()?)?;
            Some(format!("{name} {value}{interval}"))
        });
    let parts: Vec<_> = first.into_iter().chain(latencies).collect();
    if parts.is_empty() {
        format!("{}: too little was measured", arm.name)
    } else {
        format!("{}: {}", arm.name, parts.join(", "))
    }
}

fn rows(arm: &ArmComparison) -> Vec<Vec<String>> {
    type Written = fn(f64) -> String;
    let flops: Written = |value| format!("{value:.2e}");
    let changes: [(&str, Option<Change>, Written); 8] = [
        ("images/s", arm.throughput, plain),
        ("p50 ms", arm.p50, latency),
        ("p95 ms", arm.p95, latency),
        ("p99 ms", arm.p99, latency),
        ("highest rate", arm.capacity, plain),
        ("accuracy", arm.accuracy, accuracy),
        ("blocks", arm.blocks, plain),
        ("FLOPs", arm.flops, flops),
    ];
    let mut rows = Vec::new();
    for (name, change, written) in changes {
        let Some(Change { old, new, ratio: of, interval }) = change else { continue };
        let interval = interval.map(|(low, high)| format!("{low:.3} to {high:.3}"));
        let of = of.map_or_else(|| "–".to_owned(), |of| format!("{of:.3}"));
        rows.push(vec![name.to_owned(), written(old), written(new), of, interval.unwrap_or_default()]);
    }
    let [old, new] = &arm.counts;
    let counts = [
        ("sent", old.sent, new.sent),
        ("answered", old.answered, new.answered),
        ("refused", old.refused, new.refused),
        ("failed", old.failed, new.failed),
        ("timed out", old.timed_out, new.timed_out),
        ("broken", old.broken, new.broken),
        ("changed", arm.changed[0], arm.changed[1]),
    ];
    for (name, old, new) in counts {
        // Without any, three rows say so, and the others are left out.
        if old + new > 0 || matches!(name, "refused" | "failed" | "timed out") {
            rows.push(vec![name.to_owned(), amount(old), amount(new), String::new(), String::new()]);
        }
    }
    for (at, row) in rows.iter_mut().enumerate() {
        row.insert(0, if at == 0 { tame(&arm.name) } else { String::new() });
    }
    rows
}
