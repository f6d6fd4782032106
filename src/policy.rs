//! Masks, and every way to choose one: learned, full, fixed, FirstK, RandomK, DistributeK, and a budget.

use std::fmt;
use std::str::FromStr;

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use crate::text::shortened;

/// Which of a network's K residual blocks run: bit k is true where block k is kept. Prints as `1011...`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mask(Box<[bool]>);

impl Mask {
    /// Every block kept.
    pub fn full(blocks: usize) -> Self {
        Self::from_fn(blocks, |_| true)
    }

    /// The mask of `blocks` bits that keeps block k where `keep(k)`.
    pub fn from_fn(blocks: usize, keep: impl FnMut(usize) -> bool) -> Self {
        Self((0..blocks).map(keep).collect())
    }

    /// Number of blocks, K.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of blocks kept.
    pub fn kept(&self) -> usize {
        self.0.iter().filter(|&&keep| keep).count()
    }

    pub fn is_full(&self) -> bool {
        self.0.iter().all(|&keep| keep)
    }

    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<bool> for Mask {
    fn from_iter<I: IntoIterator<Item = bool>>(bits: I) -> Self {
        Self(bits.into_iter().collect())
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|keep| out.write_str(if keep { "1" } else { "0" }))
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Mask({self})")
    }
}

impl FromStr for Mask {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bits = text.chars().map(|bit| match bit {
            '1' => Ok(true),
            '0' => Ok(false),
            other => Err(PolicyError::new("path", format!("'{other}' in a mask"), "only 0 and 1, one for each block")),
        });
        bits.collect()
    }
}

/// FLOPs of one image, part by part (paper's convention: two per multiply-accumulate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Costs {
    /// The policy network; charged to every image that it decides for.
    pub policy: u64,
    pub stem: u64,
    pub blocks: Vec<BlockCost>,
    pub head: u64,
}

/// FLOPs of one residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCost {
    /// Index of the block's segment.
    pub segment: usize,
    /// Kept: residual branch and shortcut.
    pub kept: u64,
    /// Dropped: what the shortcut alone costs; 0 for the identity.
    pub dropped: u64,
}

impl BlockCost {
    fn of(&self, keep: bool) -> u64 {
        if keep { self.kept } else { self.dropped }
    }
}

impl Costs {
    /// Stem, the blocks that `mask` keeps, the shortcuts of those it drops, and head; without the policy.
    pub fn executed(&self, mask: &Mask) -> u64 {
        let blocks: u64 = self.blocks.iter().zip(mask.iter()).map(|(block, keep)| block.of(keep)).sum();
        self.stem + blocks + self.head
    }

    /// The full net as one graph: stem, all blocks, head.
    pub fn full(&self) -> u64 {
        self.executed(&Mask::full(self.blocks.len()))
    }

    /// FLOPs of policy and path together; the policy's only where it ran.
    pub fn spent(&self, mask: &Mask, policy_ran: bool) -> u64 {
        self.executed(mask) + if policy_ran { self.policy } else { 0 }
    }

    /// A bound on every sum of these costs; `None` where 64 bits do not hold it.
    pub(crate) fn most(&self) -> Option<u64> {
        let blocks = self.blocks.iter().flat_map(|block| [block.kept, block.dropped]);
        blocks.chain([self.policy, self.stem, self.head]).try_fold(0u64, u64::checked_add)
    }

    /// The least that a learned path can cost: the policy, and every block dropped.
    fn least_learned(&self) -> u64 {
        self.policy + self.executed(&Mask::from_fn(self.blocks.len(), |_| false))
    }
}

/// A choice that does not fit: the parameter, what was found, what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: found {found}, expected {expected}")]
pub struct PolicyError {
    /// The request parameter or flag.
    pub parameter: &'static str,
    pub found: String,
    pub expected: String,
}

impl PolicyError {
    fn new(parameter: &'static str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { parameter, found: found.into(), expected: expected.into() }
    }
}

