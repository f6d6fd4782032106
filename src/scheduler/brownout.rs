//! Brownout: while images wait too long, the policy's keep thresholds are raised, so that paths get shorter and waiting with
//! them.
//!
//! One level holds for all models, since they share the workers. It rises in steps for as long as waiting stays above what
//! the operator calls too much, and falls more slowly once waiting is well below it. Each model's threshold is raised by
//! the level's share of the way from its own to the highest that the operator allows.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Gauge;

use crate::policy::Selection;

/// Steps from the models' own thresholds to the highest one. Few, so that few masks are new at each: a path that is not
/// compiled yet takes longer.
const STEPS: u8 = 4;

/// Times the wait that is too much for which images have to wait longer than it, for each step up.
const RISE: u32 = 10;

/// Times the wait that is too much for which images have to wait at most half of it, for each step down.
const FALL: u32 = 60;

/// Who raises the thresholds, when, and how far.
pub struct Brownout {
    /// The highest threshold.
    most: f64,
    controller: Mutex<Controller>,
    /// The controller's steps, for those that only read.
    steps: AtomicU8,
    /// Shows them as a share of all steps.
    level: Gauge,
}

impl Brownout {
    /// Raises thresholds up to `most` where images wait longer than `wait`; `level` shows how far they are raised, from 0 to
    /// 1.
    pub fn new(most: f64, wait: Duration, level: Gauge) -> Self {
        Self { most, controller: Mutex::new(Controller::new(wait)), steps: AtomicU8::new(0), level }
    }

    /// `selection` with its threshold raised as far as it is at the moment; `None` where it stays as it is.
    pub(super) fn raised(&self, selection: &Selection) -> Option<Selection> {
        selection.raised(share(self.steps.load(Relaxed)), self.most)
    }

    /// Learns how long the image waited that has waited longest.
    pub(super) fn waited(&self, waited: Duration) {
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        let before = controller.steps;
        controller.waited(Instant::now(), waited);
        let after = controller.steps;
        if after == before {
            return;
        }
        self.steps.store(after, Relaxed);
        self.level.set(share(after));
        let (level, waited_ms) = (share(after), waited.as_secs_f64() * 1e3);
        match (before, after) {
            (0, _) => tracing::warn!(
                waited_ms,
                most = self.most,
                "brownout: images wait too long, blocks are kept from a higher threshold on"
            ),
            (_, 0) => tracing::info!("brownout is over: blocks are kept by the models' own thresholds"),
            _ => tracing::debug!(waited_ms, level, "brownout"),
        }
    }

    /// How often to look whether anything waits.
    pub(super) fn pause(&self) -> Duration {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner).wait * RISE
    }
}

fn share(steps: u8) -> f64 {
    f64::from(steps) / f64::from(STEPS)
}

/// Says how many steps the thresholds are raised by, from what is told of waiting. It has no clock of its own.
struct Controller {
    /// What is too much.
    wait: Duration,
    steps: u8,
    /// Since when images have waited too long, counted anew from each step.
    long: Option<Instant>,
    /// Since when they have waited for at most half of that, counted anew from each step.
    short: Option<Instant>,
}

impl Controller {
    fn new(wait: Duration) -> Self {
        Self { wait, steps: 0, long: None, short: None }
    }

