//! Which masks recur, counted as images come.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::bundle::{Frequent, MOST_FREQUENT};
use crate::policy::Mask;

/// Counts of the masks that images had; the old count less as new ones come.
#[derive(Debug, Default)]
pub(super) struct Seen {
    counts: HashMap<Mask, u64>,
    total: u64,
}

impl Seen {
    /// Masks counted at a time, at most.
    const WIDTH: usize = 1024;
    /// Images after which every count is halved.
    const AGE: u64 = 100_000;

    /// Counts `images` more of `mask` and gives its count.
    pub(super) fn add(&mut self, mask: &Mask, images: u64) -> u64 {
        if self.total >= Self::AGE {
            self.halve();
        }
        if self.counts.len() >= Self::WIDTH && !self.counts.contains_key(mask) {
            self.forget_the_rare();
        }
        self.total += images;
        let count = match self.counts.get_mut(mask) {
            Some(count) => count,
            None => self.counts.entry(mask.clone()).or_default(),
        };
        *count += images;
        *count
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
        self.total = self.counts.values().sum();
    }

    fn halve(&mut self) {
        self.counts.retain(|_, count| {
            *count /= 2;
            *count > 0
        });
        self.total = self.counts.values().sum();
    }

    pub(super) fn frequent(&self) -> Frequent {
        let mut masks: Vec<(&Mask, u64)> = self.counts.iter().map(|(mask, &count)| (mask, count)).collect();
        masks.sort_unstable_by_key(|&(mask, count)| (Reverse(count), Reverse(mask)));
        let total = self.total.max(1) as f64;
        Frequent(
            masks.into_iter().take(MOST_FREQUENT).map(|(mask, count)| (mask.clone(), count as f64 / total)).collect(),
        )
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
    fn new_habits_replace_old_ones() {
        let mut seen = Seen::default();
        seen.add(&mask("10"), 100_000);
        for _ in 0..200_000 {
            seen.add(&mask("01"), 1);
        }
        assert_eq!(seen.frequent().0[0].0, mask("01"));
        assert!(seen.count(&mask("10")) < seen.count(&mask("01")));
    }
}
