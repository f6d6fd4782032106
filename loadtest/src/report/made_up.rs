//! Reports of runs that never were, with all that a report can have, and with as little as it can.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};

use super::*;
use crate::latencies::Latencies;
use crate::plan::{Arm, Datatype, Faults, Format, Images, Load, Protocol, Request};
use crate::record::Counts;

const TURNS: u64 = 30;

/// Two arms under a closed loop for a minute in turns of a second, and a ramp; a few failures; 4 to 15 blocks.
pub(super) fn full() -> Report {
    static FULL: OnceLock<Report> = OnceLock::new();
    FULL.get_or_init(make).clone()
}

/// One arm that answered nothing, and told nothing.
pub(super) fn poor() -> Report {
    let mut report = full();
    report.plan.arms.truncate(1);
    report.plan.arms[0].name = "one".to_owned();
    report.plan.fail_if.clear();
    report.plan.slo = None;
    report.arms.truncate(1);
    report.arms[0] = ArmReport {
        server: String::new(),
        counts: Counts { sent: 3, failed: 3, ..Counts::default() },
        seconds: 30.0,
        causes: BTreeMap::from([("connect".to_owned(), (3, "connection refused".to_owned()))]),
        ..nothing("one")
    };
    report.ratios.clear();
    report.ramp = None;
    report.verdicts.clear();
    report
}

fn make() -> Report {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let arms = [("full", "full"), ("policy", "policy")];
    let plan = Plan {
        title: "Skipping against the full net".to_owned(),
        seed: 7,
        arms: arms
            .iter()
            .map(|(name, path)| Arm {
                name: (*name).to_owned(),
                url: "http://127.0.0.1:8080".to_owned(),
                model: Some("cifar10-resnet32".to_owned()),
                version: None,
                parameters: vec![("path".to_owned(), (*path).to_owned())],
            })
            .collect(),
        baseline: 0,
        request: Request {
            protocol: Protocol::Classify,
            images: 1,
            timeout: Duration::from_secs(5),
            new_connections: false,
            api_key: None,
            input: "image".to_owned(),
            datatype: Datatype::Bytes,
            output: None,
        },
        images: Images {
            from: PathBuf::from("cifar-10-batches-bin"),
            limit: 2000,
            sizes: Vec::new(),
            format: Format::Png,
            bad: 0.0,
        },
        load: Load::Closed { clients: 8, think: Duration::ZERO },
        warm_up: Duration::from_secs(2),
        measure: Duration::from_secs(TURNS),
        slice: Duration::from_secs(1),
        slo: Some("p99=20ms".parse().unwrap()),
        faults: Faults::default(),
        fail_if: ["policy.speedup.low<1.2", "errors>1%", "policy.p99>10ms"].map(|text| text.parse().unwrap()).to_vec(),
    };
    let reports = vec![arm(&mut random, 0, "full"), arm(&mut random, 1, "policy")];
    let ramp = ramp();
    let interval = |value: f64, wide: f64| Interval { value, low: value * (1.0 - wide), high: value * (1.0 + wide) };
    let over = |quantile: f64| reports[1].latency.quantile(quantile) / reports[0].latency.quantile(quantile);
    let ratio = Ratio {
        arm: 1,
        throughput: interval(reports[1].throughput / reports[0].throughput, 0.02),
        p50: interval(over(0.5), 0.03),
        p95: interval(over(0.95), 0.04),
        p99: interval(over(0.99), 0.09),
        flops: reports[1].flops_share(),
        capacity: ramp.best[1].zip(ramp.best[0]).map(|(policy, full)| policy / full),
    };
    let mut report = Report {
        schema: SCHEMA,
        harness: env!("CARGO_PKG_VERSION").to_owned(),
        started: "2026-02-03T14:05:06Z".to_owned(),
        seconds: 66.4,
        machine: Machine {
            cores: 8,
            cpu: "AMD EPYC 7B13".to_owned(),
            system: "Linux 6.12, Debian GNU/Linux 13".to_owned(),
        },
        plan,
        arms: reports,
        ratios: vec![ratio],
        ramp: Some(ramp),
        verdicts: Vec::new(),
        interrupted: false,
    };
    report.verdicts = report.plan.fail_if.iter().map(|condition| judge(condition, &report)).collect();
    report
}

