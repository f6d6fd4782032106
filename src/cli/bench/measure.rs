//! The measuring: every way to run the same images, in turn, round after round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use blockdrop::engine::{Backend, Engine, EngineError, PathMetrics};
use blockdrop::policy::Mask;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::super::progress;
use super::images::Work;
use super::statistics::{Estimate, estimate, median};

/// How many threads run how many images at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) workers: usize,
    pub(super) batch: usize,
}

/// What a way to run the images took.
#[derive(Debug, Serialize)]
pub(super) struct Arm {
    pub(super) workers: usize,
    pub(super) batch: usize,
    /// Images that ran together in the mean: fewer than the batch where few have a mask in common.
    pub(super) together: f64,
    pub(super) what: &'static str,
    pub(super) rounds: usize,
    /// Median over the rounds of a worker's time for an image.
    pub(super) ms_per_image: f64,
    /// Of all workers together.
    pub(super) images_per_second: f64,
    /// Time over that of the full net as one graph in the same round.
    pub(super) time_ratio: Estimate,
    /// FLOPs over those of the full net, the mean over the images.
    pub(super) flops_ratio: f64,
    /// Share of the path's runs that found it compiled.
    pub(super) compiled: Option<f64>,
}

/// The ways to run images. The first is what all are compared with.
const WAYS: [Way; 8] =
    [Way::Full, Way::Policy, Way::Blocks, Way::Paths, Way::Learned, Way::Groups, Way::Mixed, Way::Planned];

/// Those that make a difference only where several images run together come last.
fn ways(batch: usize) -> &'static [Way] {
    if batch == 1 { &WAYS[..5] } else { &WAYS }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The full net as one graph.
    Full,
    /// The policy network.
    Policy,
    /// Each image's blocks without its compiled path: one graph after another, or by the graph for mixed masks.
    Blocks,
    /// Each image's blocks as the server runs them: compiled paths.
    Paths,
    /// The policy network and then the paths.
    Learned,
    /// Images as they come, those of a mask in each batch together.
    Groups,
    /// Images as they come, each batch as one of mixed masks.
    Mixed,
    /// Images as they come, those together that are to be by what was measured.
    Planned,
}

impl Way {
    fn name(self, engine: &Engine) -> &'static str {
        match self {
            Self::Full => "full net, one graph",
            Self::Policy => "policy network",
            Self::Blocks if engine.tactics().block_by_block => "kept blocks, one by one",
            Self::Blocks => "kept blocks, not compiled",
            Self::Paths => "kept blocks, one graph",
            Self::Learned => "policy and kept blocks",
            Self::Groups => "as they come, mask by mask",
            Self::Mixed => "as they come, masks mixed",
            Self::Planned => "as they come, as planned",
        }
    }

    fn flops_ratio(self, engine: &Engine, work: &Work) -> f64 {
        let costs = engine.costs();
        let path = |mask: &Mask| costs.executed(mask) as f64;
        let mean = work.masks.iter().map(path).sum::<f64>() / work.masks.len() as f64;
        let flops = match self {
            Self::Full => costs.full() as f64,
            Self::Policy => costs.policy as f64,
            Self::Blocks | Self::Paths | Self::Groups | Self::Mixed | Self::Planned => mean,
            Self::Learned => mean + costs.policy as f64,
        };
        flops / costs.full() as f64
    }
}

/// Images of one mask.
type Group<'w> = (&'w Mask, Vec<&'w [f32]>);

/// The images of a pass in batches: as they come, and gathered by mask as in the server's queue.
struct Batches<'w> {
    in_order: Vec<Vec<&'w [f32]>>,
    by_mask: Vec<Group<'w>>,
    /// As they come, each batch by mask, that of its first image first.
    groups: Vec<Vec<Group<'w>>>,
}

