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
    /// Keep where the probability is at least this.
    threshold: f64,
    max_blocks: Option<usize>,
    max_flops: Option<u64>,
    /// The request asked for no other path, threshold or budget.
    own: bool,
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
        let own = self == Self::default();
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
        Ok(Selection { path: self.path, threshold, max_blocks: self.max_blocks, max_flops: self.max_flops, own })
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

    /// Whether the policy decides alone, by the model's own threshold: the request asked for no other path, threshold or budget.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// A block is kept where its probability is at least this.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// The selection with its threshold raised by a `share`, from 0 to 1, of the way to `most`. `None` where it stays as
    /// it is: the request [asked for something else](Self::is_own), `share` is 0, or the threshold is that high already.
    pub fn raised(&self, share: f64, most: f64) -> Option<Self> {
        let raises = self.own && share > 0.0 && self.threshold < most;
        let threshold = (1.0 - share) * self.threshold + share * most;
        raises.then(|| Self { threshold, own: false, ..self.clone() })
    }

    /// The mask from the policy's logits for one image: `sigmoid(logit) >= threshold`, then the least wanted kept
    /// blocks dropped, one after another, until the budgets hold. Of equally wanted blocks the later one goes first.
    /// A NaN keeps nothing.
    ///
    /// # Panics
    /// There are not as many logits as blocks.
    pub fn learned(&self, costs: &Costs, logits: &[f32]) -> Mask {
        assert_eq!(logits.len(), costs.blocks.len(), "the policy gives a logit for each block");
        let cutoff = (self.threshold / (1.0 - self.threshold)).ln();
        let mut keep: Vec<bool> = logits.iter().map(|&logit| f64::from(logit) >= cutoff).collect();
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
mod tests;
