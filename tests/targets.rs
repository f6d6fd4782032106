//! The engine on every target that there is: the CPU, the CPU run as a GPU is, without and with the turns that CUDA graphs
//! take, and CUDA devices where this machine has one.
//! With `BLOCKDROP_REQUIRE_CUDA=1` it has to have one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use blockdrop::bundle::{Bundle, Frequent};
use blockdrop::engine::{Backend, Engine, EngineError, Image, PathMetrics, Paths, Provider, Tactics, Target};
use blockdrop::image::{MAX_PIXELS, decode, preprocess};
use blockdrop::policy::{Choice, Mask};
use blockdrop_testkit::{Net, noise, runtime};
use ort::session::Session;
use ort::value::TensorRef;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How far values may lie apart on the CPU, of their size: convolutions sum in another order.
const CPU: f32 = 1e-4;
/// On CUDA, where TF32 is off: cuDNN has algorithms that sum in yet other orders, or by transforms.
const CUDA: f32 = 1e-3;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    target: Target,
    tolerance: f32,
}

fn cases() -> Vec<Case> {
    let cpu = Target::from(Provider::Cpu);
    let as_gpu = Tactics { fixed_sizes: true, block_by_block: false, ..cpu.tactics };
    let as_graphs = Tactics { cuda_graphs: true, ..as_gpu };
    let mut cases = vec![
        Case { name: "cpu", target: cpu, tolerance: CPU },
        Case { name: "cpu, run as a GPU is", target: Target { tactics: as_gpu, ..cpu }, tolerance: CPU },
        Case {
            name: "cpu, taking turns as for CUDA graphs",
            target: Target { tactics: as_graphs, ..cpu },
            tolerance: CPU,
        },
    ];
    if let Some(cuda) = cuda() {
        let graphs = Tactics { cuda_graphs: true, ..cuda.tactics };
        cases.push(Case { name: "cuda", target: cuda, tolerance: CUDA });
        cases.push(Case { name: "cuda graphs", target: Target { tactics: graphs, ..cuda }, tolerance: CUDA });
    }
    cases
}

/// The first CUDA device, if there is one.
fn cuda() -> Option<Target> {
    static FOUND: OnceLock<Option<Target>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let target = Target::from(Provider::Cuda(0));
        let dir = tempfile::tempdir().unwrap();
        match engine(Net::tiny(1).bundle(dir.path()), target) {
            Ok(_) => Some(target),
            // There is a device, or it would have been this error: whatever else fails is a failure of the engine.
            Err(error) => {
                assert!(matches!(error, EngineError::Provider { .. }), "{error}");
                let required = std::env::var("BLOCKDROP_REQUIRE_CUDA").is_ok_and(|value| value == "1");
                assert!(!required, "BLOCKDROP_REQUIRE_CUDA=1, but: {error}");
                #[expect(clippy::explicit_write, reason = "eprintln! is shown for tests that fail alone")]
                writeln!(std::io::stderr(), "skipped on CUDA: {error}").unwrap();
                None
            }
        }
    })
}

fn engine(bundle: Bundle, target: Target) -> Result<Engine, EngineError> {
    let paths = Arc::new(Paths::start(1 << 30).expect("a thread"));
    Engine::new(Arc::new(bundle), runtime(), target, 2, paths, PathMetrics::default())
}

