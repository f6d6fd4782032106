//! Whether an answer is right, and the same as the first one for its image.

use std::sync::OnceLock;

use crate::record::{Flops, Image, Stages};

/// What an answer says of an image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) class: u32,
    /// Of that class: its probability, or whatever the server scores classes by.
    pub(super) score: Option<f64>,
    /// The next best score.
    pub(super) second: Option<f64>,
    /// A hash of the mask.
    pub(super) mask: Option<u64>,
    pub(super) blocks: Option<u16>,
    pub(super) flops: Option<Flops>,
    pub(super) stages: Option<Stages>,
}

/// Scores this close (of scores beyond 1: relative to them) are the same but for rounding: batches of other sizes and other
/// kernels add in another order.
const ROUNDING: f64 = 1e-3;

/// The first answers of an arm: for each image one slot, filled once.
#[derive(Debug)]
pub(super) struct Judge {
    firsts: Vec<OnceLock<First>>,
    /// The arm draws its blocks anew for each image: answers differ.
    random: bool,
}

#[derive(Debug)]
struct First {
    class: u32,
    score: Option<f64>,
    second: Option<f64>,
    mask: Option<u64>,
}

impl Judge {
    pub(super) fn new(images: usize, random: bool) -> Self {
        Self { firsts: (0..if random { 0 } else { images }).map(|_| OnceLock::new()).collect(), random }
    }

    /// Judges an answer for `image`, whose class is `label`. It is changed when its mask is another than the first's, or its
    /// class is, or the class's score is further away than rounding explains. Another class is rounding too where the two
    /// best scores of either answer are that close.
    pub(super) fn judge(&self, image: usize, label: Option<u32>, facts: &Facts) -> Image {
        let changed = !self.random && self.changed(image, facts);
        Image {
            correct: label.map(|label| label == facts.class),
            changed,
            blocks: facts.blocks,
            flops: facts.flops,
            stages: facts.stages,
        }
    }

    fn changed(&self, image: usize, facts: &Facts) -> bool {
        let Some(slot) = self.firsts.get(image) else { return false };
        let &Facts { class, score, second, mask, .. } = facts;
        let first = slot.get_or_init(|| First { class, score, second, mask });
        if first.mask != mask {
            return true;
        }
        let moved = match (first.score, score) {
            (Some(first), Some(now)) => !near(first, now),
            (first, now) => first.is_some() != now.is_some(),
        };
        let tie = |best: Option<f64>, second: Option<f64>| best.zip(second).is_some_and(|(a, b)| near(a, b));
        moved || (first.class != class && !tie(first.score, first.second) && !tie(score, second))
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= ROUNDING * a.abs().max(b.abs()).max(1.0)
}

/// A hash of a mask's bits (FNV-1a): equal for equal masks, in whatever form a protocol has them.
pub(super) fn mask_hash(bits: impl Iterator<Item = bool>) -> u64 {
    bits.fold(0xcbf2_9ce4_8422_2325, |hash, bit| (hash ^ u64::from(bit)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(class: u32, score: f64, second: f64, mask: &str) -> Facts {
        Facts {
            class,
            score: Some(score),
            second: Some(second),
            mask: Some(mask_hash(mask.bytes().map(|bit| bit == b'1'))),
            blocks: None,
            flops: None,
            stages: None,
        }
    }

    #[test]
    fn answers_change_by_more_than_rounding() {
        let changed = |first: &Facts, now: &Facts| {
            let judge = Judge::new(2, false);
            assert!(!judge.judge(1, None, first).changed, "the first is the measure");
            let found = judge.judge(1, None, now).changed;
            assert!(!judge.judge(0, None, now).changed, "another image has its own");
            found
        };
        let first = facts(3, 0.9, 0.05, "101");
        assert!(!changed(&first, &first));
        assert!(!changed(&first, &facts(3, 0.9009, 0.05, "101")));
        assert!(changed(&first, &facts(3, 0.902, 0.05, "101")));
        assert!(changed(&first, &facts(4, 0.9, 0.05, "101")));
        assert!(changed(&first, &facts(3, 0.9, 0.05, "100")));
        assert!(changed(&first, &facts(3, 0.9, 0.05, "1010")));
        let tie = facts(3, 0.4504, 0.4500, "1");
        assert!(!changed(&tie, &facts(4, 0.4502, 0.4501, "1")));
        assert!(changed(&tie, &facts(4, 0.6, 0.2, "1")));
        assert!(!changed(&facts(1, 25.00, 3.0, ""), &facts(1, 25.02, 3.0, "")), "logits");
    }

    #[test]
    fn what_is_random_is_not_judged_but_for_its_label() {
        let judge = Judge::new(1, true);
        assert_eq!(judge.judge(0, Some(3), &facts(3, 0.9, 0.0, "1")).correct, Some(true));
        let second = judge.judge(0, Some(3), &facts(4, 0.5, 0.0, "0"));
        assert_eq!((second.correct, second.changed), (Some(false), false));
    }
}
