//! A turn: one arm under load for a while, and then until nothing is under way.
//!
//! # How throughput is counted
//! Closed loop: a client's time goes from its start to the end of the last request that it began before the turn's end,
//! with the pause that is due after it, and all of the client's requests count. A client so always spends whole cycles of
//! a request and a pause, and requests over time is their rate without bias (Wald's identity), where a cut at the turn's
//! end would lose or gain a part of a request for each client and turn. The turn's seconds are the mean over its clients.
//! Clients that think begin at random points of a pause.
//!
//! Requests that are broken on purpose go to clients of their own, [`VANDALS`] at a time at most, so that honest ones are at
//! full pace beside them; where all of those are busy, fewer are broken.
//!
//! Open loop: all requests that were due in the turn count. Its seconds are its length, or from the first answer to the
//! last where that is longer: a server that cannot keep up is not credited with what it answers after the turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::line::{Due, Line};
use super::recorder::{Clock, Recorder, Request};
use crate::deck::Deck;
use crate::pace::{Dues, pace};
use crate::plan::Arrivals;
use crate::record::{Item, Payload, Reply};
use crate::seed::{Use, generator};
use crate::target::{Caller, Target};

/// A client whose request failed waits so long at least, so that a server that is gone is not stormed.
const AFTER_FAILURE: Duration = Duration::from_millis(10);
/// Where the pacer of an open load counts what it sends on its way.
const PACER: usize = 0;
/// Requests that are broken at once.
const VANDALS: usize = 128;
/// From the start of a turn's tasks to its first request.
const LEAD: Duration = Duration::from_millis(2);

/// How hard an arm is driven in a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pressure {
    Closed { clients: usize, think: Duration },
    Open { rate: f64, arrivals: Arrivals, connections: usize },
}

/// An arm's clients. Their connections outlive turns.
pub(super) struct Pool<C> {
    arm: usize,
    /// Those in a task are away.
    callers: Vec<Option<C>>,
    /// Their numbers, the one that was busy last at the end.
    order: Vec<usize>,
}

impl<C: Caller> Pool<C> {
    pub(super) fn new(arm: usize) -> Self {
        Self { arm, callers: Vec::new(), order: Vec::new() }
    }

    /// Makes it have `count` clients at least.
    fn grow<T: Target<Caller = C>>(&mut self, count: usize, target: &T) {
        while self.callers.len() < count {
            self.order.insert(0, self.callers.len());
            self.callers.push(Some(target.caller(self.arm)));
        }
    }
}

/// What clients of a turn share.
struct Shared {
    arm: usize,
    clock: Clock,
    timeout: Duration,
    recorder: Arc<Recorder>,
    /// The run is stopped.
    halt: AtomicBool,
    stop: watch::Receiver<bool>,
}

/// What is to be done in a turn.
pub(super) struct Order {
    pub(super) pressure: Pressure,
    pub(super) length: Duration,
    /// The turn's first round, and how many rounds it is divided in.
    pub(super) first: u64,
    pub(super) rounds: u64,
    pub(super) deck: Deck,
    /// What gaps and staggered starts are drawn with.
    pub(super) seed: u64,
    pub(super) timeout: Duration,
    pub(super) zero: Instant,
}

/// A turn under way.
pub(super) struct Turn<C> {
    pub(super) clock: Clock,
    shared: Arc<Shared>,
    clients: JoinSet<Done<C>>,
    line: Option<Arc<Line>>,
    pacer: Option<JoinHandle<()>>,
    /// When the run was stopped.
    halted: Option<Instant>,
    /// How many clients there were, and the sum of their times.
    count: usize,
    own: f64,
}

/// A client that is done.
struct Done<C> {
    number: usize,
    caller: C,
    /// Closed loop: seconds of its whole cycles.
    own: f64,
}