/// The value of a `path` parameter or flag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Path {
    /// `policy`: what the policy network decides for the image (paper, section 3).
    #[default]
    Learned,
    /// `full`: every block, as one graph; no policy runs.
    Full,
    /// `mask:1011...`: these blocks.
    Fixed(Mask),
    /// `first_k:N`: the first N blocks (paper, section 4).
    FirstK(usize),
    /// `random_k:N` or `random_k:N:SEED`: N blocks drawn for each image; the same for the same seed.
    RandomK { keep: usize, seed: Option<u64> },
    /// `distribute_k:N`: N blocks spread evenly over the segments, the first ones of each.
    DistributeK(usize),
}

/// What [`Path`] accepts, for messages and help.
pub const PATHS: &str = "policy, full, mask:BITS, first_k:N, random_k:N, random_k:N:SEED or distribute_k:N";

impl Path {
    /// The policy's name in answers and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Full => "full",
            Self::Fixed(_) => "mask",
            Self::FirstK(_) => "first_k",
            Self::RandomK { .. } => "random_k",
            Self::DistributeK(_) => "distribute_k",
        }
    }
}

impl FromStr for Path {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let unknown = || PolicyError::new("path", format!("'{}'", shortened(text)), PATHS);
        let (kind, value) = text.split_once(':').map_or((text, None), |(kind, value)| (kind, Some(value)));
        let number = |value: &str| value.parse().map_err(|_| unknown());
        match (kind, value) {
            ("policy", None) => Ok(Self::Learned),
            ("full", None) => Ok(Self::Full),
            ("mask", Some(bits)) if !bits.is_empty() => bits.parse().map(Self::Fixed),
            ("first_k", Some(keep)) => number(keep).map(Self::FirstK),
            ("distribute_k", Some(keep)) => number(keep).map(Self::DistributeK),
            ("random_k", Some(value)) => match value.split_once(':') {
                None => Ok(Self::RandomK { keep: number(value)?, seed: None }),
                Some((keep, seed)) => {
                    let seed = seed.parse().map_err(|_| unknown())?;
                    Ok(Self::RandomK { keep: number(keep)?, seed: Some(seed) })
                }
            },
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learned => out.write_str("policy"),
            Self::Full => out.write_str("full"),
            Self::Fixed(mask) => write!(out, "mask:{mask}"),
            Self::FirstK(keep) => write!(out, "first_k:{keep}"),
            Self::RandomK { keep, seed: None } => write!(out, "random_k:{keep}"),
            Self::RandomK { keep, seed: Some(seed) } => write!(out, "random_k:{keep}:{seed}"),
            Self::DistributeK(keep) => write!(out, "distribute_k:{keep}"),
        }
    }
}

/// How a request wants its masks chosen, before it is checked against a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    pub path: Path,
    /// Keep block k when `sigmoid(logit_k) >= threshold`, instead of the model's own threshold.
    pub threshold: Option<f64>,
    /// Drop the least wanted blocks until at most this many are kept.
    pub max_blocks: Option<usize>,
    /// Drop the least wanted blocks until policy and path cost at most this many FLOPs.
    pub max_flops: Option<u64>,
}

/// A [`Choice`] that fits a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    path: Path,
    /// Keep where the logit is at least this.
    cutoff: f64,
    max_blocks: Option<usize>,
    max_flops: Option<u64>,
}

