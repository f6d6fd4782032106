//! The engine against references that do without it: each mask's net built as one graph of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use blockdrop::bundle::onnx::ModelProto;
use blockdrop::bundle::{Bundle, Frequent, sha256_hex};
use blockdrop::engine::{Answer, Backend, Engine, EngineError, Image, PathMetrics, Paths, Provider};
use blockdrop::policy::{Choice, Mask, Path, Selection};
use blockdrop_testkit::{Net, noise, runtime};
use ort::session::Session;
use ort::value::TensorRef;
use proptest::prelude::*;
use prost::Message;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How far logits may lie apart on the CPU.
const TOLERANCE: f32 = 1e-4;

fn try_engine(bundle: Bundle, provider: Provider, path_bytes: u64) -> Result<(Engine, PathMetrics), EngineError> {
    let metrics = PathMetrics::default();
    let paths = Arc::new(Paths::start(path_bytes).expect("a thread"));
    Ok((Engine::new(Arc::new(bundle), runtime(), provider, 2, paths, metrics.clone())?, metrics))
}

/// An engine with room for every path.
fn engine(bundle: Bundle) -> Engine {
    try_engine(bundle, Provider::Cpu, 1 << 30).expect("the engine takes a made-up bundle").0
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
    engine.classify(&requests).into_iter().map(|answer| answer.expect("an answer")).collect()
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
            let alone = engine.run_blocks(mask, &[image]).unwrap();
            assert_close(&alone[0], &expected, &format!("{net:?} with {mask} block by block"));
            assert!(engine.compile(mask, 1).unwrap(), "room for every path");
            let fused = engine.run(mask, &[image]).logits.swap_remove(0).unwrap();
            assert_close(&fused, &expected, &format!("{net:?} with {mask} as one graph"));
            prop_assert_eq!(&answer.mask, *mask);
            prop_assert!(!answer.policy_ran);
        }
        // Once more, now that the paths are compiled.
        for ((image, mask), answer) in images.iter().zip(&masks).zip(answers(&engine, &images, &selections)) {
            assert_close(&answer.logits, &reference(&net.reference(mask), side, image), &format!("{net:?} with {mask}"));
        }
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
        let found: Vec<bool> = engine.classify(&requests).iter().map(Result::is_ok).collect();
        assert_eq!(found, [true, false, true], "{selection:?}");
    }
}

#[test]
fn a_net_that_gives_no_numbers_is_refused() {
    for (file, told) in [
        ("policy.onnx", "policy.onnx gives values that are not finite numbers for an image of zeros"),
        ("head.onnx", "the path 000000 of stem, blocks, shortcuts and head gives values"),
        ("blocks/003.onnx", "the path 111111 of stem, blocks, shortcuts and head gives values"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        Net::tiny(1).write(dir.path()).unwrap();
        let before = std::fs::read(dir.path().join(file)).unwrap();
        let mut model = ModelProto::decode(&*before).unwrap();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            let values = tensor.raw_data.as_mut().unwrap();
            *values = vec![f32::NAN.to_le_bytes(); values.len() / 4].concat();
        }
        let after = model.encode_to_vec();
        std::fs::write(dir.path().join(file), &after).unwrap();
        let manifest = std::fs::read_to_string(dir.path().join("bundle.json")).unwrap();
        let manifest = manifest.replace(&sha256_hex(&before), &sha256_hex(&after));
        std::fs::write(dir.path().join("bundle.json"), manifest).unwrap();
        let made = try_engine(Bundle::load(dir.path()).unwrap(), Provider::Cpu, 0);
        let error = made.err().expect("no numbers").to_string();
        assert!(error.contains(told), "{file}: {error}");
    }
}

#[test]
fn a_provider_that_cannot_run_is_an_error_and_not_a_run_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    // Device 65535 exists nowhere; on a machine without CUDA the provider itself is missing.
    let made = try_engine(Net::tiny(1).bundle(dir.path()), Provider::Cuda(u16::MAX), 0);
    let error = made.err().expect("no such provider");
    assert!(error.to_string().contains("cuda:65535"), "{error}");
}

/// The mask of `net` that keeps the first `keep` blocks.
fn first(net: &Net, keep: usize) -> Mask {
    Mask::from_fn(net.blocks(), |block| block < keep)
}

