//! When the requests of an open load are due, and a thread that says so in time.
//!
//! tokio's timers tick every millisecond, which would send requests in bunches. [`pace`] sleeps on the kernel's
//! high-resolution timer instead, without the slack that Linux otherwise adds to sleeps (50 us), and spins for nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::plan::Arrivals;
use crate::seed::{Use, generator};

/// When the requests of a turn are due, since its start, rising. It depends on the seed and the round alone, so that in a
/// round all arms have the same gaps.
#[derive(Debug, Clone)]
pub struct Dues {
    gaps: Gaps,
    rate: f64,
    /// Seconds.
    length: f64,
}

#[derive(Debug, Clone)]
enum Gaps {
    /// The number of the next request since the start of round 0, and seconds from there to this turn's start.
    Equal { next: f64, before: f64 },
    /// Seconds since this turn's start.
    Exponential { at: f64, generator: Box<ChaCha8Rng> },
}

impl Dues {
    /// `rate` requests a second for `length`. Equal gaps go on over the border of rounds, so that the rate is kept where a
    /// turn is shorter than a gap.
    pub fn new(arrivals: Arrivals, rate: f64, length: Duration, seed: u64, round: u64) -> Self {
        let length = length.as_secs_f64();
        let gaps = match arrivals {
            Arrivals::Constant => {
                let before = round as f64 * length;
                // The millionth part of a gap is for rounding: what is due at the border is due once.
                Gaps::Equal { next: (before * rate - 1e-6).ceil(), before }
            }
            Arrivals::Poisson => Gaps::Exponential { at: 0.0, generator: Box::new(generator(seed, Use::Gaps, round)) },
        };
        Self { gaps, rate, length }
    }
}

impl Iterator for Dues {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at = match &mut self.gaps {
            Gaps::Equal { next, before } => {
                let at = (*next / self.rate - *before).max(0.0);
                *next += 1.0;
                // The other side of the same border.
                if (self.length - at) * self.rate <= 1e-6 {
                    return None;
                }
                at
            }
            Gaps::Exponential { at, generator } => {
                *at -= (1.0 - generator.random::<f64>()).ln() / self.rate;
                *at
            }
        };
        (at < self.length).then(|| Duration::from_secs_f64(at))
    }
}

/// Requests handed over together, at most.
const BATCH: usize = 256;
/// How long a sleep lasts before it looks whether to stop.
const NAP: Duration = Duration::from_millis(50);

/// Calls `give` with the times that have come, as soon as they have, on the thread that calls this; until `dues`
/// (since `start`, rising) end or `stop` is set. Times that come while `give` runs are given together.
pub fn pace(dues: impl Iterator<Item = Duration>, start: Instant, stop: &AtomicBool, mut give: impl FnMut(&[Instant])) {
    let clock = Clock::new();
    let mut dues = dues.map(|due| start + due).peekable();
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(&next) = dues.peek() {
        let now = loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let now = Instant::now();
            if now >= next {
                break now;
            }
            clock.sleep_until(next.min(now + NAP));
        };
        while batch.len() < BATCH
            && let Some(due) = dues.next_if(|due| *due <= now)
        {
            batch.push(due);
        }
        give(&batch);
        batch.clear();
    }
}

/// The kernel's monotonic clock, for absolute sleeps: how late the call is made then does not add up.
#[cfg(target_os = "linux")]
struct Clock {
    instant: Instant,
    kernel: rustix::time::Timespec,
}

#[cfg(target_os = "linux")]
impl Clock {
    fn new() -> Self {
        // Without it sleeps are late by up to 50 us more; that is then seen as delay.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        Self { instant: Instant::now(), kernel: rustix::time::clock_gettime(rustix::time::ClockId::Monotonic) }
    }