impl Choice {
    /// Checks the choice against a model with these `costs` and this keep `threshold`.
    ///
    /// # Errors
    /// A mask of another length, more blocks than there are, a threshold that is no probability, a budget that even
    /// the path without any block exceeds, or a threshold or budget where no policy decides.
    pub fn check(self, costs: &Costs, threshold: f64) -> Result<Selection, PolicyError> {
        let blocks = costs.blocks.len();
        match &self.path {
            Path::Fixed(mask) if mask.len() != blocks => {
                return Err(PolicyError::new(
                    "path",
                    format!("a mask of {} bits", mask.len()),
                    format!("{blocks}, one for each block"),
                ));
            }
            Path::FirstK(keep) | Path::RandomK { keep, .. } | Path::DistributeK(keep) if *keep > blocks => {
                return Err(PolicyError::new(
                    "path",
                    format!("{keep} blocks to keep"),
                    format!("0 to {blocks}, the model's blocks"),
                ));
            }
            _ => {}
        }
        if self.path != Path::Learned {
            let given = [
                ("threshold", self.threshold.is_some()),
                ("max_blocks", self.max_blocks.is_some()),
                ("max_flops", self.max_flops.is_some()),
            ];
            if let Some((parameter, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(PolicyError::new(
                    parameter,
                    format!("it beside path={}", self.path.name()),
                    "it only with path=policy, where the policy network decides",
                ));
            }
        }
        let threshold = self.threshold.unwrap_or(threshold);
        if !(0.0..=1.0).contains(&threshold) {
            return Err(PolicyError::new("threshold", threshold.to_string(), "a probability from 0 to 1"));
        }
        if let Some(most) = self.max_flops
            && most < costs.least_learned()
        {
            return Err(PolicyError::new(
                "max_flops",
                most.to_string(),
                format!("at least {}, what the policy and a path without any block cost", costs.least_learned()),
            ));
        }
        Ok(Selection {
            path: self.path,
            cutoff: (threshold / (1.0 - threshold)).ln(),
            max_blocks: self.max_blocks,
            max_flops: self.max_flops,
        })
    }
}

impl Selection {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the policy network has to look at the image.
    pub fn needs_policy(&self) -> bool {
        self.path == Path::Learned
    }

    /// The mask from the policy's logits for one image: `sigmoid(logit) >= threshold`, then the least wanted kept
    /// blocks dropped, one after another, until the budgets hold. Of equally wanted blocks the later one goes first.
    /// A NaN keeps nothing.
    ///
    /// # Panics
    /// There are not as many logits as blocks.
    pub fn learned(&self, costs: &Costs, logits: &[f32]) -> Mask {
        assert_eq!(logits.len(), costs.blocks.len(), "the policy gives a logit for each block");
        let mut keep: Vec<bool> = logits.iter().map(|&logit| f64::from(logit) >= self.cutoff).collect();
        let mut kept: Vec<usize> = (0..keep.len()).filter(|&block| keep[block]).collect();
        kept.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));

        let most = self.max_blocks.unwrap_or(usize::MAX);
        let budget = self.max_flops.unwrap_or(u64::MAX);
        let blocks: u64 = costs.blocks.iter().zip(&keep).map(|(block, &keep)| block.of(keep)).sum();
        let mut cost = costs.policy + costs.stem + blocks + costs.head;
        while kept.len() > most || cost > budget {
            let Some(least) = kept.pop() else { break };
            keep[least] = false;
            cost = cost - costs.blocks[least].kept + costs.blocks[least].dropped;
        }
        Mask(keep.into())
    }

    /// The mask of a path that needs no policy, for the image at position `index` of its request; `None` for the
    /// learned one.
    pub fn given(&self, costs: &Costs, index: u64) -> Option<Mask> {
        let blocks = costs.blocks.len();
        match &self.path {
            Path::Learned => None,
            Path::Full => Some(Mask::full(blocks)),
            Path::Fixed(mask) => Some(mask.clone()),
            Path::FirstK(keep) => Some(Mask::from_fn(blocks, |block| block < *keep)),
            Path::RandomK { keep, seed } => Some(random(blocks, *keep, *seed, index)),
            Path::DistributeK(keep) => Some(distribute(costs, *keep)),
        }
    }
}

/// `keep` of `blocks` drawn uniformly. A seed and an index give the same mask on every machine.
fn random(blocks: usize, keep: usize, seed: Option<u64>, index: u64) -> Mask {
    let mut generator = match seed {
        Some(seed) => {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            generator.set_stream(index);
            generator
        }
        None => ChaCha8Rng::from_rng(&mut rand::rng()),
    };
    let mut bits = vec![false; blocks];
    for block in index::sample(&mut generator, blocks, keep) {
        bits[block] = true;
    }
    Mask(bits.into())
}

