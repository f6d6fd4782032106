//! Where the clients of an arm write down what became of their requests.
//!
//! A tally of its own for each client would take megabytes for each; one for all would make them wait for each other.
//! There are as many as it takes for clients to meet seldom, and they are added up when a turn is over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::tally::Spent;
use crate::latencies::Latencies;
use crate::record::{Counts, Payload, Reply, Tally};
use crate::report::Second;

/// The times of a turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// The run's start.
    pub(super) zero: Instant,
    /// The turn's start and length.
    pub(super) start: Instant,
    pub(super) length: Duration,
    /// The turn's first round and how many it has, one or more.
    pub(super) first: u64,
    pub(super) rounds: u64,
}

impl Clock {
    pub(super) fn end(&self) -> Instant {
        self.start + self.length
    }

    /// How long a round of it is.
    pub(super) fn slice(&self) -> f64 {
        self.length.as_secs_f64() / self.rounds as f64
    }

    /// The round in which `at` lies; what comes after the end lies in the last.
    pub(super) fn round(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start).as_secs_f64() / self.slice().max(1e-9);
        self.first + (since as u64).min(self.rounds - 1)
    }

    /// The second of the run in which `at` lies.
    pub(super) fn second(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.zero).as_secs()
    }
}

/// A request that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) load: Payload,
    /// Closed loop: when it was sent.
    pub(super) due: Instant,
    /// Absent where its time ran out before it could be sent.
    pub(super) sent: Option<Instant>,
    pub(super) done: Instant,
}

/// What was answered in a round.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) images: u64,
    pub(super) latency: Latencies,
}

/// Microseconds, the most that is told apart.
const HOUR: u64 = 3_600_000_000;

/// What was due in a second.
#[derive(Debug, Clone)]
pub(super) struct Instants {
    counts: Counts,
    /// Answers that came in it, whenever they were due.
    came: u64,
    /// Microseconds, to two digits: a second is a dot in a plot.
    latency: Histogram<u64>,
}

impl Default for Instants {
    fn default() -> Self {
        let mut latency = Histogram::new(2).expect("two digits");
        latency.auto(true);
        Self { counts: Counts::default(), came: 0, latency }
    }
}

impl Instants {
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.came += other.came;
        self.latency.add(&other.latency).expect("histograms of the same kind");
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn came(&self) -> u64 {
        self.came
    }

    /// Milliseconds; 0 of none.
    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub(super) fn second(&self, at: u64) -> Second {
        Second { at, counts: self.counts, came: self.came, p50: self.quantile(0.5), p99: self.quantile(0.99) }
    }
}

/// What clients write, shared by few of them.
#[derive(Debug, Default)]
struct Kept {
    tally: Tally,
    rounds: BTreeMap<u64, Part>,
    seconds: BTreeMap<u64, Instants>,
    /// The first and the last answer since this was asked last.
    answers: Option<(Instant, Instant)>,
}

/// Apart by two cache lines, which processors fetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    sent: AtomicU64,
    kept: Mutex<Kept>,
}

impl Shard {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of an arm's requests.
#[derive(Debug)]
pub(super) struct Recorder {
    shards: Box<[Shard]>,
    /// Microseconds that count as in time.
    within: u64,
    /// Microseconds that a request is waited for.
    timeout: u64,
}

impl Recorder {
    /// `within`: microseconds that count as in time; `timeout`: those that a request is waited for.
    pub(super) fn new(shards: usize, within: u64, timeout: u64) -> Self {
        Self { shards: (0..shards.max(1)).map(|_| Shard::default()).collect(), within, timeout }
    }

    fn shard(&self, client: usize) -> &Shard {
        &self.shards[client % self.shards.len()]
    }

    /// `count` requests are on their way: each has to be recorded, or given up.
    pub(super) fn begin(&self, client: usize, count: u64) {
        self.shard(client).sent.fetch_add(count, Ordering::Relaxed);
    }

    /// Requests that were begun are not sent after all, because the run is stopped.
    pub(super) fn give_up(&self, client: usize, count: u64) {
        self.shard(client).sent.fetch_sub(count, Ordering::Relaxed);
    }

