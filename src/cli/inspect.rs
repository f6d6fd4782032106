//! `blockdrop inspect BUNDLE`

use std::path::PathBuf;

use blockdrop::bundle::{Bundle, Graph, shape_text};
use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::{Value, json};

use super::Failure;
use super::checked::Problems;
use super::options::title;
use super::table::{flops, print, table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory of the bundle, such as models/cifar10-resnet32/1.
    bundle: PathBuf,

    /// Print JSON instead of a table.
    #[arg(long, env = "BLOCKDROP_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

pub(crate) fn run(options: Options, problems: Problems) -> Result<(), Failure> {
    problems.or(Some(()))?;
    let bundle = Bundle::load(&options.bundle)?;
    if options.json {
        print(serde_json::to_string_pretty(&as_json(&bundle))?)?;
        return Ok(());
    }
    let (manifest, costs) = (&bundle.manifest, bundle.costs());
    let full = costs.full() as f64;
    let mut rows = table(&["part", "segment>", "input", "output", "FLOPs kept>", "dropped>", "of full>"]);
    let mut row = |part: String, segment: String, graph: &Graph, dropped: String| {
        rows.add_row([
            part,
            segment,
            shape_text(&graph.input),
            shape_text(&graph.output),
            flops(graph.flops as f64),
            dropped,
            format!("{:.1} %", 100.0 * graph.flops as f64 / full),
        ]);
    };
    row("policy".into(), String::new(), &bundle.policy, String::new());
    row("stem".into(), String::new(), &bundle.stem, String::new());
    for (index, (block, cost)) in bundle.blocks.iter().zip(&costs.blocks).enumerate() {
        row(format!("block {index}"), block.segment.to_string(), &block.kept, flops(cost.dropped as f64));
    }
    row("head".into(), String::new(), &bundle.head, String::new());

    let architecture = &manifest.architecture;
    let mut lines = vec![format!(
        "{}: {} with a {} policy, {} ({} classes)",
        title(&bundle.dir),
        architecture.backbone,
        architecture.policy,
        architecture.dataset,
        manifest.classes,
    )];
    if !manifest.description.is_empty() {
        lines.push(manifest.description.clone());
    }
    lines.push(rows.to_string());
    lines.push(format!(
        "{} blocks; full net {}; policy {} ({:.1} %), keeps a block from probability {} on",
        costs.blocks.len(),
        flops(full),
        flops(costs.policy as f64),
        100.0 * costs.policy as f64 / full,
        manifest.policy.threshold,
    ));
    lines.extend(manifest.measured.as_object().into_iter().flatten().map(measured));
    print(lines.join("\n"))?;
    Ok(())
}

/// What was measured on one set of images, as far as it is stated in the usual terms; otherwise as it stands.
fn measured((set, found): (&String, &Value)) -> String {
    let number = |pointer: &str| found.pointer(pointer).and_then(Value::as_f64);
    let usual = || {
        Some(format!(
            "{set} ({} images): policy {:.2} % right with {:.2} blocks and {} FLOPs, full net {:.2} %",
            found.get("images")?,
            100.0 * number("/policy/accuracy")?,
            number("/policy/blocks_mean")?,
            flops(number("/policy/flops_mean")?),
            100.0 * number("/full/accuracy")?,
        ))
    };
    usual().unwrap_or_else(|| format!("{set}: {found}"))
}

fn as_json(bundle: &Bundle) -> Value {
    let costs = bundle.costs();
    let blocks = bundle.blocks.iter().zip(&costs.blocks).map(|(block, cost)| {
        json!({
            "segment": block.segment,
            "input": block.kept.input,
            "output": block.kept.output,
            "flops_kept": cost.kept,
            "flops_dropped": cost.dropped,
        })
    });
    json!({
        "architecture": bundle.manifest.architecture,
        "description": bundle.manifest.description,
        "classes": bundle.manifest.classes,
        "labels": bundle.labels,
        "input": bundle.manifest.input,
        "threshold": bundle.manifest.policy.threshold,
        "flops": {"policy": costs.policy, "stem": costs.stem, "head": costs.head, "full": costs.full()},
        "blocks": blocks.collect::<Vec<_>>(),
        "measured": bundle.manifest.measured,
        "provenance": bundle.manifest.provenance,
    })
}
