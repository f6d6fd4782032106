//! Which masks recur, counted as images come.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::bundle::{Frequent, MOST_FREQUENT};
use crate::policy::Mask;

/// Counts of the masks that a model's images had.
#[derive(Debug, Default)]
pub(super) struct Seen {
    counts: HashMap<Mask, u64>,
    /// Images counted, without what was expected from the start.
    images: u64,
}

impl Seen {
    /// Masks counted at a time, at most.
    const WIDTH: usize = 1024;

    /// Counts as if `images` images had come already with the masks of `frequent`.
    pub(super) fn expect(&mut self, frequent: &Frequent, images: u64) {
        for (mask, share) in &frequent.0 {
            *self.of(mask) += (share * images as f64).ceil() as u64;
        }
    }

    /// Counts `images` more of `mask` and gives its count.
    pub(super) fn add(&mut self, mask: &Mask, images: u64) -> u64 {
        self.images += images;
        let count = self.of(mask);
        *count += images;
        *count
    }

    fn of(&mut self, mask: &Mask) -> &mut u64 {
        if self.counts.len() >= Self::WIDTH && !self.counts.contains_key(mask) {
            self.forget_the_rare();
        }
        // Most masks are there, and are not cloned.
        if !self.counts.contains_key(mask) {
            self.counts.insert(mask.clone(), 0);
        }
        self.counts.get_mut(mask).expect("put in above")
    }

    pub(super) fn count(&self, mask: &Mask) -> u64 {
        self.counts.get(mask).copied().unwrap_or(0)
    }

    /// Keeps the more frequent half.
    fn forget_the_rare(&mut self) {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let (_, &mut middle, _) = counts.select_nth_unstable(Self::WIDTH / 2);
        let mut equal = 0;
        self.counts.retain(|_, &mut count| {
            equal += usize::from(count == middle);
            count > middle || count == middle && equal % 2 == 0
        });
    }

    /// Old counts count half from now on.
    pub(super) fn age(&mut self) {
        self.counts.retain(|_, count| {
            *count /= 2;
            *count > 0
        });
    }

    /// The masks, the most frequent first; none where no image came.
    pub(super) fn frequent(&self) -> Frequent {
        if self.images == 0 { Frequent::default() } else { self.by_count() }
    }

    /// [`frequent`](Self::frequent) with what was expected, whether images came or not.
    pub(super) fn by_count(&self) -> Frequent {
        let mut masks: Vec<(&Mask, u64)> = self.counts.iter().map(|(mask, &count)| (mask, count)).collect();
        masks.sort_unstable_by_key(|&(mask, count)| (Reverse(count), Reverse(mask)));
        let total = masks.iter().map(|&(_, count)| count).sum::<u64>().max(1) as f64;
        let masks = masks.into_iter().take(MOST_FREQUENT);
        Frequent(masks.map(|(mask, count)| (mask.clone(), count as f64 / total)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(bits: &str) -> Mask {
        bits.parse().unwrap()
    }

    #[test]
    fn the_most_frequent_masks_come_first_with_their_shares() {
        let mut seen = Seen::default();
        for (bits, images) in [("100", 3), ("101", 6), ("111", 3)] {
            seen.add(&mask(bits), images);
        }
        assert_eq!(seen.frequent().0, [(mask("101"), 0.5), (mask("111"), 0.25), (mask("100"), 0.25)]);
    }

    #[test]
    fn what_was_expected_stays_until_enough_images_have_come() {
        let mut seen = Seen::default();
        seen.expect(&Frequent(vec![(mask("11"), 0.75), (mask("01"), 0.25)]), 100);
        assert_eq!(seen.frequent(), Frequent::default(), "no image came");
        assert_eq!(seen.by_count().0[0].0, mask("11"));
        seen.add(&mask("10"), 1);
        assert_eq!(seen.frequent().0.iter().map(|(mask, _)| mask.to_string()).collect::<Vec<_>>(), ["11", "01", "10"]);
        seen.add(&mask("10"), 100);
        assert_eq!(seen.frequent().0[0].0, mask("10"));
    }

    #[test]
    fn counting_is_bounded_and_forgets_what_is_rare() {
        let mut seen = Seen::default();
        seen.add(&mask("1111111111111111"), 5000);
        for number in 0..20_000u32 {
            seen.add(&Mask::from_fn(16, |bit| number >> bit & 1 == 1), 1);
            assert!(seen.counts.len() <= Seen::WIDTH);
        }
        assert_eq!(seen.frequent().0[0].0, mask("1111111111111111"));
        assert!(seen.frequent().0.len() <= MOST_FREQUENT);
    }

    #[test]
    fn old_habits_fade() {
        let mut seen = Seen::default();
        seen.add(&mask("10"), 1000);
        seen.add(&mask("00"), 1);
        for _ in 0..3 {
            seen.age();
            seen.add(&mask("01"), 200);
        }
        assert_eq!(seen.frequent().0[0].0, mask("01"));
        assert_eq!((seen.count(&mask("10")), seen.count(&mask("00"))), (125, 0));
    }
}
