//! A ramp: the highest rate at which an arm meets the objective.
//!
//! At each rate every arm has one turn of the plan's whole time, not slices: what a server cannot keep up with piles up
//! only under a load that lasts. The objective is met where the quantile of the answers, from when they were due, lies
//! within it, [`ANSWERED`] of the requests with good images were answered, and latencies do not rise through the turn: what
//! waits then grows, and the objective would be missed by a longer one. A rate that is missed is tried once more, so that
//! a moment's noise does not end the search.

use std::sync::Arc;

use rand::seq::SliceRandom;

use super::found::{Climb, Driven, Found, per_second};
use super::track::Rounds;
use super::watch::Phase;
use super::{Driver, pressure};
use crate::objective::Slo;
use crate::plan::{Load, Plan};
use crate::report::{Ramp, Step};
use crate::seed::{Use, generator};
use crate::stats::{Compact, Sample};
use crate::target::Target;

/// The share that has to be answered.
const ANSWERED: f64 = 0.99;
/// Latencies rise where the second half's median is so many times the first's, and a millisecond more.
const RISES: f64 = 1.5;
/// The highest rate that was held and the lowest that was missed end up this close.
const CLOSE: f64 = 1.05;

/// The search of an arm. Rates rise by the ramp's factor until one is missed, then the geometric mean of the highest that
/// was held and the lowest that was missed is tried.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Search {
    from: f64,
    to: f64,
    step: f64,
    held: Option<f64>,
    missed: Option<f64>,
    /// Missed once, to be tried again.
    doubted: Option<f64>,
}

impl Search {
    /// What to try next; none when it is over.
    fn next(&self) -> Option<f64> {
        if self.doubted.is_some() {
            return self.doubted;
        }
        match (self.held, self.missed) {
            (None, None) => Some(self.from),
            (None, Some(_)) => None,
            // A last step that is shorter than what the search can tell apart is not worth its time.
            (Some(held), None) if held >= self.to => None,
            (Some(held), None) if held * self.step * CLOSE >= self.to => Some(self.to),
            (Some(held), None) => Some(held * self.step),
            (Some(held), Some(missed)) => (missed > held * CLOSE).then(|| (held * missed).sqrt()),
        }
    }

    fn tried(&mut self, rate: f64, held: bool) {
        match (held, self.doubted.take()) {
            (true, _) => self.held = Some(rate),
            (false, Some(_)) => self.missed = Some(rate),
            (false, None) => self.doubted = Some(rate),
        }
    }

    /// The most rates that are left to try.
    fn left(&self) -> u32 {
        let halvings = |factor: f64| (factor.ln() / CLOSE.ln()).log2().ceil().max(0.0) as u32;
        let again = u32::from(self.doubted.is_some());
        again
            + match (self.held, self.missed) {
                (None, Some(_)) => 0,
                (Some(held), Some(missed)) => 2 * halvings(missed / held),
                (held, None) => {
                    let rises = ((self.to / held.unwrap_or(self.from)).ln() / self.step.ln()).ceil().max(0.0) as u32;
                    rises + u32::from(held.is_none()) + if rises > 0 { 1 + 2 * halvings(self.step) } else { 1 }
                }
            }
    }
}

/// Whether an arm met the objective.
fn held(slo: &Slo, answered: u64, good: u64, latency: &crate::latencies::Latencies) -> bool {
    answered > 0 && answered as f64 >= ANSWERED * good as f64 && latency.quantile(slo.quantile) <= slo.most
}

/// Whether latencies rise through a turn.
fn rises(turn: &Rounds) -> bool {
    let rounds: Vec<Sample> = turn.samples().collect();
    let (first, second) = rounds.split_at(rounds.len() / 2);
    let median = |half: &[Sample]| {
        let mut all = Compact::default();
        half.iter().for_each(|round| all.add(&round.latency));
        all.quantile(0.5)
    };
    median(second) > RISES * median(first) + 1.0
}

impl<T: Target> Driver<'_, T> {
    /// Finds the highest rate of each arm.
    pub(super) async fn ramp(&mut self, slo: &Slo) -> Driven {
        let Load::Ramp { from, to, step, arrivals, connections } = self.plan.load else {
            unreachable!("only a ramp is driven so");
        };
        let count = self.plan.arms.len();
        let mut searches = vec![Search { from, to, step, held: None, missed: None, doubted: None }; count];
        let (mut found, mut climbs) = (vec![Found::default(); count], vec![Climb::default(); count]);
        let mut steps = Vec::new();
        // Rounds within a turn, to be drawn from where rates that two arms held are compared.
        let rounds = super::rounds(self.plan).min(50);
        let mut pass = 0;
        'passes: loop {
            let mut turns: Vec<(usize, f64)> =
                searches.iter().enumerate().filter_map(|(arm, search)| Some((arm, search.next()?))).collect();
            if turns.is_empty() {
                break;
            }
            turns.shuffle(&mut generator(self.plan.seed, Use::Order, pass));
            for (arm, rate) in turns {
                let left: u32 = searches.iter().map(Search::left).sum();
                self.total = self.elapsed + self.plan.measure * left.max(1);
                let recorder = Arc::new(self.recorder());
                let mut climbed = Rounds::default();
                let deck = self.deck(pass);
                let order = self.order(pressure(rate, arrivals, connections), self.plan.measure, 0, rounds, deck);
                let order = super::turn::Order { seed: self.plan.seed.wrapping_add(pass), ..order };
                let mut into = super::Into { rounds: &mut climbed, series: &mut found[arm].series };
                let seconds = self.turn(arm, Phase::Rate(rate), order, &recorder, Some(&mut into)).await;
                let mut tally = recorder.sum();
                tally.seconds = seconds;
                if self.stopped() {
                    // What was cut off says nothing of the rate.
                    break 'passes;
                }
                let met = held(slo, tally.counts.answered, tally.good, &tally.latency) && !rises(&climbed);
                steps.push(Step {
                    arm,
                    rate,
                    achieved: per_second(tally.counts.answered, seconds),
                    counts: tally.counts,
                    p50: tally.latency.quantile(0.5),
                    p95: tally.latency.quantile(0.95),
                    p99: tally.latency.quantile(0.99),
                    held: met,
                });
                searches[arm].tried(rate, met);
                found[arm].rounds.push(&climbed);
                // Rates that are held rise from one to the next.
                if met || climbs[arm].held.is_empty() {
                    found[arm].tally = tally;
                }
                if met {
                    climbs[arm].held.push((rate, climbed));
                }
            }
            pass += 1;
        }
        for (climb, search) in climbs.iter_mut().zip(&searches) {
            (climb.best, climb.missed) = (search.held, search.missed);
        }
        let best = searches.iter().map(|search| search.held).collect();
        self.driven(found, Some(Ramp { steps, best }), climbs)
    }
}

/// The most time that a ramp takes for all arms.
pub(super) fn most(plan: &Plan) -> std::time::Duration {
    let Load::Ramp { from, to, step, .. } = plan.load else { return std::time::Duration::ZERO };
    let search = Search { from, to, step, held: None, missed: None, doubted: None };
    plan.measure * search.left() * u32::try_from(plan.arms.len()).unwrap_or(u32::MAX)
}
