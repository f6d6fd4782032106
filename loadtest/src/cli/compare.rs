//! `blockdrop-loadtest compare OLD.json NEW.json`

use std::path::PathBuf;

use anyhow::anyhow;
use blockdrop_loadtest::report::compare::{Condition, compare};
use clap::Args;

use super::run::width;
use super::{Failure, print, read};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// JSON report of the run to compare with.
    old: PathBuf,

    /// JSON report of the run that is compared.
    new: PathBuf,

    /// Condition on which the comparison fails (exit code 3), several times: "policy.throughput_ratio<0.95",
    /// "p99_ratio>1.1".
    #[arg(long)]
    fail_if: Vec<Condition>,

    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut comparison = compare(&read(&options.old)?, &read(&options.new)?);
    if comparison.arms.is_empty() {
        return Err(Failure::Failed(anyhow!(
            "the reports have no arm in common: {}, expected arms of the same names",
            [comparison.only_old.join(", "), comparison.only_new.join(", "),].join(" against ")
        )));
    }
    comparison.judge(&options.fail_if);
    if options.json {
        print(serde_json::to_string_pretty(&comparison)?)?;
    } else {
        print(comparison.text(width()).trim_end())?;
    }
    if comparison.verdicts.iter().any(|verdict| verdict.failed) { Err(Failure::Missed) } else { Ok(()) }
}
