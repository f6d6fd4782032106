use std::sync::Mutex;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tokio::sync::watch::{Receiver, Sender, channel};

use super::testing::{Fate, MadeUp, arm, plan};
use super::*;
use crate::objective::Slo;
use crate::plan::Faults;
use crate::record::{Fault, Item, Payload};
use crate::report::ArmReport;

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Never stopped.
fn endless() -> Receiver<bool> {
    channel(false).1
}

fn answers(time: u64) -> impl Fn(Item, usize) -> Fate + Clone + Send + Sync + 'static {
    move |_, _| Fate::Answer(milliseconds(time))
}

/// What every report has to fulfil.
fn check(arms: &[ArmReport]) {
    for arm in arms {
        assert!(arm.counts.whole(), "{}: {:?}", arm.name, arm.counts);
        assert_eq!(arm.latency.len(), arm.counts.answered + arm.counts.timed_out);
        assert_eq!(arm.service.len(), arm.counts.answered);
        assert_eq!(arm.refusal.len(), arm.counts.refused);
        assert_eq!(arm.rounds.iter().map(|round| round.answered).sum::<u64>(), arm.latency.len());
        let mut series = crate::record::Counts::default();
        arm.series.iter().for_each(|second| series.add(&second.counts));
        assert_eq!(series, arm.counts);
        assert!(arm.series.windows(2).all(|pair| pair[0].at < pair[1].at), "{:?}", arm.series);
        assert!(arm.rounds.iter().all(|round| round.seconds >= 0.0), "{:?}", arm.rounds);
        let seconds: f64 = arm.rounds.iter().map(|round| round.seconds).sum();
        assert!((seconds - arm.seconds).abs() < 1e-6, "{seconds} {}", arm.seconds);
        for value in [arm.throughput, arm.goodput, arm.seconds] {
            assert!(value.is_finite() && value >= 0.0, "{value}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_finds_the_rate_of_its_clients() {
    let mut plan = plan();
    plan.load = Load::Closed { clients: 4, think: Duration::ZERO };
    plan.measure = Duration::from_secs(10);
    plan.slice = Duration::from_secs(1);
    // 13 ms do not divide a second.
    let (target, _) = MadeUp::new(10, answers(13));
    let driven = run(&plan, target, &(), endless()).await.unwrap();
    let arms = driven.arms(&plan);
    check(&arms);
    assert!((arms[0].throughput / (4.0 / 0.013) - 1.0).abs() < 1e-9, "{}", arms[0].throughput);
    assert!((10.0..10.02).contains(&arms[0].seconds), "{}", arms[0].seconds);
    assert_eq!(arms[0].rounds.len(), 10);
    assert!((10..=11).contains(&arms[0].series.len()), "{}", arms[0].series.len());
    assert!((arms[0].latency.quantile(0.5) - 13.0).abs() < 0.1);
    assert!(arms[0].delay.is_empty() && !driven.interrupted);
    assert!(driven.ratios(&plan).is_empty());
}

#[tokio::test(start_paused = true)]
async fn thinking_clients_are_counted_without_bias_whatever_the_slice() {
    for (think, slice) in [(40, 1000), (40, 30), (700, 100)] {
        let mut plan = plan();
        plan.arms = vec![arm("one"), arm("other")];
        plan.load = Load::Closed { clients: 50, think: milliseconds(think) };
        plan.measure = Duration::from_secs(20);
        plan.slice = milliseconds(slice);
        let (target, _) = MadeUp::new(10, answers(10));
        let arms = run(&plan, target, &(), endless()).await.unwrap().arms(&plan);
        check(&arms);
        let expected = 50.0 / (0.01 + think as f64 / 1000.0);
        assert!((arms[0].throughput / expected - 1.0).abs() < 0.03, "{think} {slice}: {}", arms[0].throughput);
    }
}

#[tokio::test(start_paused = true)]
async fn arms_take_turns_never_share_the_server_and_send_the_same() {
    let mut plan = plan();
    plan.arms = vec![arm("fast"), arm("slow")];
    plan.baseline = 1;
    plan.load = Load::Closed { clients: 3, think: Duration::ZERO };
    plan.measure = Duration::from_secs(4);
    plan.slice = milliseconds(200);
    plan.warm_up = milliseconds(100);
    plan.images.bad = 0.05;
    let (target, seen) = MadeUp::new(500, |item: Item, call| {
        Fate::Answer(milliseconds(if item.arm == 0 { 4 } else { 8 } + call as u64 % 3))
    });
    let driven = run(&plan, target, &(), endless()).await.unwrap();
    let arms = driven.arms(&plan);
    check(&arms);
    assert_eq!(seen.shared.load(Ordering::Relaxed), 0);
    assert_eq!(seen.callers.load(Ordering::Relaxed), 6, "connections outlive turns");

    let turns = turns(&seen);
    assert!(turns[0].iter().chain(&turns[1][..20]).all(|item| matches!(item.load, Payload::Images { .. })));
    let firsts = arms[0].rounds.iter().zip(&arms[1].rounds).filter(|(fast, slow)| fast.at < slow.at).count();
    assert!((4..=16).contains(&firsts), "neither arm is always first: {firsts} of 20");

    let ratio = &driven.ratios(&plan)[0];
    assert_eq!(ratio.arm, 0);
    for (interval, expected) in [(ratio.throughput, 9.0 / 5.0), (ratio.p50, 5.0 / 9.0)] {
        assert!((interval.value / expected - 1.0).abs() < 0.03, "{interval:?}");
        assert!(interval.low <= interval.value && interval.value <= interval.high, "{interval:?}");
    }
    assert_eq!((ratio.flops, ratio.capacity), (None, None));
}

/// What was sent, by where the arm changes.
fn turns(seen: &super::testing::Seen) -> Vec<Vec<Item>> {
    let mut turns: Vec<Vec<Item>> = Vec::new();
    for item in seen.items.lock().unwrap().iter() {
        match turns.last_mut() {
            Some(turn) if turn[0].arm == item.arm => turn.push(*item),
            _ => turns.push(vec![*item]),
        }
    }
    turns
}

#[tokio::test]
async fn a_round_sends_every_arm_the_same_in_the_same_order() {
    for load in [
        Load::Closed { clients: 3, think: Duration::ZERO },
        Load::Open { rate: 1000.0, arrivals: Arrivals::Poisson, connections: 1 },
    ] {
        let mut plan = plan();
        plan.arms = vec![arm("one"), arm("other")];
        plan.load = load.clone();
        plan.images.bad = 0.2;
        plan.faults = Faults { share: 0.2, kinds: Fault::ALL.to_vec() };
        let (target, seen) = MadeUp::new(500, answers(1));
        run(&plan, target, &(), endless()).await.unwrap();
        let turns = turns(&seen);
        // Broken ones come from clients of their own, whenever those get to it.
        let honest = |item: &&Item| !matches!(item.load, Payload::Broken { .. });
        let loads = |turn: usize| turns[turn].iter().filter(honest).take(20).map(|item| item.load).collect::<Vec<_>>();
        assert!(turns[0].iter().any(|item| !honest(&item)), "{load:?}");
        assert_eq!(loads(0).len(), 20, "{load:?}");
        assert_eq!(loads(0), loads(1), "{load:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_too_short_for_the_slice_still_has_ten_rounds() {
    let mut plan = plan();
    plan.arms = vec![arm("one"), arm("other"), arm("third")];
    plan.measure = milliseconds(500);
    plan.slice = Duration::from_secs(2);
    let (target, _) = MadeUp::new(10, answers(1));
    let driven = run(&plan, target, &(), endless()).await.unwrap();
    assert!(driven.arms(&plan).iter().all(|arm| arm.rounds.len() == 10));
    assert_eq!(driven.ratios(&plan).iter().map(|ratio| ratio.arm).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_nothing_ends_the_run_in_the_warm_up() {
    let mut plan = plan();
    plan.arms = vec![arm("good"), arm("gone")];
    plan.warm_up = Duration::from_secs(1);
    let (target, seen) =
        MadeUp::new(10, |item: Item, _| if item.arm == 0 { Fate::Answer(milliseconds(1)) } else { Fate::Fail });
    let found = run(&plan, target, &(), endless()).await.unwrap_err();
    assert_eq!(
        found.to_string(),
        "arm gone: none of 100 requests was answered in the warm-up: connect, made up",
        "a client waits after a failure"
    );
    assert!(seen.items.lock().unwrap().iter().any(|item| item.arm == 0));

    let (target, _) = MadeUp::new(10, |_, _| Fate::Hang);
    let found = run(&plan, target, &(), endless()).await.unwrap_err();
    assert_eq!(found.to_string(), "arm good: none of 1 requests was answered in the warm-up: all timed out");
}

/// Stops a run after so many looks.
struct Impatient(Sender<bool>, Mutex<usize>);

impl Watch for Impatient {
    fn progress(&self, progress: &Progress<'_>) {
        assert!(progress.elapsed <= progress.total, "{progress:?}");
        let mut left = self.1.lock().unwrap();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.0.send_replace(true);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_stopped_says_what_it_found() {
    for (looks, arms, slice) in
        [(1, 1, 900), (3, 1, 900), (30, 1, 900), (60, 1, 20), (3, 2, 900), (30, 2, 900), (77, 2, 900), (77, 2, 50)]
    {
        let mut plan = plan();
        plan.arms = (0..arms).map(|number| arm(&number.to_string())).collect();
        plan.load = Load::Closed { clients: 5, think: milliseconds(70) };
        plan.warm_up = milliseconds(200);
        plan.measure = Duration::from_secs(1000);
        plan.slice = milliseconds(slice);
        let (target, _) =
            MadeUp::new(10, |_, call| if call % 20 == 0 { Fate::Hang } else { Fate::Answer(milliseconds(150)) });
        let (stop, stopped) = channel(false);
        let driven = run(&plan, target, &Impatient(stop, Mutex::new(looks)), stopped).await.unwrap();
        assert!(driven.interrupted && driven.seconds < 20.0, "{}", driven.seconds);
        check(&driven.arms(&plan));
        let answered = driven.arms(&plan)[0].counts.answered;
        assert!(looks < 60 || answered > 0, "{answered} after {looks}");
        driven.ratios(&plan);
    }
}

#[tokio::test]
async fn an_open_loop_that_is_stopped_is_accounted_for() {
    let mut plan = plan();
    plan.load = Load::Open { rate: 2000.0, arrivals: Arrivals::Poisson, connections: 2 };
    plan.measure = Duration::from_secs(1000);
    let (target, seen) = MadeUp::new(10, answers(20));
    let (stop, stopped) = channel(false);
    let driven = run(&plan, target, &Impatient(stop, Mutex::new(5)), stopped).await.unwrap();
    let arms = driven.arms(&plan);
    check(&arms);
    assert!(driven.interrupted);
    assert_eq!(arms[0].counts.sent, seen.calls.load(Ordering::Relaxed) as u64, "what waited is not sent");
}

#[tokio::test]
async fn an_open_loop_counts_from_when_requests_are_due() {
    let mut plan = plan();
    plan.arms = vec![arm("one"), arm("other")];
    plan.load = Load::Open { rate: 100.0, arrivals: Arrivals::Constant, connections: 1 };
    plan.measure = milliseconds(400);
    let (target, seen) = MadeUp::new(10, answers(30));
    let driven = run(&plan, target, &(), endless()).await.unwrap();
    let arms = driven.arms(&plan);
    check(&arms);
    assert_eq!(seen.shared.load(Ordering::Relaxed), 0);
    for arm in &arms {
        assert_eq!(arm.counts.answered, 40);
        // Four in a slice of 40 ms on one connection: the last is due after 30 ms, sent after 90 or later.
        assert!(arm.latency.max() >= 89.9, "{}", arm.latency.max());
        assert!(arm.delay.max() >= 59.9, "{}", arm.delay.max());
        let (sum, latency) = (arm.delay.mean() + arm.service.mean(), arm.latency.mean());
        assert!((sum / latency - 1.0).abs() < 0.01, "{sum} {latency}");
        // What is answered after the slices takes its time too.
        assert!(arm.seconds >= 10.0 * 0.0899 && arm.throughput <= 45.0, "{} {}", arm.seconds, arm.throughput);
    }
}

#[tokio::test]
async fn requests_that_never_get_a_connection_time_out_and_are_counted() {
    let mut plan = plan();
    plan.load = Load::Open { rate: 3000.0, arrivals: Arrivals::Constant, connections: 3 };
    plan.measure = milliseconds(300);
    plan.request.timeout = milliseconds(50);
    let (target, seen) = MadeUp::new(10, |_, _| Fate::Hang);
    let arms = run(&plan, target, &(), endless()).await.unwrap().arms(&plan);
    check(&arms);
    let sent = seen.calls.load(Ordering::Relaxed) as u64;
    assert_eq!((arms[0].counts.sent, arms[0].counts.timed_out), (900, 900));
    assert!(sent <= 900 && arms[0].delay.len() == sent, "{sent}");
}

#[tokio::test]
async fn an_overload_is_a_multiple_of_what_is_answered() {
    let mut plan = plan();
    plan.arms = vec![arm("one"), arm("other")];
    plan.load = Load::Overload { factor: 3.0, clients: 2, arrivals: Arrivals::Constant, connections: 8 };
    plan.measure = milliseconds(500);
    plan.slo = Some(Slo { quantile: 0.99, most: 15.0 });
    plan.request.timeout = milliseconds(100);
    let (target, _) = MadeUp::new(10, answers(10));
    let driven = run(&plan, target, &(), endless()).await.unwrap();
    let arms = driven.arms(&plan);
    check(&arms);
    for arm in &arms {
        let peak = arm.peak.unwrap();
        assert!(peak > 0.0 && peak <= 200.0, "{peak}");
        assert!((arm.counts.sent as f64 / (3.0 * peak * 0.5) - 1.0).abs() < 0.1, "{:?} at {peak}", arm.counts);
    }
    let (target, _) = MadeUp::new(10, |_, _| Fate::Refuse(milliseconds(1)));
    let found = run(&plan, target, &(), endless()).await.unwrap_err().to_string();
    assert!(found.contains("expected a peak to overload: 503 overloaded, made up"), "{found}");
}

/// Knows the rate that a ramp is at.
#[derive(Clone, Default)]
struct Rate(Arc<Mutex<f64>>);

impl Watch for Rate {
    fn progress(&self, progress: &Progress<'_>) {
        assert!(progress.elapsed <= progress.total, "{progress:?}");
        if let Phase::Rate(rate) = progress.phase {
            *self.0.lock().unwrap() = rate;
        }
    }
}

#[tokio::test]
async fn a_ramp_finds_the_highest_rate_of_each_arm() {
    let mut plan = plan();
    plan.arms = vec![arm("one"), arm("other"), arm("never")];
    plan.baseline = 1;
    plan.load = Load::Ramp { from: 200.0, to: 5000.0, step: 1.5, arrivals: Arrivals::Constant, connections: 8 };
    plan.measure = milliseconds(100);
    plan.slice = milliseconds(10);
    plan.images.bad = 0.1;
    let rate = Rate::default();
    let limits = [2000.0, 1000.0, 100.0];
    let told = rate.clone();
    let (target, _) = MadeUp::new(10, move |item: Item, _| {
        let over = *told.0.lock().unwrap() > limits[item.arm];
        if over { Fate::Refuse(Duration::ZERO) } else { Fate::Answer(Duration::ZERO) }
    });
    let found = run(&plan, target.clone(), &rate, endless()).await.unwrap_err();
    assert!(found.to_string().contains("objective"), "{found}");

    plan.slo = Some(Slo { quantile: 0.5, most: 1000.0 });
    let driven = run(&plan, target, &rate, endless()).await.unwrap();
    let (ramp, arms) = (driven.ramp.clone().unwrap(), driven.arms(&plan));
    for (best, limit) in ramp.best.iter().zip(limits).take(2) {
        let best = best.unwrap();
        assert!(best <= limit && best * 1.051 >= limit, "{best} of {limit}");
    }
    assert_eq!(ramp.best[2], None);
    for step in &ramp.steps {
        assert!(step.counts.whole() && step.held == (step.rate <= limits[step.arm]), "{step:?}");
    }
    for (number, arm) in arms.iter().enumerate() {
        let mut own = ramp.steps.iter().filter(|step| step.arm == number);
        let best = own.clone().rfind(|step| step.held).or(own.next_back());
        assert_eq!(Some(arm.counts), best.map(|step| step.counts));
        assert_eq!(arm.rounds.len(), ramp.steps.iter().filter(|step| step.arm == number).count());
        assert!(arm.counts.whole());
    }
    let ratios = driven.ratios(&plan);
    assert_eq!(ratios.len(), 1, "nothing is compared with an arm that held no rate");
    let (capacity, throughput) = (ratios[0].capacity.unwrap(), ratios[0].throughput);
    assert_eq!(throughput.value, capacity);
    assert!(
        throughput.low <= 2.0 && 2.0 <= throughput.high && throughput.high / throughput.low < 1.11,
        "{throughput:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever a server does, and whatever the load: every request is accounted for.
    #[test]
    fn every_request_is_accounted_for(
        seed: u64,
        open: bool,
        arms in 1_usize..3,
        clients in 1_usize..20,
        rate in 100.0_f64..20_000.0,
        fates in proptest::collection::vec(0_u8..8, 1..50),
        (bad, broken) in (0.0_f64..0.5, 0.0_f64..0.5),
        timeout in 1_u64..20,
    ) {
        let mut plan = plan();
        plan.seed = seed;
        plan.arms = (0..arms).map(|number| arm(&number.to_string())).collect();
        plan.load = if open {
            Load::Open { rate, arrivals: Arrivals::Poisson, connections: clients }
        } else {
            Load::Closed { clients, think: milliseconds(seed % 3) }
        };
        plan.images.bad = bad;
        plan.faults = Faults { share: broken, kinds: Fault::ALL.to_vec() };
        plan.measure = milliseconds(60);
        plan.request.timeout = milliseconds(timeout);
        let (target, seen) = MadeUp::new(7, move |_, call| match fates[call % fates.len()] {
            0 => Fate::Hang,
            1 => Fate::Fail,
            2 => Fate::Refuse(Duration::ZERO),
            3 => Fate::Refuse(milliseconds(3)),
            4 => Fate::Answer(milliseconds(2)),
            5 => Fate::Answer(milliseconds(timeout)),
            _ => Fate::Answer(Duration::ZERO),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let driven = runtime.block_on(run(&plan, target, &(), endless())).unwrap();
        let reports = driven.arms(&plan);
        check(&reports);
        let sent: u64 = reports.iter().map(|arm| arm.counts.sent).sum();
        let calls = seen.calls.load(Ordering::Relaxed) as u64;
        prop_assert!(calls <= sent && (open || calls == sent), "{calls} of {sent}");
        prop_assert_eq!(seen.shared.load(Ordering::Relaxed), 0);
        driven.ratios(&plan);
    }
}
