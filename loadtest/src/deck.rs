//! The sequence of what requests carry. It depends on the seed and the round alone, so that in a round all arms are sent
//! the same, in the same order.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::plan::Plan;
use crate::record::{Fault, Payload};
use crate::seed::{Use, generator};

/// An endless sequence of payloads. The images come in a shuffled order, anew each time the pool is through, so that
/// each is sent as often as any other.
#[derive(Debug, Clone)]
pub struct Deck {
    order: Vec<u32>,
    /// How many of `order` have been drawn; what follows is not shuffled yet.
    drawn: usize,
    generator: ChaCha8Rng,
    bad: f64,
    broken: f64,
    faults: Vec<Fault>,
}

impl Deck {
    /// What `plan` says to send in a round, out of a pool of `images`, one at least.
    pub fn new(plan: &Plan, images: usize, round: u64) -> Self {
        let faults = plan.faults.kinds.clone();
        let broken = if faults.is_empty() { 0.0 } else { plan.faults.share };
        Self { bad: plan.images.bad, broken, faults, ..Self::good(plan, images, round) }
    }

    /// Images only, none of the requests that a server has to refuse.
    pub fn good(plan: &Plan, images: usize, round: u64) -> Self {
        Self {
            order: (0..u32::try_from(images.max(1)).unwrap_or(u32::MAX)).collect(),
            drawn: 0,
            generator: generator(plan.seed, Use::Payloads, round),
            bad: 0.0,
            broken: 0.0,
            faults: Vec::new(),
        }
    }

    /// Whether any request is broken on purpose.
    pub fn breaks(&self) -> bool {
        self.broken > 0.0
    }

    /// What the next request carries.
    pub fn draw(&mut self) -> Payload {
        if self.bad + self.broken > 0.0 {
            let at: f64 = self.generator.random();
            if at < self.broken {
                let fault = self.faults[self.generator.random_range(0..self.faults.len())];
                return Payload::Broken { fault, first: self.generator.random_range(0..self.order.len()) };
            }
            if at < self.broken + self.bad {
                return Payload::Bad { kind: self.generator.random_range(0..1 << 16) };
            }
        }
        if self.drawn == self.order.len() {
            self.drawn = 0;
        }
        let pick = self.generator.random_range(self.drawn..self.order.len());
        self.order.swap(self.drawn, pick);
        self.drawn += 1;
        Payload::Images { first: self.order[self.drawn - 1] as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::testing::plan;
    use proptest::prelude::*;

    fn firsts(deck: &mut Deck, count: usize) -> Vec<usize> {
        (0..count)
            .map(|_| match deck.draw() {
                Payload::Images { first } => first,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn each_image_comes_once_before_any_comes_again(images in 1_usize..200, seed: u64, round in 0_u64..1000) {
            let mut deck = Deck::new(&crate::plan::Plan { seed, ..plan() }, images, round);
            for _ in 0..3 {
                let mut drawn = firsts(&mut deck, images);
                drawn.sort_unstable();
                prop_assert_eq!(drawn, (0..images).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_seed_and_a_round_make_the_sequence() {
        let draw = |seed, round| firsts(&mut Deck::new(&crate::plan::Plan { seed, ..plan() }, 500, round), 100);
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
    }

    #[test]
    fn bad_and_broken_requests_have_their_shares() {
        let mut plan = plan();
        plan.images.bad = 0.1;
        plan.faults = crate::plan::Faults { share: 0.2, kinds: vec![Fault::Junk, Fault::HalfClose] };
        let (mut bad, mut junk, mut half, mut images) = (0, 0, 0, vec![0; 50]);
        let mut deck = Deck::new(&plan, 50, 0);
        for _ in 0..20_000 {
            match deck.draw() {
                Payload::Bad { .. } => bad += 1,
                Payload::Broken { fault: Fault::Junk, first } if first < 50 => junk += 1,
                Payload::Broken { fault: Fault::HalfClose, first } if first < 50 => half += 1,
                Payload::Images { first } => images[first] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!((1_800..2_200).contains(&bad), "{bad}");
        assert!((1_800..2_200).contains(&junk) && (1_800..2_200).contains(&half), "{junk} {half}");
        assert!(images.iter().max().unwrap() - images.iter().min().unwrap() <= 1, "{images:?}");

        let mut good = Deck::good(&plan, 50, 0);
        assert_eq!(firsts(&mut good, 1000).len(), 1000);
    }

    #[test]
    fn a_share_of_faults_without_kinds_breaks_nothing() {
        let mut plan = plan();
        plan.faults.share = 1.0;
        assert_eq!(firsts(&mut Deck::new(&plan, 3, 0), 9).len(), 9);
    }
}
