//! The engine against references that do without it: each mask's net built as one graph of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use blockdrop::bundle::Bundle;
use blockdrop::engine::{Answer, Backend, Engine, EngineError, Image, Provider};
use blockdrop::policy::{Choice, Mask, Path, Selection};
use blockdrop_testkit::{Net, noise, runtime};
use ort::session::Session;
use ort::value::TensorRef;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How far logits may lie apart on the CPU.
const TOLERANCE: f32 = 1e-4;

fn engine(bundle: Bundle) -> Engine {
    Engine::new(Arc::new(bundle), runtime(), Provider::Cpu, 1).expect("the engine takes a made-up bundle")
}

/// Runs an ONNX graph of one input and one output in a plain session, image by image.
fn reference(onnx: &[u8], side: usize, image: &[f32]) -> Vec<f32> {
    let mut session = Session::builder(runtime().environment()).unwrap().commit_from_memory(onnx).unwrap();
    let tensor = TensorRef::from_array_view(([1, 3, side, side], image)).unwrap();
    let outputs = session.run(ort::inputs![tensor]).unwrap();
    outputs["logits"].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found_value, expected_value) in found.iter().zip(expected) {
        let apart = (found_value - expected_value).abs();
        assert!(apart <= TOLERANCE, "{what}: {found:?} is not {expected:?}");
    }
}

fn answers(engine: &Engine, images: &[Vec<f32>], selections: &[Selection]) -> Vec<Answer> {
    let requests: Vec<Image<'_>> = images
        .iter()
        .zip(selections)
        .enumerate()
        .map(|(index, (pixels, selection))| Image { pixels, selection, index: index as u64 })
        .collect();
    let mut found: Vec<Option<Answer>> = vec![None; images.len()];
    engine.answer(&requests, &mut |at: usize, answer: Result<Answer, EngineError>| {
        let before = found[at].replace(answer.expect("an answer"));
        assert!(before.is_none(), "image {at} was answered twice");
    });
    found.into_iter().map(|answer| answer.expect("every image is answered")).collect()
}

fn select(engine: &Engine, choice: Choice) -> Selection {
    choice.check(engine.costs(), 0.5).expect("a choice that fits")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// The logits of a mask are those of the graph with the dropped blocks taken out, alone and in a batch with other
    /// masks, for basic and bottleneck blocks and both kinds of shortcut.
    #[test]
    fn masks_give_the_logits_of_the_net_without_the_dropped_blocks(seed: u64, batch in 1usize..7) {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let net = Net::random(&mut generator);
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(net.bundle(dir.path()));
        let side = net.side as usize;
        let images = noise(seed, batch, 3 * side * side);
        // Few masks for many images, so that groups of several images occur.
        let masks: Vec<Mask> = (0..3).map(|_| Mask::from_fn(net.blocks(), |_| generator.random())).collect();
        let masks: Vec<&Mask> = (0..batch).map(|_| &masks[generator.random_range(0..3)]).collect();
        let selections: Vec<Selection> = masks
            .iter()
            .map(|&mask| select(&engine, Choice { path: Path::Fixed(mask.clone()), ..Choice::default() }))
            .collect();

        let together = answers(&engine, &images, &selections);
        for ((image, mask), answer) in images.iter().zip(&masks).zip(&together) {
            let expected = reference(&net.reference(mask), side, image);
            assert_close(&answer.logits, &expected, &format!("{net:?} with {mask} in a batch"));
            let alone = engine.lease().run_blocks(mask, &[image]).unwrap();
            assert_close(&alone[0], &expected, &format!("{net:?} with {mask} alone"));
            prop_assert_eq!(&answer.mask, *mask);
            prop_assert!(!answer.policy_ran);
        }
        let full = engine.lease().run_full(&[&images[0]]).unwrap();
        let expected = reference(&net.reference(&Mask::full(net.blocks())), side, &images[0]);
        assert_close(&full[0], &expected, &format!("{net:?}, the full net as one graph"));
    }

    /// What the policy decides for an image does not depend on the images beside it.
    #[test]
    fn learned_masks_do_not_depend_on_the_batch(seed: u64) {
        let net = Net::tiny(seed);
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(net.bundle(dir.path()));
        let images = noise(seed, 8, 3 * 16 * 16);
        let learned = select(&engine, Choice::default());
        let together = answers(&engine, &images, &vec![learned.clone(); 8]);
        for (image, answer) in images.iter().zip(&together) {
            let alone = answers(&engine, std::slice::from_ref(image), std::slice::from_ref(&learned));
            prop_assert_eq!(&alone[0].mask, &answer.mask);
            prop_assert!(answer.policy_ran);
            assert_close(&answer.logits, &alone[0].logits, "in a batch and alone");
            assert_close(&answer.logits, &reference(&net.reference(&answer.mask), 16, image), "the reference");
        }
    }

    /// FLOPs counted from the graphs are those of the paper's formula.
    #[test]
    fn flops_are_counted_from_the_graphs(seed: u64) {
        let net = Net::random(&mut ChaCha8Rng::seed_from_u64(seed));
        let dir = tempfile::tempdir().unwrap();
        let costs = net.bundle(dir.path()).costs();
        prop_assert_eq!(costs.full(), net.full_flops());
        prop_assert_eq!(costs.policy, net.policy_flops());
        prop_assert_eq!(costs.blocks.len(), net.blocks());
    }
}

#[test]
fn made_up_policies_choose_more_than_one_mask() {
    let net = Net::tiny(5);
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(net.bundle(dir.path()));
    let images = noise(5, 64, 3 * 16 * 16);
    let learned = select(&engine, Choice::default());
    let masks: std::collections::HashSet<Mask> =
        answers(&engine, &images, &vec![learned; 64]).into_iter().map(|answer| answer.mask).collect();
    assert!(masks.len() > 1, "tests of mixed batches would test nothing: {masks:?}");
}

#[test]
fn an_image_that_overflows_fails_alone() {
    let net = Net::tiny(1);
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(net.bundle(dir.path()));
    let mut images = noise(1, 3, 3 * 16 * 16);
    images[1].fill(f32::MAX);
    for path in [Path::FirstK(2), Path::Full, Path::Learned] {
        let selection = select(&engine, Choice { path, ..Choice::default() });
        let requests: Vec<Image<'_>> =
            images.iter().map(|pixels| Image { pixels, selection: &selection, index: 0 }).collect();
        let mut found: Vec<Option<bool>> = vec![None; 3];
        engine.answer(&requests, &mut |at: usize, answer: Result<Answer, EngineError>| {
            let before = found[at].replace(answer.is_ok());
            assert!(before.is_none(), "image {at} was answered twice");
        });
        assert_eq!(found, [Some(true), Some(false), Some(true)], "{selection:?}");
    }
}

#[test]
fn a_provider_that_cannot_run_is_an_error_and_not_a_run_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Arc::new(Net::tiny(1).bundle(dir.path()));
    // Device 65535 exists nowhere; on a machine without CUDA the provider itself is missing.
    let error = Engine::new(bundle, runtime(), Provider::Cuda(u16::MAX), 1).err().expect("no such provider");
    assert!(error.to_string().contains("cuda:65535"), "{error}");
}

#[test]
fn leases_are_exclusive_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(Net::tiny(1).bundle(dir.path()));
    let image = &noise(1, 1, 3 * 16 * 16)[0];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    engine.lease().run_full(&[image]).unwrap();
                }
            });
        }
    });
}
