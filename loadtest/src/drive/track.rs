//! What an arm did over time: its rounds and seconds, within bounds however long the run.

use std::collections::BTreeMap;

use super::recorder::{Clock, Instants, Part};
use crate::report::{Round, Second};
use crate::stats::{Compact, Sample};

/// Rounds that are kept apart; when there are more, neighbours become one, and the run goes on with half of them.
const MOST_ROUNDS: usize = 400;

/// Rounds of an arm.
#[derive(Debug, Clone)]
pub(super) struct Rounds {
    /// Rounds that make one entry, a power of two.
    width: u64,
    /// By the number of the round over `width`: seconds since the run's start, and what was answered.
    entries: BTreeMap<u64, (f64, Sample)>,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { width: 1, entries: BTreeMap::new() }
    }
}

impl Rounds {
    /// Adds to a round what was answered in it.
    pub(super) fn answered(&mut self, round: u64, clock: &Clock, part: &Part) {
        let entry = self.entry(round, clock);
        entry.images += part.images;
        entry.latency.add(&Compact::from(&part.latency));
    }

    /// The arm was under load for so many more seconds of a round.
    pub(super) fn loaded(&mut self, round: u64, clock: &Clock, seconds: f64) {
        self.entry(round, clock).seconds += seconds;
    }

    /// Adds a turn that is over, as a round of its own.
    pub(super) fn push(&mut self, other: &Self) {
        let round = self.entries.last_key_value().map_or(0, |(last, _)| (last + 1) * self.width);
        let at = other.entries.values().map(|entry| entry.0).fold(f64::INFINITY, f64::min);
        let sum = other.samples().fold(Sample::default(), |mut sum, sample| {
            merge(&mut sum, &sample);
            sum
        });
        if at.is_finite() {
            self.make_room(round);
            let entry = self.entries.entry(round / self.width).or_insert((at, Sample::default()));
            merge(&mut entry.1, &sum);
        }
    }

    /// Makes the last rounds one until it has `least` seconds.
    pub(super) fn trim(&mut self, least: f64) {
        while self.entries.len() > 1
            && let Some(last) = self.entries.last_entry().filter(|last| last.get().1.seconds < least)
        {
            let (_, sample) = last.remove();
            if let Some(mut before) = self.entries.last_entry() {
                merge(&mut before.get_mut().1, &sample);
            }
        }
    }

    fn entry(&mut self, round: u64, clock: &Clock) -> &mut Sample {
        self.make_room(round);
        let at = clock.start.saturating_duration_since(clock.zero).as_secs_f64()
            + clock.slice() * round.saturating_sub(clock.first) as f64;
        let entry = self.entries.entry(round / self.width).or_insert((at, Sample::default()));
        entry.0 = entry.0.min(at);
        &mut entry.1
    }

    fn make_room(&mut self, round: u64) {
        while round / self.width >= MOST_ROUNDS as u64 {
            self.widen();
        }
    }

    fn widen(&mut self) {
        self.width *= 2;
        for (at, (start, sample)) in std::mem::take(&mut self.entries) {
            let entry = self.entries.entry(at / 2).or_insert((start, Sample::default()));
            merge(&mut entry.1, &sample);
        }
    }

    /// In order.
    pub(super) fn samples(&self) -> impl Iterator<Item = Sample> + '_ {
        self.entries.values().map(|entry| entry.1.clone())
    }

    /// The rounds that both have.
    pub(super) fn paired(&self, other: &Self) -> (Vec<Sample>, Vec<Sample>) {
        let (mut ours, mut theirs) = (self.clone(), other.clone());
        while ours.width < theirs.width {
            ours.widen();
        }
        while theirs.width < ours.width {
            theirs.widen();
        }
        let pairs = ours.entries.into_iter().filter_map(|(at, ours)| Some((ours.1, theirs.entries.remove(&at)?.1)));
        pairs.unzip()
    }

    /// As the report has them.
    pub(super) fn report(&self) -> Vec<Round> {
        let round = |(at, sample): &(f64, Sample)| Round {
            at: *at,
            seconds: sample.seconds,
            throughput: super::found::per_second(sample.images, sample.seconds),
            answered: sample.latency.len(),
            p50: sample.latency.quantile(0.5),
            p95: sample.latency.quantile(0.95),
            p99: sample.latency.quantile(0.99),
        };
        self.entries.values().map(round).collect()
    }
}

fn merge(sum: &mut Sample, other: &Sample) {
    sum.seconds += other.seconds;
    sum.images += other.images;
    sum.latency.add(&other.latency);
}

/// What an arm did in each second of the run.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    settled: Vec<Second>,
    /// Seconds to which more may be added.
    open: BTreeMap<u64, Instants>,
}

