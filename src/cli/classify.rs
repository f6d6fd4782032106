//! `blockdrop classify IMAGE...`

use std::path::PathBuf;

use blockdrop::engine::{Answer, Image};
use blockdrop::image::{MAX_PIXELS, decode, preprocess};
use blockdrop::server::{Prediction, predictions};
use clap::Args;
use serde_json::json;

use super::Failure;
use super::checked::{Checked, Problems};
use super::options::{Masks, RunOn, Which};
use super::table::{flops, print, table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Image files: JPEG, PNG, WebP, BMP or GIF.
    #[arg(required = true)]
    images: Vec<PathBuf>,

    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    masks: Masks,

    #[command(flatten)]
    run_on: RunOn,

    /// Classes to show for each image.
    #[arg(long, env = "BLOCKDROP_TOP_K", default_value = "1")]
    top_k: Checked<usize>,

    /// Print JSON instead of a table.
    #[arg(long, env = "BLOCKDROP_JSON")]
    json: bool,
}

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let mut problems = Problems::default();
    let running = options.run_on.check(&mut problems);
    let choice = options.masks.check(&mut problems);
    let top_k = problems.take("--top-k", "a number of classes from 1", options.top_k, |top_k| *top_k > 0);
    let (mut running, choice, top_k) = problems.or((|| Some((running?, choice?, top_k?)))())?;
    running.workers = 1;

    let bundle = options.which.load()?;
    let labels = bundle.labels.clone();
    let input = bundle.manifest.input.clone();
    let threshold = bundle.manifest.policy.threshold;
    let engine = running.engine(bundle)?;
    let costs = engine.costs();
    let selection = choice.check(costs, threshold).map_err(|error| anyhow::anyhow!("--{error}"))?;

    let mut rows = table(&["image", "class", "probability>", "blocks kept>", "mask", "FLOPs>", "of full>"]);
    let mut entries = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    for (index, file) in options.images.iter().enumerate() {
        let found = classify_file(file, &input, |pixels| {
            let mut found = None;
            let image = Image { pixels, selection: &selection, index: index as u64 };
            engine.lease().answer(costs, &[image], &mut |_, answer| found = Some(answer));
            Ok(found.expect("every image is answered")?)
        });
        let name = file.display().to_string();
        let (answer, spent) = match found {
            Ok(answer) => {
                let policy = if answer.policy_ran { costs.policy } else { 0 };
                let spent = policy + costs.executed(&answer.mask);
                (answer, spent)
            }
            Err(error) => {
                let error = format!("{error:#}");
                failed.push(format!("{name}: {error}"));
                entries.push(json!({"image": name, "error": error}));
                continue;
            }
        };
        let ratio = spent as f64 / costs.full() as f64;
        let top: Vec<Prediction> = predictions(&answer.logits, &labels, top_k);
        for (place, prediction) in top.iter().enumerate() {
            let mut row = vec![String::new(); 7];
            row[1] = prediction.label.clone();
            row[2] = format!("{:.3}", prediction.probability);
            if place == 0 {
                row[0] = name.clone();
                row[3] = format!("{} of {}", answer.mask.kept(), answer.mask.len());
                row[4] = answer.mask.to_string();
                row[5] = flops(spent as f64);
                row[6] = format!("{:.0} %", 100.0 * ratio);
            }
            rows.add_row(row);
        }
        entries.push(json!({
            "image": name,
            "predictions": top,
            "mask": answer.mask.to_string(),
            "blocks_kept": answer.mask.kept(),
            "flops": {"spent": spent, "full": costs.full(), "ratio": ratio},
        }));
    }
    if options.json {
        print(serde_json::to_string_pretty(&entries)?)?
    } else {
        print(rows)?
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failed.join("\n")).into()) }
}

fn classify_file(
    file: &std::path::Path,
    input: &blockdrop::bundle::InputSpec,
    run: impl FnOnce(&[f32]) -> anyhow::Result<Answer>,
) -> anyhow::Result<Answer> {
    let bytes = std::fs::read(file)?;
    run(&preprocess(&decode(&bytes, MAX_PIXELS)?, input))
}