impl<'w> Batches<'w> {
    fn new(work: &'w Work, batch: usize) -> Self {
        let pixels = || work.pixels.iter().map(|image| &**image);
        let in_order = pixels().collect::<Vec<_>>().chunks(batch).map(<[_]>::to_vec).collect();
        let by_mask = if batch == 1 {
            work.masks.iter().zip(pixels()).map(|(mask, image)| (mask, vec![image])).collect()
        } else {
            let mut groups: BTreeMap<&Mask, Vec<&[f32]>> = BTreeMap::new();
            work.masks.iter().zip(pixels()).for_each(|(mask, image)| groups.entry(mask).or_default().push(image));
            let chunks = groups.into_iter().flat_map(|(mask, images)| {
                images.chunks(batch).map(|chunk| (mask, chunk.to_vec())).collect::<Vec<_>>()
            });
            chunks.collect()
        };
        let all: Vec<(&Mask, &[f32])> = work.masks.iter().zip(pixels()).collect();
        let groups = all.chunks(batch).map(|batch| {
            let mut groups: Vec<Group<'_>> = Vec::new();
            for &(mask, image) in batch {
                match groups.iter_mut().find(|(other, _)| *other == mask) {
                    Some((_, images)) => images.push(image),
                    None => groups.push((mask, vec![image])),
                }
            }
            groups
        });
        Self { in_order, by_mask, groups: groups.collect() }
    }

    /// Batches of a pass; of policy and path, those of the path.
    fn count(&self, way: Way) -> usize {
        match way {
            Way::Full | Way::Policy => self.in_order.len(),
            Way::Blocks | Way::Paths | Way::Learned => self.by_mask.len(),
            Way::Groups => self.groups.iter().map(Vec::len).sum(),
            Way::Mixed | Way::Planned => self.groups.len(),
        }
    }

    /// Runs every image once, beginning with the batch `from`.
    fn pass(&self, way: Way, engine: &Engine, from: usize) -> Result<(), EngineError> {
        let full = Mask::full(engine.costs().blocks.len());
        let in_order = || turned(&self.in_order, from);
        let by_mask = || turned(&self.by_mask, from);
        let path = |mask: &Mask, images: &[&[f32]]| {
            engine.run(mask, images).logits.into_iter().try_for_each(|one| one.map(drop))
        };
        let mixed = |groups: &[&Group<'w>]| {
            let images = |(mask, images): &&Group<'w>| images.iter().map(|image| (*mask, *image)).collect::<Vec<_>>();
            let images: Vec<(&Mask, &[f32])> = groups.iter().flat_map(images).collect();
            engine.run_mixed(&images).into_iter().try_for_each(|one| one.map(drop))
        };
        let groups = || turned(&self.groups, from);
        match way {
            Way::Groups => groups().flatten().try_for_each(|(mask, images)| path(mask, images)),
            Way::Mixed => groups().try_for_each(|batch| mixed(&batch.iter().collect::<Vec<_>>())),
            Way::Planned => groups().try_for_each(|batch| {
                let mut left: Vec<&Group<'w>> = batch.iter().collect();
                while let [(mask, images), ..] = *left {
                    let sizes: Vec<(&Mask, usize)> = left.iter().map(|(mask, images)| (*mask, images.len())).collect();
                    let together = engine.together(&sizes);
                    match &*together {
                        [_] => path(mask, images)?,
                        together => mixed(&together.iter().map(|&at| left[at]).collect::<Vec<_>>())?,
                    }
                    for at in together.into_iter().rev() {
                        left.remove(at);
                    }
                }
                Ok(())
            }),
            Way::Full => in_order().try_for_each(|images| path(&full, images)),
            Way::Policy => in_order().try_for_each(|images| engine.policy_logits(images).map(drop)),
            Way::Blocks => by_mask().try_for_each(|(mask, images)| engine.run_blocks(mask, images).map(drop)),
            Way::Paths => by_mask().try_for_each(|(mask, images)| path(mask, images)),
            // Image by image as on an idle server; the policy ahead of the paths as on a busy one.
            Way::Learned if self.in_order.len() == self.by_mask.len() => {
                in_order().zip(by_mask()).try_for_each(|(images, (mask, group))| {
                    engine.policy_logits(images)?;
                    path(mask, group)
                })
            }
            Way::Learned => {
                in_order().try_for_each(|images| engine.policy_logits(images).map(drop))?;
                by_mask().try_for_each(|(mask, images)| path(mask, images))
            }
        }
    }
}

fn turned<T>(all: &[T], from: usize) -> impl Iterator<Item = &T> {
    let (before, after) = all.split_at(from % all.len());
    after.iter().chain(before)
}

