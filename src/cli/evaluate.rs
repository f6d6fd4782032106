//! `blockdrop evaluate BUNDLE --data PATH`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context;
use blockdrop::bundle::Bundle;
use blockdrop::dataset::Dataset;
use blockdrop::engine::{Answer, Engine, Image, PathMetrics, best_class};
use blockdrop::image::preprocess;
use blockdrop::policy::{Choice, Mask, Path, Selection};
use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;

use super::Failure;
use super::checked::{Checked, Problems};
use super::options::{Masks, RunOn, title};
use super::progress;
use super::table::{flops, print, table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory of the bundle, such as models/cifar10-resnet32/1.
    bundle: PathBuf,

    /// Labelled images: a CIFAR binary file, a directory with test*.bin in it, or a folder for each class.
    #[arg(long, env = "BLOCKDROP_DATA")]
    data: PathBuf,

    /// Use only the first so many images.
    #[arg(long, env = "BLOCKDROP_LIMIT")]
    limit: Option<Checked<usize>>,

    #[command(flatten)]
    masks: Masks,

    #[command(flatten)]
    run_on: RunOn,

    /// Print JSON instead of a table.
    #[arg(long, env = "BLOCKDROP_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

pub(crate) fn run(options: Options, mut problems: Problems) -> Result<(), Failure> {
    let running = options.run_on.check(&mut problems);
    let choice = options.masks.check(&mut problems);
    let limit = match options.limit {
        None => Some(usize::MAX),
        Some(limit) => problems.take("--limit", "a number of images from 1", limit, |limit| *limit > 0),
    };
    let (running, choice, limit) = problems.or((|| Some((running?, choice?, limit?)))())?;

    let bundle = Bundle::load(&options.bundle)?;
    let name = title(&bundle.dir);
    let data = Dataset::open(&options.data, &bundle.labels)?;
    let threshold = bundle.manifest.policy.threshold;
    let engine = running.engine(bundle, PathMetrics::default())?;
    let chosen_path = choice.path.to_string();
    let chosen = choice.check(engine.costs(), threshold).map_err(|error| Failure::misfit(&error))?;
    let images = data.len().min(limit);
    let (chosen, full) = measure(&engine, &data, images, &chosen, running.workers)?;

    let report = Report { bundle: name, images, path: chosen_path, chosen: chosen.summary(), full: full.summary() };
    if options.json {
        print(serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    let mut rows = table(&["path", "accuracy>", "blocks kept>", "FLOPs per image>", "of full>", "distinct masks>"]);
    for (path, summary) in [(report.path.as_str(), &report.chosen), ("full", &report.full)] {
        rows.add_row([
            path.to_owned(),
            format!("{:.2} %", 100.0 * summary.accuracy),
            format!("{:.2} ± {:.2}", summary.blocks_mean, summary.blocks_std),
            format!("{} ± {}", flops(summary.flops_mean), flops(summary.flops_std)),
            format!("{:.1} %", 100.0 * summary.flops_ratio),
            summary.distinct_masks.to_string(),
        ]);
    }
    print(format!("{}, {images} images of {}\n{rows}", report.bundle, options.data.display()))?;
    Ok(())
}

#[derive(Serialize)]
struct Report {
    bundle: String,
    images: usize,
    path: String,
    chosen: Summary,
    full: Summary,
}

/// What a way to choose masks gave on all images. Deviations are over images.
#[derive(Debug, Serialize, PartialEq)]
struct Summary {
    accuracy: f64,
    blocks_mean: f64,
    blocks_std: f64,
    /// FLOPs of an image, the policy included.
    flops_mean: f64,
    flops_std: f64,
    /// `flops_mean` over those of the full net.
    flops_ratio: f64,
    distinct_masks: usize,
}

#[derive(Debug, Default)]
struct Tally {
    right: usize,
    blocks: Vec<f64>,
    flops: Vec<f64>,
    full: f64,
    masks: BTreeSet<Mask>,
}

impl Tally {
    fn add(&mut self, engine: &Engine, answer: Answer, class: usize) {
        let costs = engine.costs();
        self.right += usize::from(best_class(&answer.logits) == Some(class));
        self.blocks.push(answer.mask.kept() as f64);
        self.flops.push(costs.spent(&answer.mask, answer.policy_ran) as f64);
        self.full = costs.full() as f64;
        self.masks.insert(answer.mask);
    }

    fn merge(&mut self, other: Self) {
        self.right += other.right;
        self.blocks.extend(other.blocks);
        self.flops.extend(other.flops);
        self.full = self.full.max(other.full);
        self.masks.extend(other.masks);
    }

    fn summary(&self) -> Summary {
        let ((blocks_mean, blocks_std), (flops_mean, flops_std)) = (moments(&self.blocks), moments(&self.flops));
        Summary {
            accuracy: self.right as f64 / self.blocks.len().max(1) as f64,
            blocks_mean,
            blocks_std,
            flops_mean,
            flops_std,
            flops_ratio: flops_mean / self.full,
            distinct_masks: self.masks.len(),
        }
    }
}

/// Mean and standard deviation; the same in whatever order the threads brought the values.
fn moments(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

/// Images that a thread runs at a time.
const CHUNK: usize = 32;

/// Runs the first `images` of `data` by `chosen` and through the full net, on `threads` threads.
fn measure(
    engine: &Engine,
    data: &Dataset,
    images: usize,
    chosen: &Selection,
    threads: usize,
) -> anyhow::Result<(Tally, Tally)> {
    let bar = progress::bar(images as u64, "evaluating {wide_bar} {pos}/{len} images, {per_sec}, {eta} left");

    let full = Choice { path: Path::Full, ..Choice::default() }.check(engine.costs(), 0.5)?;
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let tallies = Mutex::new((Tally::default(), Tally::default()));
    let work = || -> anyhow::Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let from = next.fetch_add(CHUNK, Ordering::Relaxed);
            if from >= images {
                break;
            }
            let chunk = from..(from + CHUNK).min(images);
            let count = chunk.len();
            let (by_chosen, by_full) = measure_chunk(engine, data, chunk, chosen, &full)?;
            let mut tallies = tallies.lock().map_err(|_| anyhow::anyhow!("another thread failed"))?;
            tallies.0.merge(by_chosen);
            tallies.1.merge(by_full);
            bar.inc(count as u64);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work().inspect_err(|_| failed.store(true, Ordering::Relaxed))))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))?)
    })?;
    bar.finish_and_clear();
    tallies.into_inner().map_err(|_| anyhow::anyhow!("a thread failed"))
}