/// `keep` blocks dealt to the segments in turn, one each, until a segment is full; the first ones of each are kept.
fn distribute(costs: &Costs, keep: usize) -> Mask {
    let segments = costs.blocks.iter().map(|block| block.segment + 1).max().unwrap_or(0);
    let mut sizes = vec![0usize; segments];
    costs.blocks.iter().for_each(|block| sizes[block.segment] += 1);
    let mut share = vec![0usize; segments];
    let mut left = keep;
    while left > 0 {
        let before = left;
        for segment in 0..segments {
            if left > 0 && share[segment] < sizes[segment] {
                share[segment] += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    costs
        .blocks
        .iter()
        .map(|block| {
            let left = &mut share[block.segment];
            let keep = *left > 0;
            *left = left.saturating_sub(1);
            keep
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A net of these segment sizes; the first block of each but the first has a shortcut with work to do.
    fn costs(segments: &[usize]) -> Costs {
        let mut blocks = Vec::new();
        for (segment, &size) in segments.iter().enumerate() {
            for position in 0..size {
                let dropped = if position == 0 && segment > 0 { 7 } else { 0 };
                blocks.push(BlockCost { segment, kept: 100 + 10 * segment as u64, dropped });
            }
        }
        Costs { policy: 50, stem: 20, blocks, head: 3 }
    }

    fn learned(costs: &Costs, choice: Choice, logits: &[f32]) -> Mask {
        choice.check(costs, 0.5).expect("a choice that fits").learned(costs, logits)
    }

    #[test]
    fn a_block_is_kept_from_probability_one_half_on() {
        let costs = costs(&[2, 2]);
        let mask = learned(&costs, Choice::default(), &[0.0, -1e-6, 3.0, f32::NAN]);
        assert_eq!(mask.to_string(), "1010");
    }

    #[test]
    fn thresholds_zero_and_one_keep_everything_and_nothing() {
        let costs = costs(&[3]);
        let logits = [-80.0, 0.0, 80.0];
        let at = |threshold| {
            learned(&costs, Choice { threshold: Some(threshold), ..Choice::default() }, &logits).to_string()
        };
        assert_eq!([at(0.0), at(0.5), at(1.0)], ["111", "011", "000"]);
        // sigmoid(2.0) = 0.8808
        let one =
            |threshold| learned(&costs, Choice { threshold: Some(threshold), ..Choice::default() }, &[2.0; 3]).kept();
        assert_eq!([one(0.88), one(0.881)], [3, 0]);
    }

    #[test]
    fn budgets_drop_the_least_wanted_block_first_and_of_equals_the_later() {
        let costs = costs(&[2, 2]);
        let logits = [0.5, 3.0, 0.5, 1.0];
        let with = |max_blocks, max_flops| {
            learned(&costs, Choice { max_blocks, max_flops, ..Choice::default() }, &logits).to_string()
        };
        assert_eq!(with(Some(3), None), "1101");
        assert_eq!(with(Some(2), None), "0101");
        assert_eq!(with(Some(0), None), "0000");
        // All four: 50 + 20 + 100 + 100 + 110 + 110 + 3. Without block 2, its shortcut (7) still runs.
        assert_eq!(with(None, Some(493)), "1111");
        assert_eq!(with(None, Some(492)), "1101");
        assert_eq!(with(None, Some(390)), "1101");
        assert_eq!(with(None, Some(389)), "0101");
    }

    #[test]
    fn choices_that_do_not_fit_name_the_parameter() {
        let costs = costs(&[2, 2]);
        let refused = |choice: Choice| choice.check(&costs, 0.5).expect_err("a choice that does not fit");
        let on = |path: &str| Choice { path: path.parse().expect("a path"), ..Choice::default() };
        for (path, expected) in [("mask:101", "4, one"), ("first_k:5", "0 to 4"), ("random_k:9:1", "0 to 4")] {
            let error = refused(on(path));
            assert!(error.parameter == "path" && error.expected.contains(expected), "{error}");
        }
        assert_eq!(refused(Choice { threshold: Some(f64::NAN), ..Choice::default() }).parameter, "threshold");
        assert_eq!(refused(Choice { threshold: Some(0.5), ..on("full") }).parameter, "threshold");
        assert_eq!(refused(Choice { max_blocks: Some(1), ..on("first_k:2") }).parameter, "max_blocks");
        let error = refused(Choice { max_flops: Some(79), ..Choice::default() });
        assert!(error.expected.contains("at least 80"), "{error}");
    }

    #[test]
    fn paths_print_as_they_parse_and_nothing_else_parses() {
        for text in ["policy", "full", "mask:0110", "first_k:7", "random_k:3", "random_k:3:42", "distribute_k:0"] {
            assert_eq!(text.parse::<Path>().expect("a path").to_string(), text);
        }
        for text in ["", "learned", "mask:", "mask:012", "first_k", "first_k:", "first_k:-1", "random_k:1:x", "full:1"]
        {
            text.parse::<Path>().expect_err(text);
        }
    }

    #[test]
    fn blocks_are_dealt_evenly_over_segments_until_one_is_full() {
        let mask = |segments: &[usize], keep| {
            Choice { path: Path::DistributeK(keep), ..Choice::default() }
                .check(&costs(segments), 0.5)
                .expect("a choice that fits")
                .given(&costs(segments), 0)
                .expect("a given mask")
                .to_string()
        };
        assert_eq!(mask(&[5, 5, 5], 7), "111001100011000");
        let resnet101 = mask(&[3, 4, 23, 3], 25);
        assert_eq!(resnet101, format!("{}{}{}{}{}", "111", "1111", "1".repeat(15), "0".repeat(8), "111"));
    }

    #[test]
    fn a_seed_draws_the_same_masks_again_and_another_for_each_image() {
        let costs = costs(&[18, 18, 18]);
        let draw = |seed, index| {
            Choice { path: Path::RandomK { keep: 17, seed }, ..Choice::default() }
                .check(&costs, 0.5)
                .expect("a choice that fits")
                .given(&costs, index)
                .expect("a given mask")
        };
        assert_eq!(draw(Some(1), 0), draw(Some(1), 0));
        assert_ne!(draw(Some(1), 0), draw(Some(1), 1));
        assert_ne!(draw(Some(1), 0), draw(Some(2), 0));
        assert_ne!(draw(None, 0), draw(None, 0));
    }

    proptest! {
        #[test]
        fn every_given_path_keeps_as_many_as_it_says(
            segments in prop::collection::vec(1usize..9, 1..5), part in 0.0..=1.0f64, seed: u64,
        ) {
            let costs = costs(&segments);
            let blocks = costs.blocks.len();
            let keep = (part * blocks as f64) as usize;
            for path in [Path::FirstK(keep), Path::DistributeK(keep), Path::RandomK { keep, seed: Some(seed) }] {
                let mask = Choice { path, ..Choice::default() }.check(&costs, 0.5).unwrap().given(&costs, seed).unwrap();
                prop_assert_eq!((mask.len(), mask.kept()), (blocks, keep));
            }
        }

        #[test]
        fn budgets_hold_and_never_add_a_block(
            logits in prop::collection::vec(-4.0f32..4.0, 6), max_blocks in prop::option::of(0usize..8),
            max_flops in prop::option::of(90u64..800), threshold in 0.0..=1.0f64,
        ) {
            let costs = costs(&[2, 3, 1]);
            let free = learned(&costs, Choice { threshold: Some(threshold), ..Choice::default() }, &logits);
            let choice = Choice { threshold: Some(threshold), max_blocks, max_flops, ..Choice::default() };
            let mask = learned(&costs, choice, &logits);
            prop_assert!(mask.kept() <= max_blocks.unwrap_or(usize::MAX));
            prop_assert!(costs.policy + costs.executed(&mask) <= max_flops.unwrap_or(u64::MAX));
            for block in 0..6 {
                let (kept, before) = (mask.0[block], free.0[block]);
                prop_assert!(!kept || before);
                // A block that was given up is wanted no more than any that stayed.
                prop_assert!(kept || !before || (0..6).all(|other| !mask.0[other] || logits[other] >= logits[block]));
            }
        }

        #[test]
        fn a_mask_prints_as_it_parses(bits in prop::collection::vec(any::<bool>(), 1..120)) {
            let mask: Mask = bits.into_iter().collect();
            prop_assert_eq!(mask.to_string().parse::<Mask>().unwrap(), mask);
        }
    }
}