impl Series {
    pub(super) fn add(&mut self, seconds: &BTreeMap<u64, Instants>) {
        for (at, instants) in seconds {
            match self.settled.binary_search_by_key(at, |second| second.at) {
                // Nothing should come so late; if it does it still counts.
                Ok(known) => {
                    self.settled[known].counts.add(&instants.counts());
                    self.settled[known].came += instants.came();
                }
                Err(before) if before < self.settled.len() => self.settled.insert(before, instants.second(*at)),
                Err(_) => self.open.entry(*at).or_default().add(instants),
            }
        }
    }

    /// The arm was under load from one second to another, both included, whether or not anything was due.
    pub(super) fn loaded(&mut self, from: u64, to: u64) {
        let settled = self.settled.last().map_or(0, |second| second.at + 1);
        for at in from.max(settled)..=to {
            self.open.entry(at).or_default();
        }
    }

    /// Seconds before `end` are over.
    pub(super) fn settle(&mut self, end: u64) {
        let later = self.open.split_off(&end);
        let past = std::mem::replace(&mut self.open, later);
        self.settled.extend(past.into_iter().map(|(at, instants)| instants.second(at)));
    }

    /// All, in order.
    pub(super) fn report(&self) -> Vec<Second> {
        let mut all = self.clone();
        all.settle(u64::MAX);
        all.settled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn clock(first: u64, rounds: u64) -> Clock {
        let zero = Instant::now();
        let start = zero + Duration::from_secs(first);
        Clock { zero, start, length: Duration::from_secs(rounds), first, rounds }
    }

    fn part(latency: u64) -> Part {
        let mut part = Part { images: 2, ..Part::default() };
        part.latency.record(latency);
        part
    }

    #[test]
    fn rounds_are_bounded_and_nothing_of_them_is_lost() {
        let clock = clock(0, 10_000);
        let mut rounds = Rounds::default();
        for round in 0..10_000 {
            rounds.answered(round, &clock, &part(1000 + round));
            rounds.loaded(round, &clock, 1.0);
        }
        let report = rounds.report();
        assert!((MOST_ROUNDS / 2..=MOST_ROUNDS).contains(&report.len()), "{}", report.len());
        assert_eq!(report.iter().map(|round| round.answered).sum::<u64>(), 10_000);
        assert_eq!(report.iter().map(|round| round.seconds).sum::<f64>(), 10_000.0);
        assert!(report.iter().all(|round| (round.throughput - 2.0).abs() < 1e-9), "{:?}", report[0]);
        assert!(report.windows(2).all(|pair| pair[0].at < pair[1].at && pair[0].p50 < pair[1].p50));
        assert_eq!((report[0].at, report[1].at), (0.0, 32.0));
    }

    #[test]
    fn arms_that_stopped_apart_are_compared_where_both_have_rounds() {
        let clock = clock(0, 1000);
        let (mut one, mut other) = (Rounds::default(), Rounds::default());
        for round in 0..=400 {
            one.answered(round, &clock, &part(10));
        }
        for round in 0..400 {
            other.answered(round, &clock, &part(10));
        }
        let (ours, theirs) = one.paired(&other);
        assert_eq!((ours.len(), theirs.len()), (200, 200));
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_last_round_that_is_too_short_is_part_of_the_one_before() {
        let clock = clock(0, 10);
        let mut rounds = Rounds::default();
        for (round, seconds) in [(0, 1.0), (1, 1.0), (2, 1.0), (3, -1.5)] {
            rounds.answered(round, &clock, &part(10));
            rounds.loaded(round, &clock, seconds);
        }
        rounds.trim(0.5);
        assert_eq!(
            rounds.report().iter().map(|round| (round.answered, round.seconds)).collect::<Vec<_>>(),
            [(1, 1.0), (3, 0.5)]
        );
        rounds.trim(100.0);
        assert_eq!(rounds.report().len(), 1);
    }

    #[test]
    fn turns_become_rounds() {
        let mut all = Rounds::default();
        for first in 0..3 {
            let mut turn = Rounds::default();
            for round in 0..10 {
                turn.answered(round, &clock(first * 10, 10), &part(10));
                turn.loaded(round, &clock(first * 10, 10), 1.0);
            }
            all.push(&turn);
        }
        all.push(&Rounds::default());
        assert_eq!(
            all.report().iter().map(|round| (round.answered, round.seconds)).collect::<Vec<_>>(),
            [(10, 10.0); 3]
        );
    }

    #[test]
    fn seconds_settle_in_order_and_late_ones_still_count() {
        let mut series = Series::default();
        let at = |second: u64| BTreeMap::from([(second, Instants::default())]);
        series.add(&at(3));
        series.add(&at(1));
        series.settle(3);
        series.add(&at(1));
        series.loaded(2, 5);
        let seconds: Vec<u64> = series.report().iter().map(|second| second.at).collect();
        assert_eq!(seconds, [1, 2, 3, 4, 5]);
    }
}
