//! `blockdrop-loadtest html REPORT.json`

use std::path::PathBuf;

use anyhow::Context;
use blockdrop_loadtest::report::html;
use clap::Args;

use super::{Failure, read};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// JSON report of a run.
    report: PathBuf,

    /// Where to write the page.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let page = html::page(&read(&options.report)?);
    std::fs::write(&options.out, page).with_context(|| format!("{} cannot be written", options.out.display()))?;
    Ok(())
}
