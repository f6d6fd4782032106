//! Values and findings in words, the same on the terminal and on the page.

use super::{Interval, Ratio, Report};
use crate::plan::{Arrivals, Load, Plan, Protocol};

/// Of a count: `12,345`.
pub(super) fn amount(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Of a value of any size, to three or four digits: `1,241`, `812`, `23.1`, `0.62`.
pub(super) fn plain(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        size if size >= 999.5 => format!("{}{}", if value < 0.0 { "-" } else { "" }, amount(size.round() as u64)),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.0995 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Of milliseconds, without the unit: `1,241`, `231`, `23.1`, `2.31`, `0.041`.
pub(super) fn latency(ms: f64) -> String {
    if ms > 0.0 && ms < 0.0995 { format!("{ms:.3}") } else { plain(ms) }
}

/// Of 0 to 1: `62 %`, `0.43 %`.
pub(super) fn share(value: f64) -> String {
    let percent = value * 100.0;
    match percent.abs() {
        _ if !percent.is_finite() => "–".to_owned(),
        size if size >= 9.95 => format!("{percent:.0} %"),
        size if size >= 0.995 || size == 0.0 => format!("{percent:.1} %"),
        size if size >= 0.0995 => format!("{percent:.2} %"),
        _ => format!("{percent:.4} %"),
    }
}

/// Of an accuracy: `92.31 %`.
pub(super) fn accuracy(value: f64) -> String {
    format!("{:.2} %", value * 100.0)
}

/// Of a ratio: `1.52`.
pub(super) fn ratio(value: f64) -> String {
    if value.is_finite() { format!("{value:.2}") } else { "–".to_owned() }
}

/// `1.52 (1.49 to 1.55)`; the value alone where there is no interval.
pub(super) fn interval(interval: &Interval) -> String {
    let Interval { value, low, high } = *interval;
    if low.is_finite() && high.is_finite() {
        format!("{} ({} to {})", ratio(value), ratio(low), ratio(high))
    } else {
        format!("{} (interval unknown)", ratio(value))
    }
}

/// Whether it has 1 within, so that neither arm can be said to be ahead.
pub(super) fn undecided(interval: &Interval) -> bool {
    interval.low <= 1.0 && 1.0 <= interval.high
}

/// What a run was, in a line: `classify, closed loop of 8 clients, 30s for each arm in turns of 1s`.
pub(super) fn plan(plan: &Plan) -> String {
    let mut text = format!("{}, {}", protocol(plan.request.protocol), load(&plan.load));
    if plan.request.images > 1 {
        text += &format!(", {} images a request", plan.request.images);
    }
    let rate = if matches!(plan.load, Load::Ramp { .. }) { " and rate" } else { "" };
    let duration = humantime::format_duration;
    text += &format!(", {} for each arm{rate}", duration(plan.measure));
    if plan.arms.len() > 1 && rate.is_empty() {
        text += &format!(" in turns of {}", duration(plan.slice));
    }
    if let Some(slo) = &plan.slo {
        text += &format!(", objective {slo}");
    }
    text
}

pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Classify => "/v1/classify",
        Protocol::ClassifyMultipart => "/v1/classify (multipart)",
        Protocol::OipJson => "OIP over HTTP, JSON",
        Protocol::OipBinary => "OIP over HTTP, binary",
        Protocol::GrpcOip => "OIP over gRPC",
        Protocol::GrpcOipStream => "OIP over gRPC, streamed",
        Protocol::Grpc => "blockdrop over gRPC",
        Protocol::GrpcStream => "blockdrop over gRPC, streamed",
    }
}

