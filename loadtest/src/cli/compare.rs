//! `blockdrop-loadtest compare BEFORE.json AFTER.json`

use std::path::PathBuf;

use clap::Args;

use super::Failure;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// JSON report of the run to compare with.
    before: PathBuf,

    /// JSON report of the run that is compared.
    after: PathBuf,
}

pub(crate) fn run(_: &Options) -> Result<(), Failure> {
    todo!()
}