fn measure_chunk(
    engine: &Engine,
    data: &Dataset,
    chunk: std::ops::Range<usize>,
    chosen: &Selection,
    full: &Selection,
) -> anyhow::Result<(Tally, Tally)> {
    let input = &engine.bundle().manifest.input;
    let mut classes = Vec::with_capacity(chunk.len());
    let mut tensors = Vec::with_capacity(chunk.len());
    for index in chunk.clone() {
        let (image, class) = data.get(index)?;
        tensors.push(preprocess(&image, input));
        classes.push(class);
    }
    let run = |selection: &Selection| -> anyhow::Result<Tally> {
        let images: Vec<Image<'_>> = tensors
            .iter()
            .zip(chunk.clone())
            .map(|(pixels, index)| Image { pixels, selection, index: index as u64 })
            .collect();
        let mut tally = Tally::default();
        for (answer, &class) in engine.classify(&images).into_iter().zip(&classes) {
            let answer = answer.with_context(|| format!("images {} to {}", chunk.start, chunk.end - 1))?;
            tally.add(engine, answer, class);
        }
        Ok(tally)
    };
    Ok((run(chosen)?, run(full)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_population() {
        assert_eq!(moments(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]), (5.0, 2.0));
        assert_eq!(moments(&[0.1, 0.2, 0.3]), moments(&[0.3, 0.1, 0.2]));
        assert_eq!(moments(&[]), (0.0, 0.0));
    }
}
