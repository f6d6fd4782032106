//! `blockdrop classify IMAGE...`

use std::path::{Path, PathBuf};

use blockdrop::answer::{Described, describe};
use blockdrop::bundle::InputSpec;
use blockdrop::engine::{Answer, Engine, Image, PathMetrics};
use blockdrop::image::{MAX_PIXELS, decode, preprocess};
use blockdrop::policy::Selection;
use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;

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
    #[arg(long, env = "BLOCKDROP_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

pub(crate) fn run(options: Options, mut problems: Problems) -> Result<(), Failure> {
    let running = options.run_on.check(&mut problems);
    let choice = options.masks.check(&mut problems);
    let top_k = problems.take("--top-k", "a number of classes from 1", options.top_k, |top_k| *top_k > 0);
    let (mut running, choice, top_k) = problems.or((|| Some((running?, choice?, top_k?)))())?;
    running.workers = 1;

    let bundle = options.which.load()?;
    let input = bundle.manifest.input.clone();
    let threshold = bundle.manifest.policy.threshold;
    let engine = running.engine(bundle, PathMetrics::default())?;
    let selection = choice.check(engine.costs(), threshold).map_err(|error| Failure::misfit(&error))?;

    let mut rows = table(&["image", "class", "probability>", "blocks kept>", "mask", "FLOPs>", "of full>"]);
    let mut entries = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    for (index, file) in options.images.iter().enumerate() {
        let name = file.display().to_string();
        let found = classify_file(&engine, &input, &selection, file, index as u64);
        let described = match found {
            Ok(answer) => describe(&engine, &selection, &answer, top_k),
            Err(error) => {
                let error = format!("{error:#}");
                failed.push(format!("{name}: {error}"));
                entries.push(Entry { image: name, outcome: Outcome::Error { error } });
                continue;
            }
        };
        for (place, prediction) in described.predictions.iter().enumerate() {
            let mut row = vec![String::new(); 7];
            row[1] = prediction.label.clone();
            row[2] = format!("{:.3}", prediction.probability);
            if place == 0 {
                let (path, spent) = (&described.path, &described.flops);
                row[0] = name.clone();
                row[3] = format!("{} of {}", path.blocks_kept, path.blocks_total);
                row[4] = path.mask.clone();
                row[5] = flops((spent.policy + spent.executed) as f64);
                row[6] = format!("{:.0} %", 100.0 * spent.ratio);
            }
            rows.add_row(row);
        }
        entries.push(Entry { image: name, outcome: Outcome::Described(described) });
    }
    if options.json {
        print(serde_json::to_string_pretty(&entries)?)?
    } else if !rows.is_empty() {
        print(rows)?
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failed.join("\n")).into()) }
}

/// An image in JSON: what a server's answer says of it, or its error.
#[derive(Serialize)]
struct Entry {
    image: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Described(Described),
    Error { error: String },
}

fn classify_file(
    engine: &Engine,
    input: &InputSpec,
    selection: &Selection,
    file: &Path,
    index: u64,
) -> anyhow::Result<Answer> {
    let pixels = preprocess(&decode(&std::fs::read(file)?, MAX_PIXELS)?, input);
    let mut answers = engine.classify(&[Image { pixels: &pixels, selection, index }]);
    Ok(answers.swap_remove(0)?)
}
