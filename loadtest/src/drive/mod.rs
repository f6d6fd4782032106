//! Drives a plan against a target.
//!
//! The arms take turns in slices; in each round every arm has one turn, in an order that is shuffled anew, so that none is
//! always first. Between turns all that is under way is awaited: arms never share the server. A plan's time is divided in
//! equal slices of about the length it asks for, [`ROUNDS`] at least, because intervals are drawn from rounds. An arm that
//! is alone has one turn that lasts, and slices only divide what is reported.
//!
//! Before, each arm is warmed up for the plan's time with good images, and nothing of that is counted. Where an arm
//! answers nothing at all in its warm-up, the run ends there.

mod found;
mod line;
mod ramp;
mod recorder;
mod tally;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod track;
mod turn;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::{Instant, MissedTickBehavior};

pub use found::Driven;
use found::{Climb, Found, per_second};
use recorder::{Clock, Recorder};
use track::{Rounds, Series};
use turn::{Order, Pool, Pressure, Turn, stopped};
pub use watch::{Phase, Progress, Watch};

use crate::deck::Deck;
use crate::plan::{Arrivals, Load, Plan};
use crate::report::Ramp;
use crate::seed::{Use, generator};
use crate::target::Target;

/// Rounds that a plan's time is divided in, at least.
const ROUNDS: u64 = 10;
/// How often those who look on are told.
const TICK: Duration = Duration::from_millis(100);
/// What is counted as recent.
const RECENT: Duration = Duration::from_secs(1);
/// The round of the warm-up's payloads and gaps, and of the closed load before an overload: far from all others.
const WARM_UP: u64 = 1 << 40;
const PEAK: u64 = 1 << 41;

/// Why a run cannot be.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// An arm answered nothing in its warm-up.
    #[error("arm {arm}: none of {sent} requests was answered in the warm-up: {cause}")]
    NothingAnswered { arm: String, sent: u64, cause: String },
    /// An arm answered nothing to the closed load before an overload.
    #[error("arm {arm}: none of {sent} requests was answered by the closed load, expected a peak to overload: {cause}")]
    NoPeak { arm: String, sent: u64, cause: String },
    #[error("a ramp looks for the highest rate that meets an objective, and the plan has none")]
    NoObjective,
}

/// Drives `plan` until it is through or `stop` turns true. Then nothing more is sent, what is under way is awaited, and
/// what was found until then is given, marked as interrupted.
///
/// To be called on a runtime with a timer; one thread is used beside it while an open load is on. Memory is bounded: each
/// second takes about a hundred bytes for each arm, requests that wait in the harness are those of the plan's timeout.
///
/// # Errors
/// Where an arm answers nothing at all, or a ramp has no objective.
///
/// # Panics
/// Where a caller of the target does.
pub async fn run<T: Target>(
    plan: &Plan,
    target: Arc<T>,
    watch: &dyn Watch,
    stop: tokio::sync::watch::Receiver<bool>,
) -> Result<Driven, DriveError> {
    let shards = (2 * tokio::runtime::Handle::current().metrics().num_workers()).min(16);
    let pools = (0..plan.arms.len()).map(Pool::new).collect();
    let (zero, elapsed, total) = (Instant::now(), Duration::ZERO, expected(plan));
    let mut driver = Driver { plan, target, watch, stop, shards, pools, zero, elapsed, total };
    driver.warm_up().await?;
    match plan.load {
        Load::Closed { clients, think } => {
            let pressures = vec![Pressure::Closed { clients, think }; plan.arms.len()];
            let found = driver.rounds(|_| Phase::Measure, &pressures, 0).await;
            Ok(driver.driven(found, None, Vec::new()))
        }
        Load::Open { rate, arrivals, connections } => {
            let pressures = vec![pressure(rate, arrivals, connections); plan.arms.len()];
            let found = driver.rounds(|_| Phase::Measure, &pressures, 0).await;
            Ok(driver.driven(found, None, Vec::new()))
        }
        Load::Ramp { .. } => {
            let slo = plan.slo.ok_or(DriveError::NoObjective)?;
            Ok(driver.ramp(&slo).await)
        }
        Load::Overload { .. } => driver.overload().await,
    }
}

/// Time under load of the whole run; of a ramp the most that it can come to.
pub fn expected(plan: &Plan) -> Duration {
    let arms = u32::try_from(plan.arms.len()).unwrap_or(u32::MAX);
    let measured = match plan.load {
        Load::Closed { .. } | Load::Open { .. } => plan.measure * arms,
        Load::Overload { .. } => plan.measure * arms * 2,
        Load::Ramp { .. } => ramp::most(plan),
    };
    plan.warm_up * arms + measured
}

fn pressure(rate: f64, arrivals: Arrivals, connections: usize) -> Pressure {
    Pressure::Open { rate, arrivals, connections }
}

/// Rounds that the plan's time is divided in.
fn rounds(plan: &Plan) -> u64 {
    let wanted = plan.measure.as_secs_f64() / plan.slice.as_secs_f64().max(1e-3);
    (wanted.round() as u64).max(ROUNDS)
}