/// Runs an ONNX graph of one input and one output on the CPU in a plain session.
fn reference(onnx: &[u8], side: usize, image: &[f32]) -> Vec<f32> {
    let mut session = Session::builder(runtime().environment()).unwrap().commit_from_memory(onnx).unwrap();
    let tensor = TensorRef::from_array_view(([1, 3, side, side], image)).unwrap();
    let outputs = session.run(ort::inputs![tensor]).unwrap();
    outputs["logits"].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found_value, expected_value) in found.iter().zip(expected) {
        let apart = (found_value - expected_value).abs();
        assert!(apart <= tolerance * expected_value.abs().max(1.0), "{what}: {found:?} is not {expected:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever runs it, an image gets what the net without its dropped blocks gives: in mixtures of any masks, in groups
    /// of one, by its path as one graph and without it, in batches of any size one after another.
    #[test]
    fn every_way_gives_the_logits_of_the_net_without_the_dropped_blocks(seed: u64, most in 1usize..10) {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let net = Net::random(&mut generator);
        let side = net.side as usize;
        let images = noise(seed, most, 3 * side * side);
        // From nearly none to nearly all of the blocks, and both ends.
        let keep: f64 = *[0.0, 0.1, 0.5, 0.9, 1.0].get(generator.random_range(0..5)).unwrap();
        let masks: Vec<Mask> = images.iter().map(|_| Mask::from_fn(net.blocks(), |_| generator.random_bool(keep))).collect();
        let expected: Vec<Vec<f32>> =
            images.iter().zip(&masks).map(|(image, mask)| reference(&net.reference(mask), side, image)).collect();
        for Case { name, target, tolerance } in cases() {
            let dir = tempfile::tempdir().unwrap();
            let engine = engine(net.bundle(dir.path()), target).unwrap();
            // Large and small batches in turns, as shapes that were run before stay around.
            for count in [most, 1, most.div_ceil(2), most] {
                let mixture: Vec<(&Mask, &[f32])> =
                    masks.iter().zip(&images).map(|(mask, image)| (mask, &**image)).take(count).collect();
                for (at, logits) in engine.run_mixed(&mixture).into_iter().enumerate() {
                    assert_close(&logits.unwrap(), &expected[at], tolerance, &format!("{name}: {at} of {count}, mixed"));
                }
                let group: Vec<&[f32]> = images.iter().map(|image| &**image).take(count).collect();
                let of_first = |at: usize| reference(&net.reference(&masks[0]), side, &images[at]);
                let alone = engine.run_blocks(&masks[0], &group).unwrap();
                prop_assert!(engine.compile(&masks[0], count).unwrap(), "room for every path");
                let ran = engine.run(&masks[0], &group);
                prop_assert!(ran.compiled);
                for (at, (blocks, fused)) in alone.iter().zip(ran.logits).enumerate() {
                    let expected = of_first(at);
                    assert_close(blocks, &expected, tolerance, &format!("{name}: {at} of {count}, not compiled"));
                    assert_close(&fused.unwrap(), &expected, tolerance, &format!("{name}: {at} of {count}, compiled"));
                }
            }
        }
    }
}

/// Masks on real images are those that the CPU's logits decide, except where a logit lies at the threshold.
#[test]
fn the_policy_decides_as_on_the_cpu() {
    let bundle = || Bundle::load(Path::new("models/cifar10-resnet32/1")).unwrap();
    let input = bundle().manifest.input;
    let mut files: Vec<_> = std::fs::read_dir("samples").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension != "md"));
    files.sort();
    let images: Vec<Vec<f32>> = files
        .iter()
        .map(|file| preprocess(&decode(&std::fs::read(file).unwrap(), MAX_PIXELS).unwrap(), &input))
        .collect();
    assert!(images.len() >= 5, "{files:?}");
    let [first, others @ ..] = &*cases() else { unreachable!("there is a CPU") };
    let cpu = engine(bundle(), first.target).unwrap();
    let logits: Vec<Vec<f32>> = images.iter().map(|image| cpu.policy_logits(&[image]).unwrap().remove(0)).collect();
    for &Case { name, target, tolerance } in others {
        let engine = engine(bundle(), target).unwrap();
        let selection = Choice::default().check(engine.costs(), 0.5).unwrap();
        let requests: Vec<Image<'_>> =
            images.iter().map(|pixels| Image { pixels, selection: &selection, index: 0 }).collect();
        for ((answer, logits), file) in engine.classify(&requests).into_iter().zip(&logits).zip(&files) {
            for (block, (keep, &logit)) in answer.unwrap().mask.iter().zip(logits).enumerate() {
                let sure = logit.abs() > tolerance * logit.abs().max(1.0);
                assert!(!sure || keep == (logit >= 0.0), "{name}: block {block} of {}, {logit}", file.display());
            }
        }
    }
}

/// Before the first image comes, the full net is compiled for every size of batches that has a session of its own.
#[test]
fn the_full_net_is_there_for_every_size() {
    let net = Net::tiny(3);
    let (images, full) = (noise(5, 8, 3 * 16 * 16), Mask::full(net.blocks()));
    let images: Vec<&[f32]> = images.iter().map(|image| &**image).collect();
    for Case { name, target, tolerance } in cases() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(net.bundle(dir.path()), target).unwrap();
        engine.prepare(5).unwrap();
        engine.warm(&Frequent::default(), 5);
        engine.settle(Duration::from_secs(60));
        for count in [1, 3, 5, 8] {
            let ran = engine.run(&full, &images[..count]);
            assert!(ran.compiled, "{name}: {count}");
            let expected = reference(&net.reference(&full), 16, images[count - 1]);
            assert_close(ran.logits[count - 1].as_ref().unwrap(), &expected, tolerance, name);
        }
    }
}