pub(super) fn load(load: &Load) -> String {
    match load {
        Load::Closed { clients, think } if think.is_zero() => format!("closed loop of {}", clients_of(*clients)),
        Load::Closed { clients, think } => {
            format!("closed loop of {} that think for {}", clients_of(*clients), humantime::format_duration(*think))
        }
        Load::Open { rate, arrivals: how, connections } => {
            format!("open loop of {} requests/s, {}, {connections} connections", plain(*rate), arrivals(*how))
        }
        Load::Ramp { from, to, arrivals: how, .. } => {
            format!("open loop rising from {} to {} requests/s, {}", plain(*from), plain(*to), arrivals(*how))
        }
        Load::Overload { factor, clients, arrivals: how, .. } => format!(
            "open loop of {} times what a closed loop of {} reaches, {}",
            plain(*factor),
            clients_of(*clients),
            arrivals(*how)
        ),
    }
}

fn clients_of(clients: usize) -> String {
    if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") }
}

fn arrivals(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Poisson => "Poisson arrivals",
        Arrivals::Constant => "constant arrivals",
    }
}

/// How an arm stands to the baseline: first the ratio that the load is there to find, and then the rest.
pub(super) struct Finding {
    /// `policy against full`
    pub(super) subject: String,
    /// `1.52 times the throughput (1.49 to 1.55)`
    pub(super) claim: String,
    /// `p50 0.64 (0.62 to 0.66)`, `FLOPs 0.62`
    pub(super) rest: Vec<String>,
}

pub(super) fn findings(report: &Report) -> Vec<Finding> {
    report.ratios.iter().map(|ratio| finding(report, ratio)).collect()
}

fn finding(report: &Report, of: &Ratio) -> Finding {
    let plan = &report.plan;
    let subject = format!("{} against {}", report.arms[of.arm].name, report.arms[plan.baseline].name);
    let throughput = format!("throughput {}", interval(&of.throughput));
    let latencies = [("p50", &of.p50), ("p95", &of.p95), ("p99", &of.p99)]
        .map(|(name, value)| format!("{name} {}", interval(value)));
    let claimed = |value: &Interval, what: &str| {
        let doubt = if undecided(value) { ", so neither is ahead" } else { "" };
        if value.low.is_finite() && value.high.is_finite() {
            let (low, high) = (ratio(value.low), ratio(value.high));
            format!("{} times {what} ({low} to {high}{doubt})", ratio(value.value))
        } else {
            format!("{} times {what} (interval unknown)", ratio(value.value))
        }
    };
    let mut rest = Vec::new();
    let claim = match &plan.load {
        Load::Ramp { .. } => {
            let slo = plan.slo.map_or_else(|| "the objective".to_owned(), |slo| slo.to_string());
            let best = |arm: usize| report.ramp.as_ref().and_then(|ramp| ramp.best.get(arm).copied().flatten());
            match (of.capacity, best(of.arm), best(plan.baseline)) {
                (Some(capacity), Some(arm), Some(baseline)) => format!(
                    "{} times the rate within {slo} ({} against {} requests/s)",
                    ratio(capacity),
                    plain(arm),
                    plain(baseline)
                ),
                (_, Some(arm), None) => format!("{} requests/s within {slo}, the baseline none", plain(arm)),
                (_, None, Some(baseline)) => format!("no rate within {slo}, the baseline {}", plain(baseline)),
                _ => format!("no rate within {slo}, nor the baseline"),
            }
        }
        Load::Open { rate, .. } => {
            rest.push(throughput);
            rest.extend(latencies.into_iter().skip(1));
            claimed(&of.p50, &format!("the p50 latency at {} requests/s", plain(*rate)))
        }
        Load::Closed { .. } | Load::Overload { .. } => {
            rest.extend(latencies);
            claimed(&of.throughput, "the throughput")
        }
    };
    if let Some(flops) = of.flops {
        rest.push(format!("FLOPs {}", ratio(flops)));
    }
    if let (Some(capacity), false) = (of.capacity, matches!(plan.load, Load::Ramp { .. })) {
        rest.push(format!("highest rate {}", ratio(capacity)));
    }
    Finding { subject, claim, rest }
}

