//! What a request may ask for, and the masks that come of it.

use arbitrary::{Arbitrary, Unstructured};
use blockdrop::policy::{BlockCost, Choice, Costs, Mask, Path, Selection};
use blockdrop::server::fuzzing;

use crate::{Outcome, Refused, Taken, check_message};

/// `input` is the query of a request.
pub(crate) fn query(input: &[u8]) -> Outcome {
    let Ok(query) = std::str::from_utf8(input) else { return Refused };
    let block = |segment| BlockCost { segment, kept: 10, dropped: segment as u64 };
    let costs = Costs { policy: 5, stem: 7, blocks: [0, 0, 1, 1, 1, 2].map(block).into(), head: 3 };
    match fuzzing::parameters(query, &costs, 0.5) {
        Err(error) => {
            check_message(&error.message);
            assert!(error.kind.status().is_client_error(), "{error}");
            Refused
        }
        Ok(asks) => {
            assert_ne!(asks.top_k, Some(0));
            assert!(asks.timeout.is_none_or(|time| !time.is_zero()));
            let path = asks.selection.path();
            assert_eq!(path.to_string().parse().as_ref(), Ok(path), "a path prints as it is read");
            check_given(&asks.selection, &costs);
            Taken
        }
    }
}

/// A path without a policy keeps what it says.
fn check_given(selection: &Selection, costs: &Costs) {
    let Some(mask) = selection.given(costs, 1) else {
        assert!(selection.needs_policy());
        return;
    };
    assert!(!selection.needs_policy());
    assert_eq!(mask.len(), costs.blocks.len());
    match selection.path() {
        Path::Learned => unreachable!("it needs the policy"),
        Path::Full => assert!(mask.is_full()),
        Path::Fixed(fixed) => assert_eq!(&mask, fixed),
        Path::FirstK(keep) | Path::RandomK { keep, .. } | Path::DistributeK(keep) => assert_eq!(mask.kept(), *keep),
    }
}

/// A net by what it costs, what the policy says of an image, and a choice.
#[derive(Debug, Arbitrary)]
struct Drawn {
    fixed: [u64; 3],
    /// Segment, kept, dropped; and the policy's logit.
    blocks: Vec<(u8, u64, u64, f32)>,
    threshold: f64,
    path: AnyPath,
    choice: (Option<f64>, Option<usize>, Option<u64>),
}

#[derive(Debug, Arbitrary)]
enum AnyPath {
    Learned,
    Full,
    Fixed(Vec<bool>),
    FirstK(usize),
    RandomK(usize, Option<u64>),
    DistributeK(usize),
}

/// `input` is a choice for a made-up net.
pub(crate) fn selection(input: &[u8]) -> Outcome {
    let Ok(drawn) = Drawn::arbitrary_take_rest(Unstructured::new(input)) else { return Refused };
    let blocks = drawn.blocks.iter().take(64);
    let (blocks, logits): (Vec<BlockCost>, Vec<f32>) = blocks
        .map(|&(segment, kept, dropped, logit)| (BlockCost { segment: segment.into(), kept, dropped }, logit))
        .unzip();
    let [policy, stem, head] = drawn.fixed;
    let costs = Costs { policy, stem, blocks, head };
    // A bundle of more is refused, and so is a threshold that is no probability.
    let mut all = costs.blocks.iter().flat_map(|block| [block.kept, block.dropped]).chain(drawn.fixed);
    if all.try_fold(0u64, u64::checked_add).is_none() || !(0.0..=1.0).contains(&drawn.threshold) {
        return Refused;
    }
    let path = match drawn.path {
        AnyPath::Learned => Path::Learned,
        AnyPath::Full => Path::Full,
        AnyPath::Fixed(bits) => Path::Fixed(bits.into_iter().collect()),
        AnyPath::FirstK(keep) => Path::FirstK(keep),
        AnyPath::RandomK(keep, seed) => Path::RandomK { keep, seed },
        AnyPath::DistributeK(keep) => Path::DistributeK(keep),
    };
    let (threshold, max_blocks, max_flops) = drawn.choice;
    let choice = Choice { path, threshold, max_blocks, max_flops };
    let selection = match choice.clone().check(&costs, drawn.threshold) {
        Ok(selection) => selection,
        Err(error) => {
            check_message(&error.to_string());
            return Refused;
        }
    };
    check_given(&selection, &costs);
    if selection.needs_policy() {
        let mask = selection.learned(&costs, &logits);
        let free = Choice { max_blocks: None, max_flops: None, ..choice };
        let free = free.check(&costs, drawn.threshold).expect("less than before").learned(&costs, &logits);
        assert!(mask.kept() <= max_blocks.unwrap_or(usize::MAX));
        check_budget(&costs, &mask, &free, max_flops);
    }
    Taken
}

/// A budget holds, unless every block is dropped already, and adds no block.
fn check_budget(costs: &Costs, mask: &Mask, free: &Mask, max_flops: Option<u64>) {
    let spent = costs.spent(mask, true);
    assert!(spent <= max_flops.unwrap_or(u64::MAX), "{spent} FLOPs of {max_flops:?}");
    assert!(mask.iter().zip(free.iter()).all(|(keep, before)| before || !keep), "{mask} of {free}");
}
