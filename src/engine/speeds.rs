//! What batches take, as measured on this machine, and by it whether images of several masks are to run together.

use std::time::{Duration, Instant};

use super::rooms::Room;
use super::sizes::{Sizes, WORTH};
use crate::policy::{Costs, Mask};

/// Seconds that one way to run batches takes, by the number of images: for all that is not a block, and for each FLOP of the
/// blocks that an image keeps.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Curve {
    points: Vec<Point>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    images: f64,
    /// Of a batch whose images drop every block.
    base: f64,
    /// Of all blocks on all images, beside the base, by the FLOPs of all blocks on one image.
    blocks: f64,
}

impl Curve {
    /// `measured`: how many images, in ascending order, and the seconds of a batch that drops and one that keeps every block,
    /// which have `flops` an image.
    ///
    /// # Panics
    /// Nothing was measured.
    pub(super) fn new(measured: &[(usize, f64, f64)], flops: u64) -> Self {
        assert!(!measured.is_empty(), "a curve has a point");
        let point = |&(images, base, full): &(usize, f64, f64)| Point {
            images: images as f64,
            base,
            blocks: (full - base).max(0.0) / flops.max(1) as f64,
        };
        Self { points: measured.iter().map(point).collect() }
    }

    /// A value at so many images: between those that were measured on a straight line, beyond the last in proportion.
    fn at(&self, images: usize, value: impl Fn(&Point) -> f64) -> f64 {
        let images = images as f64;
        let after = self.points.iter().position(|point| point.images >= images);
        match after {
            Some(0) => value(&self.points[0]),
            Some(after) => {
                let (left, right) = (&self.points[after - 1], &self.points[after]);
                let along = (images - left.images) / (right.images - left.images);
                value(left) + along * (value(right) - value(left))
            }
            None => {
                let last = &self.points[self.points.len() - 1];
                value(last) * images / last.images
            }
        }
    }

    /// Seconds of a batch of so many images beside its blocks.
    fn base(&self, images: usize) -> f64 {
        self.at(images, |point| point.base)
    }

    /// Seconds of a batch of so many images that keep blocks of so many FLOPs.
    pub(super) fn of(&self, images: usize, flops: u64) -> f64 {
        self.base(images) + self.blocks(images, flops)
    }

    /// Seconds of so many FLOPs an image on so many images.
    fn blocks(&self, images: usize, flops: u64) -> f64 {
        if images == 0 { 0.0 } else { flops as f64 * self.at(images, |point| point.blocks) }
    }
}

/// Images of one mask that wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group<'m> {
    pub(super) mask: &'m Mask,
    pub(super) images: usize,
    /// Whether its path is there as one graph.
    pub(super) compiled: bool,
}

/// What the ways to run batches take.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Speeds {
    /// Images of one mask by its compiled path.
    pub(super) fused: Curve,
    /// Images of one mask by its blocks; `None` where they run as a mixture of one.
    pub(super) blocks: Option<Curve>,
    /// Images of any masks together.
    pub(super) mixed: Curve,
    /// What batches are filled up to.
    pub(super) sizes: Sizes,
}