fn arm(random: &mut ChaCha8Rng, at: u64, name: &str) -> ArmReport {
    let skips = name == "policy";
    let mut arm = nothing(name);
    let tail = LogNormal::new(0.0, 0.22).unwrap();
    let mut blocks_flops = 0.0;
    for turn in 0..TURNS {
        let start = 4 + 2 * turn + at;
        // The machine drifts, for both alike.
        let drift = 1.0 + 0.08 * (turn as f64 / 5.0).sin();
        let requests = (if skips { 1240.0 } else { 812.0 } / drift) as u64 + random.random_range(0..20);
        let mut round = Latencies::default();
        let mut counts = Counts { sent: requests, ..Counts::default() };
        for _ in 0..requests {
            let blocks = if skips { 4 + (tail.sample(random) * 5.0) as u16 } else { 15 }.min(15);
            let service = 1.6 + 0.55 * f64::from(blocks) * drift;
            let stall = if random.random_ratio(1, 150) { 9.0 } else { 0.0 };
            let micros = ((service * tail.sample(random) + stall) * 1000.0) as u64;
            match random.random_range(0..12_000_u32) {
                0 => {
                    counts.failed += 1;
                    count(&mut arm.causes, "connection reset", "connection reset by peer (os error 104)");
                }
                1 => counts.timed_out += 1,
                2..5 => {
                    counts.refused += 1;
                    count(&mut arm.causes, "503 overloaded", "the queue is full: 256 images wait; try again in 1 s");
                    arm.refusal.record(micros / 8);
                }
                _ => {
                    counts.answered += 1;
                    round.record(micros);
                    arm.service.record(micros - random.random_range(2..12));
                    arm.delay.record(random.random_range(1..12));
                    *arm.blocks.entry(blocks).or_default() += 1;
                    arm.by_blocks.entry(blocks).or_default().record(micros);
                    blocks_flops += f64::from(blocks) / 15.0;
                    arm.images += 1;
                    arm.labelled += 1;
                    arm.correct += u64::from(random.random_ratio(if skips { 921 } else { 924 }, 1000));
                }
            }
        }
        arm.latency.add(&round);
        let (p50, p95, p99) = (round.quantile(0.5), round.quantile(0.95), round.quantile(0.99));
        let throughput = counts.answered as f64;
        arm.rounds.push(Round { at: start as f64, seconds: 1.0, throughput, answered: counts.answered, p50, p95, p99 });
        arm.series.push(Second { at: start, counts, came: counts.answered, p50, p99 });
        arm.counts.add(&counts);
    }
    arm.quantiles = Quantiles::from(&arm.latency);
    (arm.good, arm.in_time) = (arm.counts.sent, arm.counts.answered);
    arm.seconds = TURNS as f64;
    arm.throughput = arm.images as f64 / arm.seconds;
    arm.goodput = arm.in_time as f64 / arm.seconds;
    let share = blocks_flops / arm.images as f64;
    arm.flops = Some((1.4e8 * share + if skips { 2.1e6 } else { 0.0 }, 1.4e8));
    arm.stages = Some(Stages {
        decode: 0.21,
        preprocess: 0.12,
        queue: 1.9 * share,
        policy: if skips { 0.32 } else { 0.0 },
        backbone: 7.4 * share,
        total: 0.33 + 1.9 * share + if skips { 0.32 } else { 0.0 } + 7.4 * share + 0.2,
    });
    arm
}

fn nothing(name: &str) -> ArmReport {
    ArmReport {
        name: name.to_owned(),
        server: "blockdrop 0.1.0, cifar10-resnet32 version 1".to_owned(),
        counts: Counts::default(),
        good: 0,
        in_time: 0,
        seconds: 0.0,
        throughput: 0.0,
        goodput: 0.0,
        peak: None,
        latency: Latencies::default(),
        quantiles: Quantiles::default(),
        service: Latencies::default(),
        delay: Latencies::default(),
        refusal: Latencies::default(),
        images: 0,
        labelled: 0,
        correct: 0,
        changed: 0,
        blocks: BTreeMap::new(),
        by_blocks: BTreeMap::new(),
        flops: None,
        stages: None,
        causes: BTreeMap::new(),
        rounds: Vec::new(),
        series: Vec::new(),
    }
}

fn count(causes: &mut BTreeMap<String, (u64, String)>, kind: &str, message: &str) {
    causes.entry(kind.to_owned()).or_insert_with(|| (0, message.to_owned())).0 += 1;
}

fn ramp() -> Ramp {
    let mut steps = Vec::new();
    for (arm, most) in [(0, 780.0), (1, 1190.0)] {
        for rate in [200.0, 300.0, 450.0, 675.0, 1012.5, 1518.75] {
            let load: f64 = rate / (most * 1.04);
            let p50 = 3.0 + 1.4 / (1.03 - load.min(1.0));
            let held = rate <= most;
            steps.push(Step {
                arm,
                rate,
                achieved: rate.min(most * 1.04),
                counts: Counts { sent: rate as u64 * 10, answered: rate as u64 * 10, ..Counts::default() },
                p50,
                p95: p50 * 1.4,
                p99: p50 * if held { 1.7 } else { 4.0 },
                held,
            });
            if !held {
                break;
            }
        }
    }
    Ramp { steps, best: vec![Some(675.0), Some(1012.5)] }
}

#[test]
#[ignore = "writes tests/page/report.json, which the page's tests in a browser show"]
fn write_the_report_of_the_page_tests() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/page/report.json");
    std::fs::write(path, full().to_json().unwrap() + "\n").unwrap();
}

#[test]
fn the_report_of_the_page_tests_can_be_read() {
    let report = Report::from_json(include_str!("../../../tests/page/report.json"));
    assert!(report.is_ok(), "{report:?}; cargo test -p blockdrop-loadtest --lib -- --ignored write_the_report");
}
