//! The command line.

use std::path::PathBuf;

use anyhow::Context;
use blockdrop_loadtest::report::{Report, html};
use clap::Parser;

#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Draws a report as a page
    Html {
        /// A report that a run wrote
        report: PathBuf,
        /// The page
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let Command::Html { report: path, out } = Command::parse();
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let report = Report::from_json(&text).with_context(|| format!("{} cannot be drawn", path.display()))?;
    std::fs::write(&out, html::page(&report)).with_context(|| format!("writing {}", out.display()))
}