    /// A request that was begun is over.
    pub(super) fn record(&self, client: usize, clock: &Clock, request: &Request, reply: &Reply) {
        let mut latency = micros(request.done.saturating_duration_since(request.due));
        if *reply == Reply::TimedOut {
            // A server may give up before the harness does; the answer would have taken longer than either.
            latency = latency.max(self.timeout);
        }
        let sent = request.sent.unwrap_or(request.done);
        let spent = Spent {
            latency,
            // A request that is broken waits for a client that breaks it, which is nobody's latency.
            delay: request
                .sent
                .filter(|sent| *sent != request.due && !matches!(request.load, Payload::Broken { .. }))
                .map(|sent| micros(sent - request.due)),
            service: micros(request.done.saturating_duration_since(sent)),
        };
        let (second, round) = (clock.second(request.due), clock.round(request.done));

        let mut kept = self.shard(client).kept();
        kept.tally.count(reply, spent, self.within);
        kept.tally.good += u64::from(matches!(request.load, Payload::Images { .. }));
        let in_second = kept.seconds.entry(second).or_default();
        in_second.counts.sent += 1;
        match reply {
            Reply::Answered(images) => {
                in_second.counts.answered += 1;
                in_second.latency.record(latency.clamp(1, HOUR)).expect("a histogram grows to an hour");
                let part = kept.rounds.entry(round).or_default();
                part.images += images.len() as u64;
                part.latency.record(latency);
                let (first, last) = kept.answers.unwrap_or((request.done, request.done));
                kept.answers = Some((first.min(request.done), last.max(request.done)));
                kept.seconds.entry(clock.second(request.done)).or_default().came += 1;
            }
            Reply::TimedOut => {
                in_second.counts.timed_out += 1;
                in_second.latency.record(latency.clamp(1, HOUR)).expect("a histogram grows to an hour");
                kept.rounds.entry(round).or_default().latency.record(latency);
            }
            Reply::Refused(_) => in_second.counts.refused += 1,
            Reply::Failed(_) => in_second.counts.failed += 1,
            Reply::Broken(_) => in_second.counts.broken += 1,
        }
    }

    /// All so far.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for shard in &self.shards {
            let over = shard.kept().tally.counts;
            counts.add(&Counts { sent: shard.sent.load(Ordering::Relaxed), ..over });
        }
        counts
    }

    /// What was due from a second on, of what has not been taken yet.
    pub(super) fn since(&self, second: u64) -> Instants {
        let mut all = Instants::default();
        for shard in &self.shards {
            shard.kept().seconds.range(second..).for_each(|(_, instants)| all.add(instants));
        }
        all
    }

    /// The first and the last answer since this was asked last.
    pub(super) fn take_answers(&self) -> Option<(Instant, Instant)> {
        let spans = self.shards.iter().filter_map(|shard| shard.kept().answers.take());
        spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
    }

    /// Takes the rounds before `end`.
    pub(super) fn take_rounds(&self, end: u64) -> BTreeMap<u64, Part> {
        let mut all = BTreeMap::<u64, Part>::new();
        for shard in &self.shards {
            let past = {
                let mut kept = shard.kept();
                let later = kept.rounds.split_off(&end);
                std::mem::replace(&mut kept.rounds, later)
            };
            for (round, part) in past {
                let sum = all.entry(round).or_default();
                sum.images += part.images;
                sum.latency.add(&part.latency);
            }
        }
        all
    }

    /// Takes the seconds before `end`.
    pub(super) fn take_seconds(&self, end: u64) -> BTreeMap<u64, Instants> {
        let mut all = BTreeMap::<u64, Instants>::new();
        for shard in &self.shards {
            let past = {
                let mut kept = shard.kept();
                let later = kept.seconds.split_off(&end);
                std::mem::replace(&mut kept.seconds, later)
            };
            for (second, instants) in past {
                all.entry(second).or_default().add(&instants);
            }
        }
        all
    }

    /// The sum of all.
    pub(super) fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        for shard in &self.shards {
            let kept = shard.kept();
            sum.add(&kept.tally);
            sum.counts.sent += shard.sent.load(Ordering::Relaxed);
        }
        sum
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