#[test]
fn a_mask_that_comes_again_is_compiled_aside() {
    let net = Net::tiny(3);
    let dir = tempfile::tempdir().unwrap();
    let (engine, metrics) = try_engine(net.bundle(dir.path()), Provider::Cpu, 1 << 30).unwrap();
    let image = &noise(3, 1, 3 * 16 * 16)[0];
    let expected = reference(&net.reference(&first(&net, 2)), 16, image);
    let run = || {
        let logits = engine.run(&first(&net, 2), &[image]).logits.swap_remove(0).unwrap();
        assert_close(&logits, &expected, "whatever runs it");
    };
    run();
    engine.settle(Duration::from_secs(60));
    assert_eq!((metrics.hits.get(), metrics.misses.get()), (0, 1));
    assert_eq!(metrics.bytes.get(), 0, "a mask that came once is not worth it");
    run();
    engine.settle(Duration::from_secs(60));
    assert!(metrics.bytes.get() > 0);
    run();
    assert_eq!((metrics.hits.get(), metrics.misses.get()), (1, 2));
    assert_eq!((metrics.evictions.get(), metrics.failures.get()), (0, 0));
    drop(engine);
    assert_eq!(metrics.bytes.get(), 0, "a model takes its paths with it");
}

#[test]
fn an_image_that_runs_again_counts_for_nothing() {
    let net = Net::tiny(3);
    let dir = tempfile::tempdir().unwrap();
    let (engine, metrics) = try_engine(net.bundle(dir.path()), Provider::Cpu, 1 << 30).unwrap();
    let image = &noise(3, 1, 3 * 16 * 16)[0];
    let (few, full) = (first(&net, 2), Mask::full(net.blocks()));
    assert!(engine.rerun(&full, image).unwrap().is_none(), "not block by block");
    engine.compile(&full, 1).unwrap();
    let bytes = metrics.bytes.get();
    for mask in [&few, &full, &few] {
        let logits = engine.rerun(mask, image).unwrap().unwrap();
        assert_close(&logits, &reference(&net.reference(mask), 16, image), "whatever runs it");
    }
    engine.settle(Duration::from_secs(60));
    assert_eq!(metrics.bytes.get(), bytes, "nothing is compiled for it");
    engine.compile(&few, 1).unwrap();
    engine.rerun(&few, image).unwrap().unwrap();
    assert_eq!((metrics.hits.get(), metrics.misses.get()), (0, 0));
    assert_eq!(engine.frequent(), Frequent::default(), "no image came");
}

#[test]
fn paths_stay_within_their_bytes_and_the_full_net_stays() {
    let net = Net::tiny(3);
    let dir = tempfile::tempdir().unwrap();
    let image = &noise(3, 1, 3 * 16 * 16)[0];
    let full = Mask::full(net.blocks());
    let (bytes_of_full, one) = {
        let (engine, metrics) = try_engine(net.bundle(dir.path()), Provider::Cpu, 1 << 30).unwrap();
        assert!(engine.compile(&full, 1).unwrap());
        let full = metrics.bytes.get();
        assert!(engine.compile(&first(&net, 1), 1).unwrap());
        (full, metrics.bytes.get() - full)
    };
    let limit = bytes_of_full + 2 * one;
    let (engine, metrics) = try_engine(net.bundle(dir.path()), Provider::Cpu, limit as u64).unwrap();
    engine.warm(&Frequent::default(), 8);
    engine.settle(Duration::from_secs(60));
    assert_eq!(metrics.bytes.get(), bytes_of_full, "the full net is warm from the start");
    for round in 1..=4 {
        // Each comes more often than those before it, so that it is worth their place.
        for keep in 0..net.blocks() {
            for _ in 0..round * (keep + 2) {
                engine.run(&first(&net, keep), &[image]).logits.swap_remove(0).unwrap();
            }
            engine.settle(Duration::from_secs(60));
            assert!(metrics.bytes.get() <= limit, "{} of {limit}", metrics.bytes.get());
        }
    }
    assert!(metrics.evictions.get() > 0);
    let hits = metrics.hits.get();
    engine.run(&full, &[image]).logits.swap_remove(0).unwrap();
    assert_eq!(metrics.hits.get(), hits + 1, "the full net was not evicted");
    for keep in 0..net.blocks() {
        let logits = engine.run(&first(&net, keep), &[image]).logits.swap_remove(0).unwrap();
        assert_close(&logits, &reference(&net.reference(&first(&net, keep)), 16, image), "after evictions");
    }
}

