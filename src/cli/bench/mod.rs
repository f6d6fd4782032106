//! `blockdrop bench BUNDLE`

mod http;
mod images;
mod measure;
mod statistics;

use std::path::PathBuf;
use std::time::Duration;

use blockdrop::bundle::Bundle;
use blockdrop::engine::{PathMetrics, Runtime};
use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;

use super::Failure;
use super::checked::{Checked, Problems};
use super::options::{RunOn, title};
use super::table::{print, table};
use http::Latency;
use images::{Masks, Work};
use measure::{Arm, Case};
use statistics::Estimate;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory of the bundle, such as models/cifar10-resnet32/1.
    bundle: PathBuf,

    /// Images to run: a folder of image files, a CIFAR binary file, or a directory with test*.bin in it.
    #[arg(long, env = "BLOCKDROP_IMAGES")]
    images: PathBuf,

    /// Images in a pass; fewer files than that are used several times.
    #[arg(long, env = "BLOCKDROP_COUNT", default_value = "128")]
    count: Checked<usize>,

    /// Where masks come from: policy (what the policy network decides for each image) or frequent (drawn from the
    /// bundle's frequent masks by their shares; the policy network runs all the same).
    #[arg(long, env = "BLOCKDROP_MASKS", default_value = "policy")]
    masks: Checked<Masks>,

    /// Images that run together.
    #[arg(long, env = "BLOCKDROP_BATCH", default_value = "1,8", value_delimiter = ',')]
    batch: Vec<Checked<usize>>,

    /// Seconds to measure for each batch size and number of workers; at least five passes are made.
    #[arg(long, env = "BLOCKDROP_SECONDS", default_value = "10")]
    seconds: Checked<f64>,

    /// Also time requests to a server of the bundle's repository, one client over loopback.
    #[arg(long, env = "BLOCKDROP_HTTP", value_parser = BoolishValueParser::new())]
    http: bool,

    #[command(flatten)]
    run_on: RunOn,

    /// Print JSON instead of a table.
    #[arg(long, env = "BLOCKDROP_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

pub(crate) fn run(options: Options, mut problems: Problems) -> Result<(), Failure> {
    let mut running = options.run_on.check(&mut problems);
    if let Some(running) = running.as_mut().filter(|running| running.target.tactics.cuda_graphs) {
        // A graph is its thread's, and each pass of several workers has threads of its own.
        running.workers = 1;
    }
    let count = problems.take("--count", "1 to 100000 images", options.count, |count| (1..=100_000).contains(count));
    let masks = problems.take("--masks", "policy or frequent", options.masks, |_| true);
    // All of them are looked at, so that every wrong one is named.
    let batches: Vec<Option<usize>> = options
        .batch
        .into_iter()
        .map(|batch| problems.take("--batch", "1 to 512 images", batch, |batch| (1..=512).contains(batch)))
        .collect();
    let batches: Option<Vec<usize>> = batches.into_iter().collect();
    let seconds =
        problems.take("--seconds", "0.1 to 3600 seconds", options.seconds, |seconds| (0.1..=3600.0).contains(seconds));
    let (running, count, masks, batches, seconds) =
        problems.or((|| Some((running?, count?, masks?, batches?, seconds?)))())?;

    let bundle = Bundle::load(&options.bundle)?;
    let name = title(&bundle.dir);
    let runtime = Runtime::load(running.onnxruntime.as_deref())?;
    let metrics = PathMetrics::default();
    let engine = running.engine(bundle, metrics.clone())?;
    let work = Work::load(&options.images, &engine, count, masks)?;
    let most = batches.iter().copied().max().unwrap_or(1);
    engine.prepare(most)?;
    engine.measure(most)?;

    let mut workers = vec![1, running.workers];
    workers.dedup();
    let cases: Vec<Case> =
        workers.into_iter().flat_map(|workers| batches.iter().map(move |&batch| Case { workers, batch })).collect();
    let time = Duration::from_secs_f64(seconds);
    let measured = measure::all(&engine, &metrics, &work, &cases, time)?;
    let mut report = Report {
        bundle: name,
        provider: engine.provider().to_string(),
        cuda_graphs: running.target.tactics.cuda_graphs,
        onnxruntime: runtime.version().to_owned(),
        images: work.pixels.len(),
        blocks_mean: work.masks.iter().map(|mask| mask.kept() as f64).sum::<f64>() / work.masks.len() as f64,
        blocks_total: engine.costs().blocks.len(),
        distinct_masks: work.distinct(),
        path_bytes: metrics.bytes.get(),
        measured,
        http: None,
    };
    if options.http {
        drop(engine); // its memory is the server's now
        report.http = Some(http::measure(&options.bundle, &running, &work.files, time)?);
    }
    if options.json {
        print(serde_json::to_string_pretty(&report)?)?;
    } else {
        report.print()?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    bundle: String,
    provider: String,
    /// Whether compiled paths ran as CUDA graphs.
    cuda_graphs: bool,
    onnxruntime: String,
    /// In a pass.
    images: usize,
    blocks_mean: f64,
    blocks_total: usize,
    distinct_masks: usize,
    /// Memory of the compiled paths, about.
    path_bytes: i64,
    measured: Vec<Arm>,
    /// Requests to a server, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<Latency>,
}

impl Report {
    fn print(&self) -> std::io::Result<()> {
        print(format!(
            "{} on {}{}, ONNX Runtime {}: {} images, {:.2} of {} blocks, {} masks, compiled paths {:.1} MB",
            self.bundle,
            self.provider,
            if self.cuda_graphs { ", CUDA graphs" } else { "" },
            self.onnxruntime,
            self.images,
            self.blocks_mean,
            self.blocks_total,
            self.distinct_masks,
            self.path_bytes as f64 / 1e6,
        ))?;
        let mut rows = table(&[
            "workers>",
            "batch (mean)>",
            "what runs",
            "ms per image>",
            "images/s>",
            "time/full>",
            "95 % interval>",
            "FLOPs/full>",
            "time/FLOPs>",
            "compiled>",
        ]);
        for arm in &self.measured {
            rows.add_row([
                arm.workers.to_string(),
                format!("{} ({:.1})", arm.batch, arm.together),
                arm.what.to_owned(),
                format!("{:.3}", arm.ms_per_image),
                format!("{:.0}", arm.images_per_second),
                format!("{:.3}", arm.time_ratio.median),
                format!("{:.3} to {:.3}", arm.time_ratio.low, arm.time_ratio.high),
                format!("{:.3}", arm.flops_ratio),
                format!("{:.3}", arm.time_ratio.median / arm.flops_ratio),
                arm.compiled.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
            ]);
        }
        print(rows)?;
        let Some(http) = &self.http else { return Ok(()) };
        print(format!("\nHTTP, one client, {} requests, ms:", http.requests))?;
        let mut rows = table(&["what", "median>", "95 % interval>"]);
        for (what, estimate) in [
            ("request, as the client sees it", http.request),
            ("  policy and path", http.engine),
            ("  added by the server", http.added),
            ("    decode", http.decode),
            ("    preprocess", http.preprocess),
            ("    thread to thread", http.queue),
        ] {
            let Estimate { median, low, high } = estimate;
            rows.add_row([what.to_owned(), format!("{median:.3}"), format!("{low:.3} to {high:.3}")]);
        }
        print(rows)
    }
}