impl<C: Caller> Turn<C> {
    /// Starts the clients.
    pub(super) fn start<T: Target<Caller = C>>(
        order: Order,
        pool: &mut Pool<C>,
        target: &T,
        recorder: &Arc<Recorder>,
        stop: &watch::Receiver<bool>,
    ) -> Self {
        let Order { pressure, length, first, rounds, deck, seed, timeout, zero } = order;
        let count = match pressure {
            Pressure::Closed { clients, .. } => clients,
            Pressure::Open { connections, .. } => connections,
        };
        let vandals = if deck.breaks() { VANDALS } else { 0 };
        pool.grow(count + vandals, target);
        let clock = Clock { zero, start: Instant::now() + LEAD, length, first, rounds: rounds.max(1) };
        let shared = Arc::new(Shared {
            arm: pool.arm,
            clock,
            timeout,
            recorder: recorder.clone(),
            halt: AtomicBool::new(false),
            stop: stop.clone(),
        });
        let mut turn =
            Self { clock, shared, clients: JoinSet::new(), line: None, pacer: None, halted: None, count, own: 0.0 };
        let (sender, receiver) = mpsc::channel(VANDALS);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        for (number, caller) in take(pool, count, vandals) {
            turn.clients.spawn(turn.shared.clone().vandalise(number, caller, receiver.clone()));
        }
        match pressure {
            Pressure::Closed { clients, think } => {
                let deck = Arc::new(Mutex::new(deck));
                let mut stagger = generator(seed, Use::Stagger, first);
                for (number, caller) in take(pool, 0, clients) {
                    let begin = clock.start + think.mul_f64(stagger.random());
                    let (deck, sender) = (deck.clone(), sender.clone());
                    turn.clients.spawn(turn.shared.clone().ask(number, caller, (deck, sender), begin, think));
                }
            }
            Pressure::Open { rate, arrivals, connections } => {
                let order: Vec<usize> = pool.order.iter().copied().filter(|number| *number < connections).collect();
                let line = Arc::new(Line::new(order, timeout));
                for (number, caller) in take(pool, 0, connections) {
                    turn.clients.spawn(turn.shared.clone().serve(number, caller, line.clone(), sender.clone()));
                }
                let dues = Dues::new(arrivals, rate, length, seed, first);
                let (shared, to) = (turn.shared.clone(), line.clone());
                turn.pacer = Some(tokio::task::spawn_blocking(move || shared.pace(dues, deck, &to)));
                turn.line = Some(line);
            }
        }
        turn
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    /// No more requests are sent.
    pub(super) fn halt(&mut self) {
        self.halted.get_or_insert_with(Instant::now);
        self.shared.halt.store(true, Ordering::Relaxed);
    }

    /// Waits until the turn is over and all clients are back. May be dropped and called again.
    pub(super) async fn over(&mut self, pool: &mut Pool<C>) {
        if let Some(pacer) = &mut self.pacer {
            let paced = pacer.await;
            self.pacer = None;
            resume(paced);
        }
        while let Some(done) = self.clients.join_next().await {
            let done = resume(done);
            pool.callers[done.number] = Some(done.caller);
            self.own += done.own;
        }
        if self.halted.is_none() {
            sleep_until(self.clock.end()).await;
        }
    }

    /// Seconds that the arm was under load, once it is over.
    pub(super) fn finish(self, pool: &mut Pool<C>) -> f64 {
        let planned = self.clock.length.as_secs_f64();
        let Some(line) = self.line else {
            return if self.own > 0.0 { self.own / self.count.max(1) as f64 } else { planned };
        };
        let used = line.order();
        pool.order.retain(|number| !used.contains(number));
        pool.order.extend(used);
        let answers = self.shared.recorder.take_answers();
        let drained = answers.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let offered = self.halted.map_or(planned, |at| at.saturating_duration_since(self.clock.start).as_secs_f64());
        offered.max(drained)
    }
}

/// Some clients of a pool, to be given back.
fn take<C>(pool: &mut Pool<C>, first: usize, count: usize) -> impl Iterator<Item = (usize, C)> + '_ {
    let callers = pool.callers.iter_mut().enumerate().skip(first).take(count);
    callers.filter_map(|(number, caller)| Some((number, caller.take()?)))
}

/// A request to break, and since when.
type Breakage = (Payload, Instant);

/// A panic of a task is a panic of the run.
fn resume<R>(result: Result<R, tokio::task::JoinError>) -> R {
    match result {
        Ok(done) => done,
        Err(reason) => match reason.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(reason) => unreachable!("nobody aborts a client: {reason}"),
        },
    }
}

impl Shared {
    fn halted(&self) -> bool {
        self.halt.load(Ordering::Relaxed)
    }