/// A run under way.
struct Driver<'a, T: Target> {
    plan: &'a Plan,
    target: Arc<T>,
    watch: &'a dyn Watch,
    stop: tokio::sync::watch::Receiver<bool>,
    shards: usize,
    pools: Vec<Pool<T::Caller>>,
    zero: Instant,
    /// As [`Progress`] has them.
    elapsed: Duration,
    total: Duration,
}

/// Where what is measured goes as a turn goes on.
struct Into<'a> {
    rounds: &'a mut Rounds,
    series: &'a mut Series,
}

impl<T: Target> Driver<'_, T> {
    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    fn recorder(&self) -> Recorder {
        let timeout = recorder::micros(self.plan.request.timeout);
        let within = self.plan.slo.map_or(timeout, |slo| (slo.most * 1000.0) as u64);
        Recorder::new(self.shards, within, timeout)
    }

    fn deck(&self, round: u64) -> Deck {
        Deck::new(self.plan, self.target.images(), round)
    }

    fn order(&self, pressure: Pressure, length: Duration, first: u64, rounds: u64, deck: Deck) -> Order {
        let (seed, timeout, zero) = (self.plan.seed, self.plan.request.timeout, self.zero);
        Order { pressure, length, first, rounds, deck, seed, timeout, zero }
    }

    fn driven(&self, arms: Vec<Found>, ramp: Option<Ramp>, climbs: Vec<Climb>) -> Driven {
        Driven { arms, ramp, climbs, seconds: self.zero.elapsed().as_secs_f64(), interrupted: self.stopped() }
    }

    async fn warm_up(&mut self) -> Result<(), DriveError> {
        if self.plan.warm_up.is_zero() {
            return Ok(());
        }
        let pressure = match self.plan.load {
            Load::Closed { clients, think } => Pressure::Closed { clients, think },
            Load::Overload { clients, .. } => Pressure::Closed { clients, think: Duration::ZERO },
            Load::Open { rate, arrivals, connections } => pressure(rate, arrivals, connections),
            Load::Ramp { from, arrivals, connections, .. } => pressure(from, arrivals, connections),
        };
        for arm in 0..self.plan.arms.len() {
            let recorder = Arc::new(self.recorder());
            let deck = Deck::good(self.plan, self.target.images(), WARM_UP);
            let order = self.order(pressure, self.plan.warm_up, 0, 1, deck);
            self.turn(arm, Phase::WarmUp, order, &recorder, None).await;
            if self.stopped() {
                break;
            }
            if let Some((sent, cause)) = nothing(&recorder) {
                return Err(DriveError::NothingAnswered { arm: self.plan.arms[arm].name.clone(), sent, cause });
            }
        }
        Ok(())
    }

    /// The plan's time under a load for each arm, in turns. `first` sets the payloads of a phase apart.
    async fn rounds(&mut self, phase: impl Fn(usize) -> Phase, pressures: &[Pressure], first: u64) -> Vec<Found> {
        let rounds = rounds(self.plan);
        let mut found = vec![Found::default(); pressures.len()];
        let recorders: Vec<_> = pressures.iter().map(|_| Arc::new(self.recorder())).collect();
        // One arm alone has one turn of all rounds.
        let (turns, each) = if pressures.len() == 1 { (1, rounds) } else { (rounds, 1) };
        let length = self.plan.measure.div_f64(turns as f64);
        'rounds: for turn in 0..turns {
            let mut arms: Vec<usize> = (0..pressures.len()).collect();
            arms.shuffle(&mut generator(self.plan.seed, Use::Order, first + turn));
            for arm in arms {
                if self.stopped() {
                    break 'rounds;
                }
                let order = self.order(pressures[arm], length, turn, each, self.deck(first + turn));
                let Found { tally, rounds, series, .. } = &mut found[arm];
                let mut into = Into { rounds, series };
                tally.seconds += self.turn(arm, phase(arm), order, &recorders[arm], Some(&mut into)).await;
            }
        }
        for (found, recorder) in found.iter_mut().zip(recorders) {
            found.tally.add(&recorder.sum());
        }
        found
    }

    async fn overload(&mut self) -> Result<Driven, DriveError> {
        let Load::Overload { factor, clients, arrivals, connections } = self.plan.load else {
            unreachable!("only an overload is driven so");
        };
        let closed = vec![Pressure::Closed { clients, think: Duration::ZERO }; self.plan.arms.len()];
        let before = self.rounds(|_| Phase::Peak, &closed, PEAK).await;
        let peaks: Vec<f64> =
            before.iter().map(|found| per_second(found.tally.counts.answered, found.tally.seconds)).collect();
        if self.stopped() {
            return Ok(self.driven(vec![Found::default(); peaks.len()], None, Vec::new()));
        }
        if let Some(arm) = peaks.iter().position(|peak| *peak <= 0.0) {
            let tally = &before[arm].tally;
            let (sent, cause) = (tally.counts.sent, first_cause(tally));
            return Err(DriveError::NoPeak { arm: self.plan.arms[arm].name.clone(), sent, cause });
        }
        let open: Vec<Pressure> = peaks.iter().map(|peak| pressure(factor * peak, arrivals, connections)).collect();
        let mut found = self.rounds(|arm| Phase::Overload(factor * peaks[arm]), &open, 0).await;
        for (found, peak) in found.iter_mut().zip(peaks) {
            found.peak = Some(peak);
        }
        Ok(self.driven(found, None, Vec::new()))
    }

    /// One turn of an arm: how many seconds it was under load. Rounds and seconds go into `into` when they are past.
    async fn turn(
        &mut self,
        arm: usize,
        phase: Phase,
        order: Order,
        recorder: &Arc<Recorder>,
        mut into: Option<&mut Into<'_>>,
    ) -> f64 {
        let (length, timeout) = (order.length, order.timeout);
        let mut recent = VecDeque::new();
        self.show(arm, phase, Duration::ZERO, recorder, &mut recent, 0);
        let mut turn = Turn::start(order, &mut self.pools[arm], &*self.target, recorder, &self.stop);
        let clock = turn.clock;
        if let Some(into) = &mut into {
            into.series.loaded(clock.second(clock.start), clock.second(clock.start));
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first round whose seconds have not been counted.
        let mut next = clock.first;
        loop {
            tokio::select! {
                () = turn.over(&mut self.pools[arm]) => break,
                () = stopped(self.stop.clone()), if !turn.is_halted() => turn.halt(),
                _ = ticks.tick() => {
                    let now = Instant::now();
                    let elapsed = now.saturating_duration_since(clock.start).min(length);
                    let since = clock.second(now).saturating_sub(1);
                    self.show(arm, phase, elapsed, recorder, &mut recent, since);
                    if let Some(into) = into.as_mut().filter(|_| !turn.is_halted()) {
                        next = into.past(recorder, &clock, timeout, next, now);
                    }
                }
            }
        }
        let seconds = turn.finish(&mut self.pools[arm]);
        if let Some(into) = into {
            into.rest(recorder, &clock, next, seconds);
        }
        self.elapsed += length;
        seconds
    }

    /// Tells those who look on; `elapsed` is of this turn, p99 of what was due since a second.
    fn show(
        &self,
        arm: usize,
        phase: Phase,
        elapsed: Duration,
        recorder: &Recorder,
        recent: &mut VecDeque<(Instant, u64)>,
        since: u64,
    ) {
        let (now, counts) = (Instant::now(), recorder.counts());
        recent.push_back((now, counts.answered));
        while recent.len() > 2 && now - recent[1].0 >= RECENT {
            recent.pop_front();
        }
        let (first, before) = recent[0];
        self.watch.progress(&Progress {
            phase,
            arm,
            name: &self.plan.arms[arm].name,
            elapsed: self.elapsed + elapsed,
            total: self.total,
            counts,
            throughput: per_second(counts.answered - before, (now - first).as_secs_f64()),
            p99: recorder.since(since).quantile(0.99),
        });
    }
}