/// Several threads at once, of which some come upon paths that are being compiled or that go, each get their own images'
/// results, and none waits for ever.
#[test]
fn threads_get_their_own_results_while_paths_come_and_go() {
    const THREADS: usize = 4;
    let net = Net::tiny(3);
    let images = noise(7, 8, 3 * 16 * 16);
    let masks: Vec<Mask> = (0..8).map(|at| Mask::from_fn(net.blocks(), |block| at >> (block % 3) & 1 == 1)).collect();
    let expected: Vec<Vec<Vec<f32>>> = masks
        .iter()
        .map(|mask| images.iter().map(|image| reference(&net.reference(mask), 16, image)).collect())
        .collect();
    for Case { name, target, tolerance } in cases() {
        let dir = tempfile::tempdir().unwrap();
        // Room for a few of them.
        let paths = Arc::new(Paths::start(if target.provider == Provider::Cpu { 2 << 20 } else { 1 << 30 }).unwrap());
        let (bundle, metrics) = (Arc::new(net.bundle(dir.path())), PathMetrics::default());
        let engine = Engine::new(bundle, runtime(), target, THREADS, paths, metrics.clone()).unwrap();
        engine.prepare(8).unwrap();
        engine.measure(8).unwrap();
        // How soon the compiler gets to it is the machine's.
        let until = Instant::now() + Duration::from_secs(60);
        let seen = || metrics.hits.get() > 0 && (metrics.evictions.get() > 0 || target.provider != Provider::Cpu);
        std::thread::scope(|scope| {
            for thread in 0..THREADS as u64 {
                let (engine, masks, images, expected, seen) = (&engine, &masks, &images, &expected, &seen);
                scope.spawn(move || {
                    let mut generator = ChaCha8Rng::seed_from_u64(thread);
                    let mut rounds = 0;
                    while rounds < 60 || !seen() && Instant::now() < until {
                        rounds += 1;
                        let chosen: Vec<(usize, usize)> = (0..generator.random_range(1..=8))
                            .map(|_| (generator.random_range(0..masks.len()), generator.random_range(0..images.len())))
                            .collect();
                        let (mask, _) = chosen[0];
                        let alike: Vec<&[f32]> = chosen.iter().map(|&(_, image)| &*images[image]).collect();
                        for (logits, &(_, image)) in engine.run(&masks[mask], &alike).logits.into_iter().zip(&chosen) {
                            assert_close(&logits.unwrap(), &expected[mask][image], tolerance, name);
                        }
                        let mixture: Vec<(&Mask, &[f32])> =
                            chosen.iter().map(|&(mask, image)| (&masks[mask], &*images[image])).collect();
                        for (logits, &(mask, image)) in engine.run_mixed(&mixture).into_iter().zip(&chosen) {
                            assert_close(&logits.unwrap(), &expected[mask][image], tolerance, name);
                        }
                    }
                });
            }
        });
        assert!(metrics.hits.get() > 0, "{name}: some paths were there");
        assert!(metrics.evictions.get() > 0 || target.provider != Provider::Cpu, "{name}: some had to go");
    }
}

/// After measuring, images get what each gets alone, whether masks run together or not and batches are taken apart or not.
#[test]
fn what_was_measured_changes_no_answer() {
    let net = Net { segments: vec![4, 4, 4], ..Net::tiny(3) };
    let images = noise(9, 12, 3 * 16 * 16);
    let masks: Vec<Mask> = (0..12).map(|at| Mask::from_fn(12, |block| (block + at) % 3 != 0)).collect();
    for Case { name, target, tolerance } in cases() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(net.bundle(dir.path()), target).unwrap();
        engine.prepare(16).unwrap();
        engine.measure(16).unwrap();
        let groups: Vec<(&Mask, usize)> = masks.iter().map(|mask| (mask, 1)).collect();
        let together = engine.together(&groups);
        assert_eq!(together[0], 0, "{name}");
        assert!(together.is_sorted_by(|left, right| left < right) && together.len() <= 12, "{name}: {together:?}");
        assert!(engine.mixes() || together.len() == 1, "{name}");
        let mixture: Vec<(&Mask, &[f32])> = masks.iter().zip(&images).map(|(mask, image)| (mask, &**image)).collect();
        for (at, logits) in engine.run_mixed(&mixture).into_iter().enumerate() {
            let expected = reference(&net.reference(&masks[at]), 16, &images[at]);
            assert_close(&logits.unwrap(), &expected, tolerance, name);
        }
        let alike: Vec<&[f32]> = images.iter().map(|image| &**image).collect();
        let onnx = net.reference(&masks[1]);
        for count in [12, 11, 7, 3] {
            let looked = engine.policy_logits(&alike[..count]).unwrap();
            assert!(engine.compile(&masks[1], count).unwrap(), "{name}: room for every path");
            let ran = engine.run(&masks[1], &alike[..count]);
            assert!(ran.compiled, "{name}: {count}");
            assert_eq!((looked.len(), ran.logits.len()), (count, count), "{name}");
            for (at, logits) in ran.logits.into_iter().enumerate() {
                assert_close(&logits.unwrap(), &reference(&onnx, 16, alike[at]), tolerance, name);
                let alone = engine.policy_logits(&alike[at..=at]).unwrap();
                assert_close(&looked[at], &alone[0], tolerance, name);
            }
        }
        // What came in mixtures is compiled as it will be looked for.
        let five: Vec<(&Mask, &[f32])> = alike[..5].iter().map(|image| (&masks[2], *image)).collect();
        for _ in 0..2 {
            engine.run_mixed(&five);
        }
        engine.settle(Duration::from_secs(60));
        assert!(engine.run(&masks[2], &alike[..5]).compiled, "{name}");
    }
}
