//! The full net beside the path, for a share of the images: what skipping saves by the clock, and whether both agree.
//!
//! An image that the policy chose a path for is run again after its answer has left, alone, by both sides: policy and
//! path, and the full net as one graph. Both are timed there and then, in an order drawn by lot, because the time of the
//! answer itself would not compare: its image may have run in a batch, on a processor that had other work. A worker runs
//! one side at a time, and only when nothing waits.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Model;
use crate::engine::{EngineError, best_class};
use crate::policy::Mask;
use crate::telemetry::metrics::Dropped;

/// Shadows that are held, at most, each with its image's tensor.
pub(super) const MOST: usize = 64;

/// Draws the images that are run again.
pub(super) struct Sampler {
    rate: f64,
    lots: ChaCha8Rng,
}

impl Sampler {
    /// Draws a `rate` of the images, the same ones for the same `seed`.
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self { rate, lots: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Whether to run an image again, and which side first.
    pub(super) fn draw(&mut self) -> Option<Side> {
        if self.rate <= 0.0 || self.lots.random::<f64>() >= self.rate {
            return None;
        }
        Some(if self.lots.random() { Side::Path } else { Side::Full })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The policy network and the path that it chose.
    Path,
    /// The full net as one graph.
    Full,
}

/// An image to be run by both sides.
pub(super) struct Shadow {
    /// One that nothing else needs any more is not kept for this.
    pub(super) model: Weak<dyn Model>,
    /// `[3, H, W]` of the model's input.
    pub(super) pixels: Vec<f32>,
    /// The path that answered.
    pub(super) mask: Mask,
    /// The class that was answered.
    pub(super) class: Option<usize>,
    /// The side that runs next.
    pub(super) next: Side,
    /// What the other side took, once it has run.
    pub(super) other: Option<Ran>,
}

/// What one side came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    took: Duration,
    /// Whether its class is the one that was answered.
    agrees: bool,
}

impl Shadow {
    /// Runs the side that is next, and counts both once both have run. Gives the shadow back where one is left.
    pub(super) fn run(mut self) -> Option<Self> {
        let model = self.model.upgrade()?;
        let span = tracing::debug_span!("shadow", side = ?self.next, blocks = self.mask.kept());
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| span.in_scope(|| self.run_next(&*model))));
        let ran = ran.unwrap_or_else(|_| {
            tracing::debug!("a shadow ended in a panic");
            Err(Dropped::Failed)
        });
        let ran = ran.inspect_err(|&reason| model.metrics().shadow_dropped(reason)).ok()?;
        let Some(other) = self.other else {
            self.next = if self.next == Side::Path { Side::Full } else { Side::Path };
            self.other = Some(ran);
            return Some(self);
        };
        let (path, full) = if self.next == Side::Full { (other, ran) } else { (ran, other) };
        model.metrics().shadow(path.took, full.took, full.agrees);
        None
    }

    fn run_next(&self, model: &dyn Model) -> Result<Ran, Dropped> {
        let (backend, full) = (model.backend(), Mask::full(self.mask.len()));
        let started = Instant::now();
        let logits = match self.next {
            Side::Path => {
                let looked = backend.look(&[&self.pixels]).pop().unwrap_or(Err(EngineError::NotFinite));
                looked.and_then(|_| backend.rerun(&self.mask, &self.pixels))
            }
            Side::Full => backend.rerun(&full, &self.pixels),
        };
        let took = started.elapsed();
        match logits {
            Ok(Some(logits)) => Ok(Ran { took, agrees: best_class(&logits) == self.class }),
            Ok(None) => Err(Dropped::NoGraph),
            Err(error) => {
                tracing::debug!(%error, "a shadow failed");
                Err(Dropped::Failed)
            }
        }
    }
}

/// Counts shadows that there is no room for.
pub(super) fn turned_away(model: &Arc<dyn Model>, shadows: usize) {
    (0..shadows).for_each(|_| model.metrics().shadow_dropped(Dropped::Full));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_drawn_the_same_each_time_and_either_side_goes_first() {
        let drawn = |rate, seed| {
            let mut sampler = Sampler::new(rate, seed);
            (0..10_000).filter_map(|image| Some((image, sampler.draw()?))).collect::<Vec<_>>()
        };
        assert!(drawn(0.0, 1).is_empty());
        assert_eq!(drawn(1.0, 1).len(), 10_000);
        let some = drawn(0.01, 1);
        assert!((60..=140).contains(&some.len()), "{} of 10000", some.len());
        assert_eq!(some, drawn(0.01, 1));
        assert_ne!(some, drawn(0.01, 2), "workers draw other images");
        let first = drawn(1.0, 3).into_iter().filter(|(_, side)| *side == Side::Path).count();
        assert!((4_800..=5_200).contains(&first), "{first} of 10000");
    }
}