impl Into<'_> {
    /// Takes what is past out of the recorder: the next round to count.
    fn past(&mut self, recorder: &Recorder, clock: &Clock, timeout: Duration, next: u64, now: Instant) -> u64 {
        let current = clock.round(now);
        for (round, part) in recorder.take_rounds(current) {
            self.rounds.answered(round, clock, &part);
        }
        for round in next..current {
            self.rounds.loaded(round, clock, clock.slice());
        }
        // A second is past when the last request that was due in it has run out of time; tokio's timer is late by a
        // millisecond, and a busy machine by more.
        let second = clock.second(now).saturating_sub(timeout.as_secs() + 3);
        self.series.add(&recorder.take_seconds(second));
        self.series.loaded(clock.second(clock.start), clock.second(now.min(clock.end())));
        self.series.settle(second);
        current
    }

    /// Takes all that is left when a turn is over, of so many seconds.
    fn rest(&mut self, recorder: &Recorder, clock: &Clock, next: u64, seconds: f64) {
        for (round, part) in recorder.take_rounds(u64::MAX) {
            self.rounds.answered(round, clock, &part);
        }
        self.rounds.loaded(next, clock, seconds - clock.slice() * (next - clock.first) as f64);
        if clock.rounds > 1 {
            // A turn that was stopped has its last answers in rounds that had just begun, or never did.
            self.rounds.trim(clock.slice() / 2.0);
        }
        self.series.add(&recorder.take_seconds(u64::MAX));
        self.series.settle(clock.second(clock.end()));
    }
}

/// What there is to say where nothing was answered: how many were sent, and the first cause.
fn nothing(recorder: &Recorder) -> Option<(u64, String)> {
    let tally = recorder.sum();
    (tally.counts.sent > 0 && tally.counts.answered == 0).then(|| (tally.counts.sent, first_cause(&tally)))
}

fn first_cause(tally: &crate::record::Tally) -> String {
    let most = tally.causes.values().max_by_key(|cause| cause.0);
    most.map_or_else(|| "all timed out".to_owned(), |(_, message)| message.clone())
}