/// One pass of every worker at once; the time until the last has ended.
fn pass(way: Way, case: Case, engine: &Engine, batches: &Batches<'_>) -> anyhow::Result<Duration> {
    if case.workers == 1 {
        // A CUDA graph is its thread's.
        let started = Instant::now();
        batches.pass(way, engine, 0)?;
        return Ok(started.elapsed());
    }
    let start = Barrier::new(case.workers + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..case.workers)
            .map(|worker| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    batches.pass(way, engine, worker * batches.in_order.len() / case.workers)
                })
            })
            .collect();
        let started = Instant::now();
        start.wait();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread failed"))??;
        }
        Ok(started.elapsed())
    })
}

/// Rounds at least: fewer say nothing of how sure a ratio is.
const LEAST_ROUNDS: usize = 5;

/// Measures every case for about `time` each.
pub(super) fn all(
    engine: &Engine,
    metrics: &PathMetrics,
    work: &Work,
    cases: &[Case],
    time: Duration,
) -> anyhow::Result<Vec<Arm>> {
    let bar = progress::bar(cases.len() as u64 * time.as_millis() as u64, "{msg} {wide_bar} {percent} %, {eta} left");
    let mut arms = Vec::new();
    for (number, &case) in cases.iter().enumerate() {
        let Case { workers, batch } = case;
        bar.set_message(format!("{workers} workers, batch {batch}"));
        let batches = Batches::new(work, batch);
        warm(engine, metrics, case, &batches)?;
        let started = Instant::now();
        let ways = ways(batch);
        let mut seconds: [Vec<f64>; WAYS.len()] = Default::default();
        let (mut runs, mut compiled) = ([0; WAYS.len()], [0; WAYS.len()]);
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        let mut round = 0;
        while round < LEAST_ROUNDS || started.elapsed() < time {
            // In an order of its own each time, so that none always follows the same other.
            let mut order: Vec<usize> = (0..ways.len()).collect();
            order.shuffle(&mut generator);
            for at in order {
                let (hits, misses) = (metrics.hits.get(), metrics.misses.get());
                seconds[at].push(pass(ways[at], case, engine, &batches)?.as_secs_f64());
                compiled[at] += metrics.hits.get() - hits;
                runs[at] += metrics.hits.get() - hits + metrics.misses.get() - misses;
            }
            round += 1;
            let done = number as u64 * time.as_millis() as u64 + started.elapsed().min(time).as_millis() as u64;
            bar.set_position(done);
        }
        for (at, &way) in ways.iter().enumerate() {
            let images = work.pixels.len() as f64;
            let middle = median(seconds[at].clone());
            let ratios: Vec<f64> = seconds[at].iter().zip(&seconds[0]).map(|(own, full)| own / full).collect();
            arms.push(Arm {
                workers,
                batch,
                together: images / batches.count(way) as f64,
                what: way.name(engine),
                rounds: ratios.len(),
                ms_per_image: 1e3 * middle / images,
                images_per_second: workers as f64 * images / middle,
                time_ratio: estimate(&ratios),
                flops_ratio: way.flops_ratio(engine, work),
                compiled: (runs[at] > 0).then(|| compiled[at] as f64 / runs[at] as f64),
            });
        }
    }
    bar.finish_and_clear();
    Ok(arms)
}

/// Runs passes until every path is compiled for every worker, or it gets no better.
fn warm(engine: &Engine, metrics: &PathMetrics, case: Case, batches: &Batches<'_>) -> anyhow::Result<()> {
    const MOST: usize = 12;
    let full = Mask::full(engine.costs().blocks.len());
    let sizes: BTreeSet<usize> = batches.in_order.iter().map(Vec::len).collect();
    let groups = batches.by_mask.iter().chain(batches.groups.iter().flatten());
    let paths = groups.map(|(mask, images)| (*mask, images.len()));
    for (mask, images) in sizes.into_iter().map(|images| (&full, images)).chain(paths) {
        if !engine.compile(mask, images)? {
            if mask.is_full() {
                bail!(
                    "no room for the full net as one graph, for {images} images, which everything is compared with: expected \
                     more --path-cache-bytes"
                );
            }
            tracing::warn!(%mask, images, "there is no memory for this path as one graph: it runs without");
        }
    }
    let mut without_misses = 0;
    for _ in 0..MOST {
        let misses = metrics.misses.get();
        for &way in ways(case.batch) {
            pass(way, case, engine, batches)?;
        }
        engine.settle(Duration::from_secs(600));
        without_misses = if metrics.misses.get() == misses { without_misses + 1 } else { 0 };
        // Workers may meet at a path for the first time in any pass.
        if without_misses == case.workers.min(3) {
            break;
        }
    }
    Ok(())
}
