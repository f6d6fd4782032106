//! How long an image would wait, from what is before it and what images have taken lately; without a clock.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What an image of a model takes a worker, by those that ran lately.
#[derive(Debug, Default)]
pub struct Pace {
    policy: Average,
    path: Average,
}

impl Pace {
    /// The policy network looked at a batch.
    pub(super) fn looked(&self, images: usize, took: Duration) {
        self.policy.add(images, took);
    }

    /// A path ran a batch.
    pub(super) fn ran(&self, images: usize, took: Duration) {
        self.path.add(images, took);
    }

    /// A worker's time for an image, its share of its batch. `None` until enough have run to tell.
    pub fn image(&self) -> Option<Duration> {
        Some(self.path.mean()? + self.policy.mean().unwrap_or_default())
    }
}

/// Images that the mean is over, about.
const WINDOW: u64 = 32;

/// Images before there is a mean: the first ones find everything cold.
const ENOUGH: u64 = 16;

/// An image counts as at most so many times the mean: a moment in which nothing got on, say of a suspended machine, says
/// little of what comes.
const OUTLIER: f64 = 4.0;

/// What an image takes, in the mean, of which the past fades.
#[derive(Debug, Default)]
pub struct Average(Mutex<Mean>);

#[derive(Debug, Default)]
struct Mean {
    images: u64,
    seconds: f64,
}

impl Average {
    /// So many images together took so long.
    pub fn add(&self, images: usize, took: Duration) {
        if images == 0 {
            return;
        }
        let mut mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let each = took.as_secs_f64() / images as f64;
        let each = if mean.images < ENOUGH { each } else { each.min(mean.seconds * OUTLIER) };
        mean.images += images as u64;
        let weight = images as f64 / mean.images.min(WINDOW) as f64;
        mean.seconds += (each - mean.seconds) * weight.min(1.0);
    }

    /// `None` until there are enough images to tell.
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (mean.images >= ENOUGH).then(|| Duration::from_secs_f64(mean.seconds))
    }
}

/// What has to be done before the last image of a request has run, that image included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    /// Workers' time of what runs, as if it had just begun.
    pub(super) running: Duration,
    /// Workers' time of all that waits, the request's images among it.
    pub(super) waiting: Duration,
    /// Decoders' time of all that waits and is not decoded yet, the request's images among it.
    pub(super) decoding: Duration,
    /// All that waits, in images.
    pub(super) images: usize,
    /// Of these, those that go before the last of the request, and itself, at most: its own flow's, and as many of each
    /// other flow that waits.
    pub(super) turns: usize,
    pub(super) workers: usize,
    pub(super) decoders: usize,
}

impl Ahead {
    /// The time until that image is answered, by whichever of decoders and workers are behind; and a quarter more: what is
    /// before it may take longer than the mean.
    pub(super) fn time(&self) -> Duration {
        const MARGIN: f64 = 1.25;
        let share = (self.turns as f64 / self.images.max(1) as f64).min(1.0);
        let run = (self.running.as_secs_f64() + self.waiting.as_secs_f64() * share) / self.workers.max(1) as f64;
        let decode = self.decoding.as_secs_f64() * share / self.decoders.max(1) as f64;
        Duration::try_from_secs_f64(MARGIN * run.max(decode)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_pace_needs_some_images_and_then_follows_them() {
        let pace = Pace::default();
        (0..15).for_each(|_| pace.ran(1, ms(10)));
        assert_eq!(pace.image(), None);
        pace.ran(8, ms(80));
        assert_eq!(pace.image(), Some(ms(10)));
        pace.looked(8, ms(8));
        pace.looked(8, ms(8));
        assert_eq!(pace.image(), Some(ms(11)), "with the policy's");
        (0..400).for_each(|_| pace.ran(1, ms(500)));
        let found = pace.image().unwrap();
        assert!(found > ms(495) && found <= ms(501), "it has become slower: {found:?}");
        (0..60).for_each(|_| pace.ran(8, ms(8)));
        assert!(pace.image().unwrap() < ms(3), "and faster: {:?}", pace.image());
    }

    #[test]
    fn one_stall_is_no_pace() {
        let pace = Pace::default();
        (0..100).for_each(|_| pace.ran(1, ms(10)));
        pace.ran(1, Duration::from_secs(3600));
        assert!(pace.image().unwrap() < ms(11), "{:?}", pace.image());
        pace.ran(0, ms(10));
        assert!(pace.image().unwrap() < ms(11), "no image says nothing");
    }

    #[test]
    fn a_flow_waits_for_its_own_images_and_as_many_of_each_other() {
        let decoding = ms(0);
        let all =
            Ahead { running: ms(0), waiting: ms(1000), decoding, images: 100, turns: 100, workers: 1, decoders: 2 };
        assert_eq!(all.time(), ms(1250));
        assert_eq!(Ahead { turns: 10, ..all }.time(), ms(125));
        assert_eq!(Ahead { turns: 1000, workers: 2, ..all }.time(), ms(625), "never for more than there is");
        assert_eq!(Ahead { decoding: ms(4000), ..all }.time(), ms(2500), "decoders are behind");
        assert_eq!(Ahead { running: ms(100), turns: 0, images: 0, ..all }.time(), ms(125));
    }

    proptest! {
        /// Images come to a line that is served in order, by workers whose times stray by a fifth: whoever is let in by the
        /// estimate is answered in time, and nobody is refused who would have had half of the time to spare.
        #[test]
        fn who_is_let_in_is_answered_in_time(
            gaps in prop::collection::vec(0u64..40, 50..300),
            stray in prop::collection::vec(80u64..=120, 300),
            (each, workers, limit) in (20u64..200, 1usize..5, 300u64..4000),
        ) {
            // Longer than one image takes: what is too slow for any is for the deadline itself to tell.
            let limit = limit.max(4 * each);
            let pace = Pace::default();
            (0..ENOUGH).for_each(|_| pace.ran(1, ms(each)));
            let mean = pace.image().unwrap();
            let mut free = vec![0u64; workers];
            // When each begins and ends, of those that are not over yet.
            let mut under_way: VecDeque<(u64, u64)> = VecDeque::new();
            let (mut now, mut let_in) = (0, 0);
            for (gap, stray) in gaps.into_iter().zip(stray) {
                now += gap;
                under_way.retain(|(_, end)| *end > now);
                let waiting = under_way.iter().filter(|(begin, _)| *begin > now).count();
                let running = (under_way.len() - waiting) as u32;
                let ahead = Ahead {
                    running: mean * running,
                    waiting: mean * (waiting as u32 + 1),
                    decoding: Duration::ZERO,
                    images: waiting + 1,
                    turns: waiting + 1,
                    workers,
                    decoders: 1,
                };
                let worker = (0..workers).min_by_key(|worker| free[*worker]).unwrap();
                let begin = free[worker].max(now);
                let end = begin + each * stray / 100;
                if waiting == 0 || ahead.time() <= ms(limit) {
                    prop_assert!(end - now <= limit, "{} ms of {limit}", end - now);
                    free[worker] = end;
                    under_way.push_back((begin, end));
                    let_in += 1;
                } else {
                    prop_assert!(2 * (end - now) > limit, "refused, though it would have taken {} ms of {limit}", end - now);
                }
            }
            prop_assert!(let_in > 0);
        }
    }
}