impl Speeds {
    /// Which of `groups` run together with the first: their positions, in ascending order, 0 first. Of two kinds of choice the
    /// one that saves most: those that cost less so than in a batch of their own, looked at one after another; and the first
    /// few whatever they are, since a group that has batches filled up further may be paid for by those behind it. Where
    /// neither is worth it, none goes along: whoever waits alone is answered sooner. `room` is what mixtures get where batches
    /// are of fixed sizes.
    pub(super) fn together(&self, costs: &Costs, room: &Room, groups: &[Group<'_>]) -> Vec<usize> {
        let (mut chosen, mut one_by_one, mut one_by_one_apart) = (Vec::new(), Mixture::new(self, costs, room), 0.0);
        let (mut all, mut all_apart, mut first, mut most_saved) = (Mixture::new(self, costs, room), 0.0, 1, 0.0);
        for (at, group) in groups.iter().enumerate() {
            let alone = self.alone(costs, room, group);
            if at == 0 || one_by_one.with(group) - one_by_one.seconds < alone {
                one_by_one.add(group);
                chosen.push(at);
                one_by_one_apart += alone;
            }
            all.add(group);
            all_apart += alone;
            if at > 0 && all_apart - all.seconds > most_saved && all.seconds < WORTH * all_apart {
                (first, most_saved) = (at + 1, all_apart - all.seconds);
            }
        }
        let saved = one_by_one_apart - one_by_one.seconds;
        if chosen.len() > 1 && saved >= most_saved && one_by_one.seconds < WORTH * one_by_one_apart {
            return chosen;
        }
        (0..first).collect()
    }

    /// Whether there are any groups of up to `most` images that would run together.
    pub(super) fn ever(&self, costs: &Costs, most: usize) -> bool {
        let depth = costs.blocks.len();
        let shares = [0.25, 0.5, 0.75];
        shares.into_iter().flat_map(|share| [(share, false), (share, true)]).any(|(share, compiled)| {
            // Each image with a mask of its own, and each block kept by as many of them.
            let mask = |image: usize| Mask::from_fn(depth, |block| ((block + image) as f64 * share).fract() < share);
            let masks: Vec<Mask> = (0..most).map(mask).collect();
            let groups: Vec<Group<'_>> = masks.iter().map(|mask| Group { mask, images: 1, compiled }).collect();
            self.together(costs, &Room::default(), &groups).len() > 1
        })
    }

    /// How a group is run, in batches of its own.
    pub(super) fn parts(&self, costs: &Costs, mask: &Mask, images: usize) -> Vec<usize> {
        self.parts_of(flops(costs, mask), images)
    }

    fn parts_of(&self, flops: u64, images: usize) -> Vec<usize> {
        self.sizes.parts(images, |size| self.fused.of(size, flops))
    }

    /// Seconds of a group in batches of its own.
    fn alone(&self, costs: &Costs, room: &Room, group: &Group<'_>) -> f64 {
        let flops = flops(costs, group.mask);
        let parts = self.parts_of(flops, group.images);
        let curve = match &self.blocks {
            _ if group.compiled => &self.fused,
            Some(blocks) => blocks,
            None => {
                let part = |images| Mixture::new(self, costs, room).with(&Group { images, ..*group });
                return parts.into_iter().map(part).sum();
            }
        };
        parts.into_iter().map(|images| curve.of(self.sizes.of(images).unwrap_or(images), flops)).sum()
    }
}

/// FLOPs of the blocks that a mask keeps, on one image.
fn flops(costs: &Costs, mask: &Mask) -> u64 {
    costs.blocks.iter().zip(mask.iter()).filter(|(_, keep)| *keep).map(|(block, _)| block.kept).sum()
}

/// Groups that run together, and what that takes.
struct Mixture<'s> {
    speeds: &'s Speeds,
    costs: &'s Costs,
    room: &'s Room,
    images: usize,
    /// Images that keep each block.
    rows: Vec<usize>,
    seconds: f64,
}

impl<'s> Mixture<'s> {
    fn new(speeds: &'s Speeds, costs: &'s Costs, room: &'s Room) -> Self {
        Self { speeds, costs, room, images: 0, rows: vec![0; costs.blocks.len()], seconds: 0.0 }
    }

    /// Seconds with `group` too.
    fn with(&self, group: &Group<'_>) -> f64 {
        let Speeds { mixed: curve, sizes, .. } = self.speeds;
        let images = self.images + group.images;
        let size = sizes.of(images).unwrap_or(images);
        let blocks = self.costs.blocks.iter().zip(&self.rows).zip(group.mask.iter()).enumerate();
        let seconds = blocks.map(|(at, ((block, &rows), keep))| {
            let rows = if keep { rows + group.images } else { rows };
            curve.blocks(sizes.rows(images, rows).max(self.room.rows(size, at)), block.kept)
        });
        curve.base(size) + seconds.sum::<f64>()
    }

    fn add(&mut self, group: &Group<'_>) {
        self.seconds = self.with(group);
        self.images += group.images;
        let kept = self.rows.iter_mut().zip(group.mask.iter()).filter(|(_, keep)| *keep);
        kept.for_each(|(rows, _)| *rows += group.images);
    }
}