    fn sleep_until(&self, at: Instant) {
        let after = at.saturating_duration_since(self.instant);
        let nanos = self.kernel.tv_nsec + i64::from(after.subsec_nanos());
        let seconds = self.kernel.tv_sec + i64::try_from(after.as_secs()).unwrap_or(i64::MAX / 2);
        let until = rustix::time::Timespec { tv_sec: seconds + nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
        // A signal that ends the sleep early costs a turn of the caller's loop.
        let _ = rustix::thread::clock_nanosleep_absolute(rustix::thread::ClockId::Monotonic, &until);
    }
}

#[cfg(not(target_os = "linux"))]
struct Clock;

#[cfg(not(target_os = "linux"))]
impl Clock {
    fn new() -> Self {
        Self
    }

    fn sleep_until(&self, at: Instant) {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dues(arrivals: Arrivals, rate: f64, length: Duration, round: u64) -> Vec<Duration> {
        Dues::new(arrivals, rate, length, 7, round).collect()
    }

    proptest! {
        #[test]
        fn equal_gaps_keep_the_rate_over_rounds(rate in 0.1_f64..5000.0, millis in 10_u64..500, rounds in 1_u64..30) {
            let length = Duration::from_millis(millis);
            let all: Vec<f64> = (0..rounds)
                .flat_map(|round| {
                    let before = round as f64 * length.as_secs_f64();
                    dues(Arrivals::Constant, rate, length, round).into_iter().map(move |due| before + due.as_secs_f64())
                })
                .collect();
            let expected = rate * rounds as f64 * length.as_secs_f64();
            prop_assert!((all.len() as f64 - expected).abs() <= 1.0, "{} of {expected}", all.len());
            for pair in all.windows(2) {
                prop_assert!((pair[1] - pair[0] - 1.0 / rate).abs() < 1e-5 / rate + 1e-8, "{pair:?} at {rate}");
            }
        }

        #[test]
        fn times_rise_and_end_with_the_turn(rate in 0.1_f64..5000.0, millis in 1_u64..2000, round in 0_u64..50) {
            let length = Duration::from_millis(millis);
            for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
                let all = dues(arrivals, rate, length, round);
                prop_assert!(all.windows(2).all(|pair| pair[0] <= pair[1]));
                prop_assert!(all.iter().all(|due| *due < length), "{:?}", all.last());
            }
        }
    }

    #[test]
    fn poisson_gaps_have_the_exponential_distribution() {
        let all = dues(Arrivals::Poisson, 1000.0, Duration::from_secs(100), 0);
        assert!((99_000..101_000).contains(&all.len()), "{}", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 0.02 && (deviation - 1.0).abs() < 0.02, "{mean} {deviation}");
        // P(gap > 2 means) = e^-2.
        let long = gaps.iter().filter(|gap| **gap > 2.0).count() as f64 / gaps.len() as f64;
        assert!((long - (-2.0_f64).exp()).abs() < 0.005, "{long}");
    }

    #[test]
    fn a_seed_and_a_round_make_the_gaps() {
        let draw = |seed, round| -> Vec<Duration> {
            Dues::new(Arrivals::Poisson, 100.0, Duration::from_secs(1), seed, round).collect()
        };
        assert_eq!(draw(1, 3), draw(1, 3));
        assert_ne!(draw(1, 3), draw(1, 4));
        assert_ne!(draw(1, 3), draw(2, 3));
    }

    #[test]
    fn all_times_are_given_once_in_order_and_never_early() {
        let start = Instant::now();
        let planned: Vec<Duration> = dues(Arrivals::Poisson, 20_000.0, Duration::from_millis(50), 0);
        let mut given = Vec::new();
        pace(planned.iter().copied(), start, &AtomicBool::new(false), |batch| {
            let now = Instant::now();
            assert!(!batch.is_empty() && batch.len() <= BATCH && batch.iter().all(|due| *due <= now));
            given.extend(batch.iter().map(|due| *due - start));
        });
        assert_eq!(given, planned);
    }

    #[test]
    fn a_pace_that_is_stopped_ends_before_what_is_due_later() {
        let stop = AtomicBool::new(false);
        let far = [Duration::ZERO, Duration::from_secs(1_000_000)];
        let mut given = 0;
        pace(far.into_iter(), Instant::now(), &stop, |batch| {
            given += batch.len();
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(given, 1);
    }
}