#[test]
fn without_memory_for_paths_everything_runs_block_by_block() {
    let net = Net::tiny(3);
    let dir = tempfile::tempdir().unwrap();
    let (engine, metrics) = try_engine(net.bundle(dir.path()), Provider::Cpu, 0).unwrap();
    let image = &noise(3, 1, 3 * 16 * 16)[0];
    engine.warm(&Frequent::default(), 8);
    for _ in 0..5 {
        let logits = engine.run(&first(&net, 2), &[image]).logits.swap_remove(0).unwrap();
        assert_close(&logits, &reference(&net.reference(&first(&net, 2)), 16, image), "block by block");
        engine.settle(Duration::from_secs(60));
    }
    assert_eq!((metrics.hits.get(), metrics.misses.get(), metrics.bytes.get()), (0, 5, 0));
    assert_eq!(metrics.failures.get(), 0, "no room is no failure");
    assert!(!engine.compile(&first(&net, 2), 1).unwrap());
}

#[test]
fn one_cache_serves_several_models_and_threads() {
    let nets = [Net::tiny(3), Net::tiny(4)];
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let paths = Arc::new(Paths::start(1 << 30).unwrap());
    let metrics = [PathMetrics::default(), PathMetrics::default()];
    let engines: Vec<Engine> = (0..2)
        .map(|at| {
            let bundle = Arc::new(nets[at].bundle(dirs[at].path()));
            Engine::new(bundle, runtime(), Provider::Cpu, 2, Arc::clone(&paths), metrics[at].clone()).unwrap()
        })
        .collect();
    let images = noise(7, 4, 3 * 16 * 16);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (engines, nets, images) = (&engines, &nets, &images);
            scope.spawn(move || {
                for round in 0..40 {
                    let (at, keep) = ((thread + round) % 2, round % 3);
                    let mask = first(&nets[at], keep);
                    let image = &images[(thread + round) % 4];
                    let logits = engines[at].run(&mask, &[image]).logits.swap_remove(0).unwrap();
                    assert_close(&logits, &reference(&nets[at].reference(&mask), 16, image), "among threads");
                }
            });
        }
    });
    engines[0].settle(Duration::from_secs(60));
    assert_eq!(metrics[0].hits.get() + metrics[0].misses.get(), 80);
    assert_eq!(paths.bytes() as i64, metrics[0].bytes.get() + metrics[1].bytes.get());
    assert!(metrics.iter().all(|metrics| metrics.hits.get() > 0 && metrics.bytes.get() > 0));
    drop(engines);
    assert_eq!(paths.bytes(), 0);
}

/// A net of 12 blocks, which has many masks.
fn deep(seed: u64) -> Net {
    Net { segments: vec![4, 4, 4], ..Net::tiny(seed) }
}

#[test]
fn a_model_that_goes_while_its_path_is_compiled_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Arc::new(deep(3).bundle(dir.path()));
    let paths = Arc::new(Paths::start(1 << 30).unwrap());
    for _ in 0..10 {
        let metrics = PathMetrics::default();
        let engine =
            Engine::new(Arc::clone(&bundle), runtime(), Provider::Cpu, 1, Arc::clone(&paths), metrics.clone()).unwrap();
        engine.warm(&Frequent::default(), 8);
        std::thread::sleep(Duration::from_millis(2)); // in the midst of it, mostly
        drop(engine);
        paths.settle(Duration::from_secs(60));
        assert_eq!((paths.bytes(), metrics.bytes.get()), (0, 0));
    }
}

#[test]
fn a_frequent_path_does_not_go_for_rare_ones() {
    let net = deep(3);
    let dir = tempfile::tempdir().unwrap();
    let bundle = Arc::new(net.bundle(dir.path()));
    let image = &noise(3, 1, 3 * 16 * 16)[0];
    let metrics = PathMetrics::default();
    // Room for two paths or so.
    let paths = Arc::new(Paths::start(1_600_000).unwrap());
    let engine = Engine::new(bundle, runtime(), Provider::Cpu, 1, paths, metrics.clone()).unwrap();
    let mask = |number: usize| Mask::from_fn(12, |block| (number + 1) >> block & 1 == 1);
    let hot = mask(0);
    for _ in 0..50 {
        engine.run(&hot, &[image]).logits.swap_remove(0).unwrap();
    }
    for number in 1..30 {
        for _ in 0..2 {
            engine.run(&mask(number), &[image]).logits.swap_remove(0).unwrap();
        }
    }
    engine.settle(Duration::from_secs(60));
    let before = metrics.hits.get();
    engine.run(&hot, &[image]).logits.swap_remove(0).unwrap();
    assert_eq!((metrics.hits.get(), metrics.evictions.get()), (before + 1, 0), "came 50 times, the others twice");
}