/// The shortest of a few runs, in seconds: whatever else the machine does only makes a run longer.
///
/// # Errors
/// As of `run`.
pub(super) fn shortest<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    const MOST_TIME: Duration = Duration::from_millis(30);
    const LEAST_RUNS: usize = 3;
    run()?; // the first one is slower
    let (begun, mut shortest, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < LEAST_RUNS || (begun.elapsed() < MOST_TIME && runs < 100) {
        let started = Instant::now();
        run()?;
        shortest = shortest.min(started.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(shortest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::rooms::Rooms;
    use crate::policy::BlockCost;

    fn costs(blocks: usize) -> Costs {
        let block = BlockCost { segment: 0, kept: 100, dropped: 0 };
        Costs { policy: 1, stem: 1, blocks: vec![block; blocks], head: 1 }
    }

    /// A run takes `fixed`, an image `image`, and a block on an image `block`.
    fn curve(fixed: f64, image: f64, block: f64, blocks: usize) -> Curve {
        let at = |images: usize| {
            let base = fixed + image * images as f64;
            (images, base, base + (blocks * images) as f64 * block)
        };
        Curve::new(&[at(1), at(8), at(64)], 100 * blocks as u64)
    }

    fn mask(text: &str) -> Mask {
        text.parse().expect("a mask")
    }

    fn together(speeds: &Speeds, groups: &[(&str, usize)]) -> Vec<usize> {
        let masks: Vec<(Mask, usize)> = groups.iter().map(|&(text, images)| (mask(text), images)).collect();
        let groups: Vec<Group<'_>> =
            masks.iter().map(|(mask, images)| Group { mask, images: *images, compiled: true }).collect();
        speeds.together(&costs(4), &Room::default(), &groups)
    }

    #[test]
    fn seconds_lie_on_lines_between_what_was_measured() {
        let curve = Curve::new(&[(1, 1.0, 3.0), (5, 2.0, 8.0)], 2);
        assert_eq!([1, 3, 5, 10].map(|images| curve.base(images)), [1.0, 1.5, 2.0, 4.0]);
        assert_eq!([0, 1, 3, 5, 10].map(|images| curve.blocks(images, 1)), [0.0, 1.0, 2.0, 3.0, 6.0]);
    }

    #[test]
    fn rare_masks_run_together_where_runs_are_dear_and_common_ones_apart() {
        // A GPU: a run takes its time whatever it runs on.
        let dear = Speeds {
            fused: curve(10.0, 0.1, 0.1, 4),
            blocks: Some(curve(20.0, 0.1, 0.1, 4)),
            mixed: curve(20.0, 0.1, 0.1, 4),
            sizes: Sizes::Any,
        };
        assert_eq!(together(&dear, &[("1000", 1), ("0100", 1)]), [0], "two runs are not dearer than one for mixtures");
        assert_eq!(together(&dear, &[("1000", 1), ("0100", 1), ("0010", 1)]), [0, 1, 2]);
        assert!(dear.ever(&costs(4), 8));
        // Mixtures whose images cost twice as much: those that are many run apart.
        let slow = Speeds { mixed: curve(5.0, 1.0, 0.2, 4), ..dear };
        assert_eq!(together(&slow, &[("1000", 1), ("0100", 1), ("1111", 60), ("0011", 1)]), [0, 1, 3]);
        // A CPU: images take their time however they run.
        let cheap = Speeds {
            fused: curve(0.01, 0.1, 1.0, 4),
            blocks: Some(curve(0.02, 0.1, 1.05, 4)),
            mixed: curve(0.02, 0.15, 1.05, 4),
            sizes: Sizes::Any,
        };
        assert_eq!(together(&cheap, &[("1000", 1), ("0100", 1), ("0010", 1)]), [0]);
        assert!(!cheap.ever(&costs(4), 64));
    }

    #[test]
    fn batches_of_fixed_sizes_cost_what_they_are_filled_up_to() {
        let speeds = Speeds {
            fused: curve(0.0, 1.0, 0.0, 4),
            blocks: None,
            mixed: curve(0.0, 1.0, 0.0, 4),
            sizes: Sizes::Powers,
        };
        let costs = costs(4);
        let room = Room::default();
        let mask = mask("0000");
        let group = |images| Group { mask: &mask, images, compiled: true };
        let alone = |speeds: &Speeds| [1, 5, 8].map(|images| speeds.alone(&costs, &room, &group(images)));
        assert_eq!(alone(&speeds), [1.0, 5.0, 8.0], "a batch of 4 and a single image");
        let dear = Speeds { fused: curve(10.0, 1.0, 0.0, 4), ..speeds.clone() };
        assert_eq!(alone(&dear), [11.0, 18.0, 18.0]);
        let mixed = |images| Mixture::new(&speeds, &costs, &room).with(&group(images));
        assert_eq!([1, 5, 8, 64].map(mixed), [1.0, 8.0, 8.0, 64.0]);
        // So do blocks, by an eighth of that.
        let speeds = Speeds { mixed: curve(0.0, 0.0, 1.0, 4), ..speeds };
        let mask = self::mask("1000");
        let mixed = |images| Mixture::new(&speeds, &costs, &room).with(&Group { mask: &mask, images, compiled: true });
        assert_eq!([1, 5, 9, 33].map(mixed), [1.0, 5.0, 10.0, 40.0]);
    }

    #[test]
    fn what_earlier_batches_needed_is_paid_for() {
        let speeds = Speeds {
            fused: curve(10.0, 0.1, 0.5, 4),
            blocks: None,
            mixed: curve(15.0, 0.1, 0.5, 4),
            sizes: Sizes::Powers,
        };
        let masks: Vec<Mask> = ["1000", "0100", "0010", "0001"].map(mask).to_vec();
        let groups: Vec<Group<'_>> = masks.iter().map(|mask| Group { mask, images: 1, compiled: true }).collect();
        let (costs, rooms) = (costs(4), Rooms::new(4));
        let together = || speeds.together(&costs, &rooms.now(), &groups);
        assert_eq!(together(), [0, 1, 2, 3]);
        rooms.fit(4, &[4; 4]);
        assert_eq!(together(), [0, 1, 2, 3], "8 of time more are still less than four runs");
        let slow = Speeds { mixed: curve(15.0, 0.1, 2.0, 4), ..speeds.clone() };
        assert_eq!(slow.together(&costs, &rooms.now(), &groups), [0, 1], "batches of two have rooms of their own");
        assert_eq!(slow.together(&costs, &Room::default(), &groups), [0, 1, 2, 3]);
    }

    proptest! {
        /// All groups run by what is chosen for the first that are left, again and again, take hardly longer than all apart or
        /// all together, by what is estimated. Groups of sizes that are not filled up: those of others may be cheaper as
        /// mixtures of one, which nobody runs.
        #[test]
        fn a_plan_is_hardly_slower_than_either_way_for_all(
            fixed in 0.1f64..10.0, image in 0.0f64..0.5, block in 0.001f64..0.3, mixing in 1.0f64..2.0,
            groups in prop::collection::vec((prop::collection::vec(any::<bool>(), 4), 0u32..4, any::<bool>()), 1..33),
            powers: bool,
        ) {
            let sizes = if powers { Sizes::Powers } else { Sizes::Any };
            let speeds = Speeds {
                fused: curve(fixed, image, block, 4),
                blocks: (!powers).then(|| curve(mixing * fixed, image, block, 4)),
                mixed: curve(mixing * fixed, image, 1.1 * block, 4),
                sizes,
            };
            let (costs, room) = (costs(4), Room::default());
            let masks: Vec<Mask> = groups.iter().map(|(bits, ..)| Mask::from_fn(4, |at| bits[at])).collect();
            let mut left: Vec<Group<'_>> = masks.iter().zip(&groups)
                .map(|(mask, &(_, power, compiled))| Group { mask, images: 1 << power, compiled }).collect();
            let mixed = |groups: &[Group<'_>]| {
                let mut mixture = Mixture::new(&speeds, &costs, &room);
                groups.iter().for_each(|group| mixture.add(group));
                mixture.seconds
            };
            let apart: f64 = left.iter().map(|group| speeds.alone(&costs, &room, group)).sum();
            let best = apart.min(mixed(&left));
            let mut planned = 0.0;
            while !left.is_empty() {
                let together = speeds.together(&costs, &room, &left);
                let taken: Vec<Group<'_>> = together.iter().rev().map(|&at| left.remove(at)).collect();
                planned += if let [alone] = &*taken { speeds.alone(&costs, &room, alone) } else { mixed(&taken) };
            }
            prop_assert!(planned <= 1.1 * best, "{planned} where {best} would do");
        }

        /// What runs together holds the first group, each group once, and is estimated to take less than its groups apart.
        #[test]
        fn what_runs_together_is_faster_so(
            fixed in 0.0f64..10.0, image in 0.0f64..1.0, block in 0.001f64..1.0,
            groups in prop::collection::vec((prop::collection::vec(any::<bool>(), 4), 1usize..9, any::<bool>()), 1..9),
        ) {
            let speeds = Speeds {
                fused: curve(fixed, image, block, 4),
                blocks: Some(curve(1.5 * fixed, image, block, 4)),
                mixed: curve(fixed, 1.2 * image, 1.1 * block, 4),
                sizes: Sizes::Any,
            };
            let (costs, room) = (costs(4), Room::default());
            let masks: Vec<Mask> = groups.iter().map(|(bits, ..)| Mask::from_fn(4, |at| bits[at])).collect();
            let groups: Vec<Group<'_>> = masks.iter().zip(&groups)
                .map(|(mask, &(_, images, compiled))| Group { mask, images, compiled }).collect();
            let chosen = speeds.together(&costs, &room, &groups);
            prop_assert_eq!(chosen[0], 0);
            prop_assert!(chosen.is_sorted_by(|left, right| left < right));
            if chosen.len() > 1 {
                let mut mixture = Mixture::new(&speeds, &costs, &room);
                chosen.iter().for_each(|&at| mixture.add(&groups[at]));
                let apart: f64 = chosen.iter().map(|&at| speeds.alone(&costs, &room, &groups[at])).sum();
                prop_assert!(mixture.seconds < apart);
            }
        }
    }
}