/// What a reader has to know before believing the rest.
pub(super) fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    if report.interrupted {
        warnings.push("The run was interrupted; what stands here is what it had found.".to_owned());
    }
    for arm in &report.arms {
        let name = &arm.name;
        if !arm.counts.whole() {
            let counts = &arm.counts;
            warnings.push(format!(
                "{name}: not every request is accounted for: {} sent, but {} ended.",
                amount(counts.sent),
                amount(counts.answered + counts.refused + counts.failed + counts.timed_out + counts.broken)
            ));
        }
        if let Some(late) = arm.held_up() {
            warnings.push(format!(
                "{name}: the harness sent requests {} ms late (p99), at a p50 latency of {} ms: it, or its connections, \
                 held the load up.",
                latency(late),
                latency(arm.latency.quantile(0.5))
            ));
        }
        if arm.changed > 0 {
            warnings.push(format!(
                "{name}: {} of {} answers differ from the first one for the same image.",
                amount(arm.changed),
                amount(arm.images)
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    #[test]
    fn values_are_as_long_as_they_say_something() {
        assert_eq!(["0", "12", "123", "1,234", "1,234,567"], [0, 12, 123, 1234, 1_234_567].map(amount));
        assert_eq!(plain(1240.6), "1,241");
        assert_eq!(plain(999.7), "1,000");
        assert_eq!(plain(99.97), "100");
        assert_eq!(plain(23.14), "23.1");
        assert_eq!(plain(0.618), "0.62");
        assert_eq!(plain(f64::NAN), "–");
        assert_eq!(latency(0.0412), "0.041");
        assert_eq!(share(0.6249), "62 %");
        assert_eq!(share(0.0043), "0.43 %");
        assert_eq!(share(0.00004), "0.0040 %");
        assert_eq!(share(0.0), "0.0 %");
        assert_eq!(interval(&Interval { value: 1.524, low: 1.49, high: 1.55 }), "1.52 (1.49 to 1.55)");
        assert_eq!(interval(&Interval { value: 1.524, low: f64::NAN, high: 1.55 }), "1.52 (interval unknown)");
    }

    #[test]
    fn the_finding_is_what_the_load_is_there_to_find() {
        let mut report = made_up::full();
        let claim = |report: &Report| findings(report)[0].claim.clone();
        assert!(claim(&report).starts_with("1.5") && claim(&report).contains(" times the throughput (1."));
        report.plan.load = Load::Open { rate: 400.0, arrivals: Arrivals::Poisson, connections: 64 };
        assert!(claim(&report).contains(" times the p50 latency at 400 requests/s (0."), "{}", claim(&report));
        report.plan.load =
            Load::Ramp { from: 100.0, to: 2000.0, step: 1.2, arrivals: Arrivals::Poisson, connections: 64 };
        assert!(claim(&report).contains(" times the rate within p99=20ms ("), "{}", claim(&report));
        report.ratios[0].throughput = Interval { value: 1.01, low: 0.97, high: 1.05 };
        report.plan.load = Load::Closed { clients: 1, think: std::time::Duration::ZERO };
        assert_eq!(claim(&report), "1.01 times the throughput (0.97 to 1.05, so neither is ahead)");
    }

    #[test]
    fn a_harness_that_was_late_is_warned_of() {
        let mut report = made_up::full();
        report.arms[0].delay = Default::default();
        (0..100).for_each(|_| report.arms[0].delay.record(2_000));
        assert!(warnings(&report).iter().any(|text| text.contains("full: the harness sent requests 2.00 ms late")));
        report.arms[0].delay = Default::default();
        (0..100).for_each(|_| report.arms[0].delay.record(1));
        assert!(!warnings(&report).iter().any(|text| text.contains("late")));
        report.arms[0].counts.failed += 1;
        assert!(warnings(&report).iter().any(|text| text.contains("not every request is accounted for")));
    }
}
