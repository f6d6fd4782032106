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
    let at =
        |threshold| learned(&costs, Choice { threshold: Some(threshold), ..Choice::default() }, &logits).to_string();
    assert_eq!([at(0.0), at(0.5), at(1.0)], ["111", "011", "000"]);
    // sigmoid(2.0) = 0.8808
    let one = |threshold| learned(&costs, Choice { threshold: Some(threshold), ..Choice::default() }, &[2.0; 3]).kept();
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
    for text in ["", "learned", "mask:", "mask:012", "first_k", "first_k:", "first_k:-1", "random_k:1:x", "full:1"] {
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

#[test]
fn a_threshold_is_raised_only_where_nothing_was_asked_for() {
    let costs = costs(&[2, 2]);
    let select = |choice: Choice| choice.check(&costs, 0.5).expect("a choice that fits");
    let own = select(Choice { path: Path::Learned, ..Choice::default() });
    assert!(own.is_own() && own.threshold() == 0.5);
    assert_eq!((own.raised(0.0, 0.9), own.raised(1.0, 0.5)), (None, None));
    let raised = own.raised(0.5, 0.9).expect("it is raised");
    assert!(!raised.is_own() && (raised.threshold() - 0.7).abs() < 1e-12);
    assert_eq!(raised.raised(1.0, 0.9), None, "by one alone");
    for asked in [
        Choice { threshold: Some(0.5), ..Choice::default() },
        Choice { max_blocks: Some(4), ..Choice::default() },
        Choice { max_flops: Some(u64::MAX), ..Choice::default() },
        Choice { path: Path::Full, ..Choice::default() },
        Choice { path: Path::FirstK(4), ..Choice::default() },
    ] {
        let selection = select(asked);
        assert!(!selection.is_own() && selection.raised(1.0, 0.9).is_none());
    }
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
    fn a_raised_threshold_lies_between_and_keeps_some_of_the_same_blocks(
        logits in prop::collection::vec(-8.0f32..8.0, 6), own in 0.0..=1.0f64, most in 0.0..1.0f64,
        share in 0.0..=1.0f64, less in 0.0..=1.0f64,
    ) {
        let costs = costs(&[2, 3, 1]);
        let selection = Choice::default().check(&costs, own).expect("a choice that fits");
        let raised = |share: f64| selection.raised(share, most).unwrap_or_else(|| selection.clone());
        let (high, low) = (raised(share), raised(share * less));
        prop_assert!(own <= low.threshold() + 1e-12 && low.threshold() <= high.threshold() + 1e-12);
        prop_assert!(high.threshold() <= own.max(most) + 1e-12);
        prop_assert_eq!(raised(1.0).threshold(), own.max(most));
        let of_own = selection.learned(&costs, &logits);
        let of_high = high.learned(&costs, &logits);
        prop_assert!(of_high.iter().zip(of_own.iter()).all(|(raised, own)| own || !raised));
    }

    #[test]
    fn a_mask_prints_as_it_parses(bits in prop::collection::vec(any::<bool>(), 1..120)) {
        let mask: Mask = bits.into_iter().collect();
        prop_assert_eq!(mask.to_string().parse::<Mask>().unwrap(), mask);
    }
}