    /// Learns how long the image that had waited longest had waited, at the time `now`. A wait between half of what is too
    /// much and all of it keeps everything as it is.
    fn waited(&mut self, now: Instant, waited: Duration) {
        let long = (waited > self.wait).then(|| self.long.unwrap_or(now));
        let short = (waited <= self.wait / 2).then(|| self.short.unwrap_or(now));
        (self.long, self.short) = (long, short);
        let lasts = |since: Option<Instant>, times: u32| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= self.wait * times)
        };
        if lasts(long, RISE) && self.steps < STEPS {
            self.steps += 1;
            self.long = Some(now);
        } else if lasts(short, FALL) && self.steps > 0 {
            self.steps -= 1;
            self.short = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{BlockCost, Choice, Costs};

    /// What is too much.
    const WAIT: Duration = Duration::from_millis(50);

    /// Steps after each of these waits, each told so long after the one before.
    fn steps(told: impl IntoIterator<Item = (Duration, Duration)>) -> Vec<u8> {
        let (mut controller, mut now) = (Controller::new(WAIT), Instant::now());
        let step = |(after, waited): (Duration, Duration)| {
            now += after;
            controller.waited(now, waited);
            controller.steps
        };
        told.into_iter().map(step).collect()
    }

    fn times(factor: f64) -> Duration {
        WAIT.mul_f64(factor)
    }

    /// `count` waits of so many times the one that is too much, told one such wait apart.
    fn waits(count: usize, factor: f64) -> impl Iterator<Item = (Duration, Duration)> {
        std::iter::repeat_n((WAIT, times(factor)), count)
    }

    #[test]
    fn it_rises_while_images_wait_too_long_and_falls_more_slowly() {
        let found = steps(waits(51, 1.5).chain(waits(301, 0.4)));
        let rose: Vec<usize> = (1..found.len()).filter(|&at| found[at] > found[at - 1]).collect();
        let fell: Vec<usize> = (1..found.len()).filter(|&at| found[at] < found[at - 1]).collect();
        assert_eq!(rose, [10, 20, 30, 40]);
        assert_eq!(fell, [111, 171, 231, 291]);
        assert_eq!((found[50], found[351]), (STEPS, 0));
    }

    #[test]
    fn a_batch_that_is_slow_for_once_changes_nothing() {
        // A hundred times too long, and what waited behind it for nearly as long as it takes to rise.
        let slow = [(times(100.0), times(100.0)), (times(5.0), times(40.0)), (times(4.9), times(1.1))];
        let quiet = || waits(3, 0.1);
        assert_eq!(steps(quiet().chain(slow).chain(quiet()).chain(slow).chain(quiet())), [0; 15]);
        // Nor does one that is quick, once it is raised.
        let raised = waits(41, 2.0).chain(waits(30, 0.1)).chain(waits(1, 2.0)).chain(waits(60, 0.1));
        assert_eq!(steps(raised).pop(), Some(STEPS));
    }

    #[test]
    fn between_half_and_all_of_the_wait_it_holds() {
        let found = steps(waits(21, 2.0).chain(waits(1000, 0.75)));
        assert!(found[20..].iter().all(|&steps| steps == 2), "{found:?}");
        assert!(steps(waits(1000, 1.0)).iter().all(|&steps| steps == 0), "just as long is not too long");
    }

    /// Waits of any length, at any time.
    fn told() -> impl Strategy<Value = Vec<(Duration, Duration, f64)>> {
        let one = (0.0..30.0f64, 0.0..3.0f64, 0.0..2.0f64);
        prop::collection::vec(one.prop_map(|(after, waited, more)| (times(after), times(waited), more)), 0..200)
    }

    proptest! {
        /// Whatever is told: within bounds, a step at a time, not faster than it may; whoever waits longer never gets less; at
        /// rest it comes back to nothing.
        #[test]
        fn it_stays_within_bounds_is_monotone_and_comes_back(told in told()) {
            let found = steps(told.iter().map(|&(after, waited, _)| (after, waited)));
            let longer = steps(told.iter().map(|&(after, waited, more)| (after, waited + times(more))));
            let (mut now, mut rose, mut fell) = (Duration::ZERO, None, None);
            for (at, &steps) in found.iter().enumerate() {
                let before = if at == 0 { 0 } else { found[at - 1] };
                now += told[at].0;
                prop_assert!(steps <= longer[at] && longer[at] <= STEPS);
                prop_assert!(steps.abs_diff(before) <= 1);
                if steps > before {
                    prop_assert!(told[at].1 > WAIT);
                    prop_assert!(rose.is_none_or(|rose| now - rose >= WAIT * RISE));
                    rose = Some(now);
                } else if steps < before {
                    prop_assert!(told[at].1 <= WAIT / 2);
                    prop_assert!(fell.is_none_or(|fell| now - fell >= WAIT * FALL));
                    fell = Some(now);
                }
            }
            let rest = waits(1 + (u32::from(STEPS) * FALL) as usize, 0.0);
            let told = told.iter().map(|&(after, waited, _)| (after, waited));
            prop_assert_eq!(steps(told.chain(rest)).pop(), Some(0));
        }
    }

    #[test]
    fn what_the_policy_decides_alone_is_raised_and_nothing_else() {
        let block = BlockCost { segment: 0, kept: 1, dropped: 0 };
        let costs = Costs { policy: 1, stem: 1, blocks: vec![block; 3], head: 1 };
        let select = |choice: Choice| choice.check(&costs, 0.5).unwrap();
        let level = Gauge::new("level", "level").unwrap();
        let brownout = Brownout::new(0.9, Duration::ZERO, level.clone());
        let own = select(Choice::default());
        assert_eq!(brownout.raised(&own), None);
        for raised in [0.6, 0.7, 0.8, 0.9, 0.9, 0.9] {
            brownout.waited(Duration::from_nanos(1));
            let found = brownout.raised(&own).unwrap().threshold();
            assert!((found - raised).abs() < 1e-12, "{found}, expected {raised}");
        }
        assert_eq!(level.get(), 1.0);
        for choice in [
            Choice { threshold: Some(0.5), ..Choice::default() },
            Choice { max_blocks: Some(3), ..Choice::default() },
            Choice { max_flops: Some(6), ..Choice::default() },
            Choice { path: "full".parse().unwrap(), ..Choice::default() },
        ] {
            assert_eq!(brownout.raised(&select(choice)), None);
        }
        for falls in [0.75, 0.5, 0.25, 0.0, 0.0] {
            brownout.waited(Duration::ZERO);
            assert_eq!(level.get(), falls);
        }
        assert_eq!(brownout.raised(&own), None);
    }
}
