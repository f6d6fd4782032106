//! `blockdrop-loadtest run [SCENARIO]`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blockdrop_loadtest::plan::Plan;
use blockdrop_loadtest::report::{Report, html, terminal};
use blockdrop_loadtest::server::{Server, beside};
use blockdrop_loadtest::settings::Settings;
use blockdrop_loadtest::{drive, session};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::progress::Bar;
use super::{Failure, print, runtime};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// File of settings, such as loadtest/scenarios/ab.toml: every flag below Server, Request, Images, Load, Time, Arms,
    /// Faults and Report can be a key in it. Flags go before it.
    scenario: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,

    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    json: Option<PathBuf>,

    /// Where to write the report as a page.
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    html: Option<PathBuf>,

    /// Directory to write both to, named like the scenario.
    #[arg(long, value_name = "DIR", help_heading = "Report")]
    out: Option<PathBuf>,

    /// Threads that drive. One sends some 10,000 requests a second and more (see `ceiling`), and leaves the other cores to
    /// the server.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
}

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let Options { scenario, settings, mut json, mut html, out, threads } = options;
    let settings = match &scenario {
        Some(path) => settings.or(Settings::read(path).map_err(|error| Failure::Usage(vec![error.to_string()]))?),
        None => settings,
    };
    // Before anything is started.
    settings.plan(None).map_err(Failure::Usage)?;
    if let Some(out) = &out {
        std::fs::create_dir_all(out).with_context(|| format!("--out: {} cannot be made", out.display()))?;
        let name = scenario.as_deref().and_then(Path::file_stem).unwrap_or("run".as_ref());
        json.get_or_insert(out.join(name).with_extension("json"));
        html.get_or_insert(out.join(name).with_extension("html"));
    }
    for path in json.iter().chain(&html) {
        // Found out now and not after an hour. What is there stays until there is something to put in its place.
        std::fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| unwritable(path))?;
    }
    more_files();
    let report = runtime(threads.into())?.block_on(measure(&settings))?;

    print(terminal::text(&report, width()))?;
    let written = [
        json.map(|path| write(&path, report.to_json().map_err(anyhow::Error::from))),
        html.map(|path| write(&path, Ok(html::page(&report)))),
    ];
    written.into_iter().flatten().collect::<Result<(), Failure>>()?;
    let whole = report.arms.iter().all(|arm| arm.counts.whole());
    if !whole {
        return Err(Failure::Failed(anyhow::anyhow!(
            "not every request is accounted for: this is a defect of the harness"
        )));
    }
    if !report.interrupted
        && let Some(arm) = report.arms.iter().find(|arm| arm.counts.answered == 0)
    {
        return Err(Failure::Failed(anyhow::anyhow!("arm {}: none of its requests was answered", arm.name)));
    }
    if report.interrupted {
        return Err(Failure::Interrupted);
    }
    if report.verdicts.iter().any(|verdict| verdict.failed) { Err(Failure::Missed) } else { Ok(()) }
}

/// Lets the process have as many connections as it may, where that is more than it has been given.
fn more_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What cannot be had is told by the connection that needs it.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Starts a server where one is asked for, runs, and stops it.
async fn measure(settings: &Settings) -> Result<Report, Failure> {
    let stop = stop_signal()?;
    if !settings.start.unwrap_or(false) {
        return Ok(watched(settings.plan(None).map_err(Failure::Usage)?, stop).await?);
    }
    let binary = match &settings.server_binary {
        Some(binary) => binary.clone(),
        None => beside()?,
    };
    let models = settings.models.clone().unwrap_or_else(|| PathBuf::from("models"));
    let server = Server::start(&binary, &models, settings.server_args.as_deref().unwrap_or_default()).await?;
    let plan = settings.plan(Some(&server.addresses)).map_err(Failure::Usage)?;
    let report = watched(plan, stop).await;
    // A server that died says more than the connections that it broke.
    server.stop().await?;
    Ok(report?)
}

/// Runs `plan` with a bar.
pub(super) async fn watched(plan: Plan, stop: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let bar = Bar::new(drive::expected(&plan));
    let report = session::run(plan, &bar, stop).await;
    bar.clear();
    report
}

/// Turns true at the first SIGINT or SIGTERM; a second one ends the process.
pub(super) fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        sender.send_replace(true);
        // Whoever pressed the key is told why nothing happens at once, if there is still somebody.
        let said = "stopping: waiting for what is under way, then the report; once more ends it without a report";
        let _ = writeln!(std::io::stderr(), "\n{said}");
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        std::process::exit(130);
    });
    Ok(receiver)
}

fn unwritable(path: &Path) -> String {
    format!("{} cannot be written", path.display())
}

fn write(path: &Path, text: anyhow::Result<String>) -> Result<(), Failure> {
    std::fs::write(path, text?).with_context(|| unwritable(path))?;
    // The report is written; that nobody reads of it is no failure.
    let _ = writeln!(std::io::stderr(), "wrote {}", path.display());
    Ok(())
}

/// Columns of the terminal; enough for every table where there is none.
pub(super) fn width() -> u16 {
    comfy_table::Table::new().width().unwrap_or(160)
}