    /// A client of a closed loop.
    async fn ask<C: Caller>(
        self: Arc<Self>,
        number: usize,
        mut caller: C,
        (deck, vandals): (Arc<Mutex<Deck>>, mpsc::Sender<Breakage>),
        begin: Instant,
        think: Duration,
    ) -> Done<C> {
        let end = self.clock.end();
        let mut own = Duration::ZERO;
        let mut stopped = self.pause(begin.min(end)).await;
        while !stopped && !self.halted() && Instant::now() < end {
            let load = deck.lock().unwrap_or_else(PoisonError::into_inner).draw();
            let sent = Instant::now();
            if matches!(load, Payload::Broken { .. }) {
                // All vandals are busy: this one is not broken.
                let _ = vandals.try_send((load, sent));
                tokio::task::consume_budget().await;
                continue;
            }
            self.recorder.begin(number, 1);
            let (reply, done) = self.send(&mut caller, load, sent + self.timeout).await;
            self.recorder.record(number, &self.clock, &Request { load, due: sent, sent: Some(sent), done }, &reply);
            let pause = if matches!(reply, Reply::Failed(_)) { think.max(AFTER_FAILURE) } else { think };
            own = (done + pause).saturating_duration_since(begin);
            if pause.is_zero() {
                tokio::task::consume_budget().await;
            } else if done + pause < end {
                stopped = self.pause(done + pause).await;
            } else {
                break;
            }
        }
        Done { number, caller, own: own.as_secs_f64() }
    }

    /// A client of an open loop.
    async fn serve<C: Caller>(
        self: Arc<Self>,
        number: usize,
        mut caller: C,
        line: Arc<Line>,
        vandals: mpsc::Sender<Breakage>,
    ) -> Done<C> {
        while let Some(Due { at: due, load }) = line.next(number).await {
            if self.halted() {
                self.recorder.give_up(PACER, 1);
                continue;
            }
            if matches!(load, Payload::Broken { .. }) {
                // Counted when a vandal takes it.
                self.recorder.give_up(PACER, 1);
                let _ = vandals.try_send((load, due));
                continue;
            }
            let sent = Instant::now();
            let deadline = due + self.timeout;
            if sent >= deadline {
                let request = Request { load, due, sent: None, done: sent };
                self.recorder.record(number, &self.clock, &request, &Reply::TimedOut);
            } else {
                let (reply, done) = self.send(&mut caller, load, deadline).await;
                self.recorder.record(number, &self.clock, &Request { load, due, sent: Some(sent), done }, &reply);
            }
            tokio::task::consume_budget().await;
        }
        Done { number, caller, own: 0.0 }
    }

    /// A client that breaks requests, until nobody is left who has any.
    async fn vandalise<C: Caller>(
        self: Arc<Self>,
        number: usize,
        mut caller: C,
        breakages: Arc<tokio::sync::Mutex<mpsc::Receiver<Breakage>>>,
    ) -> Done<C> {
        loop {
            let next = breakages.lock().await.recv().await;
            let Some((load, due)) = next else { break };
            if self.halted() {
                continue;
            }
            self.recorder.begin(number, 1);
            let sent = Instant::now();
            let (reply, done) = self.send(&mut caller, load, sent + self.timeout).await;
            self.recorder.record(number, &self.clock, &Request { load, due, sent: Some(sent), done }, &reply);
        }
        Done { number, caller, own: 0.0 }
    }

    /// What paces an open loop, on a thread of its own.
    fn pace(&self, dues: Dues, mut deck: Deck, line: &Line) {
        let mut overdue = Vec::new();
        pace(dues, self.clock.start.into_std(), &self.halt, |batch| {
            self.recorder.begin(PACER, batch.len() as u64);
            let now = Instant::now();
            line.give(batch.iter().map(|at| Due { at: Instant::from_std(*at), load: deck.draw() }), now, &mut overdue);
            for Due { at: due, load } in overdue.drain(..) {
                let request = Request { load, due, sent: None, done: now };
                self.recorder.record(PACER, &self.clock, &request, &Reply::TimedOut);
            }
        });
        line.close();
    }

    async fn send<C: Caller>(&self, caller: &mut C, load: Payload, deadline: Instant) -> (Reply, Instant) {
        let reply = timeout_at(deadline, caller.call(Item { arm: self.arm, load })).await;
        let done = Instant::now();
        let reply = reply.unwrap_or(match load {
            Payload::Broken { fault, .. } => Reply::Broken(fault),
            _ => Reply::TimedOut,
        });
        (reply, done)
    }

    /// Waits; true where the run is stopped.
    async fn pause(&self, until: Instant) -> bool {
        tokio::select! {
            () = sleep_until(until) => false,
            () = stopped(self.stop.clone()) => true,
        }
    }
}

/// Waits until a run is to be stopped.
pub(super) async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left who could stop it.
        std::future::pending::<()>().await;
    }
}
