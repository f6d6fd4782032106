//! `blockdrop-loadtest ceiling`: the harness against a responder that answers at once.

use std::path::PathBuf;

use anyhow::anyhow;
use blockdrop_loadtest::plan::Protocol;
use blockdrop_loadtest::report::ArmReport;
use blockdrop_loadtest::report::table::{lines, table};
use blockdrop_loadtest::server::Server;
use blockdrop_loadtest::settings::{Kind, Settings};
use blockdrop_loadtest::values::Span;
use clap::Args;
use tokio::process::Command;
use tokio::sync::watch;

use super::run::{stop_signal, watched, width};
use super::{Failure, print, runtime};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Protocols to speak, separated by commas [default: all of them].
    #[arg(long, value_delimiter = ',')]
    protocol: Vec<Protocol>,

    /// Clients that ask.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,

    /// Time that is measured, for each protocol.
    #[arg(long, default_value = "3s")]
    measure: Span,

    /// Images to send.
    #[arg(long, default_value = "samples")]
    images: PathBuf,

    /// Threads that drive.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,

    /// Threads of the responder, a process of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    responder_threads: u16,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    runtime(options.threads.into())?.block_on(async {
        let stop = stop_signal()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["respond", "--threads", &options.responder_threads.to_string()]);
        let responder = Server::spawn(command).await?;
        let protocols = if options.protocol.is_empty() { &Protocol::ALL[..] } else { &options.protocol };
        let mut rows = table(&["protocol", "requests/s>", "us a request>", "p50 ms>", "p99 ms>"], width());
        for protocol in protocols {
            let arm = one(options, &responder, *protocol, stop.clone()).await?;
            if *stop.borrow() {
                break;
            }
            let rate = arm.counts.answered as f64 / arm.seconds;
            rows.add_row([
                arm.name,
                format!("{rate:.0}"),
                format!("{:.1}", 1e6 / rate),
                format!("{:.3}", arm.latency.quantile(0.5)),
                format!("{:.3}", arm.latency.quantile(0.99)),
            ]);
        }
        let Options { clients, threads, responder_threads, .. } = options;
        print(format!(
            "{clients} clients on {threads} thread(s) of the harness, {responder_threads} thread(s) of a responder that \
             answers at once:"
        ))?;
        Ok(print(lines(&rows).trim_end())?)
    })
}

fn name(protocol: Protocol) -> String {
    serde_json::to_value(protocol).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A closed load in one protocol.
async fn one(
    options: &Options,
    responder: &Server,
    protocol: Protocol,
    stop: watch::Receiver<bool>,
) -> Result<ArmReport, Failure> {
    let settings = Settings {
        title: Some("Ceiling".to_owned()),
        arm: vec![format!("name={}", name(protocol)).parse()?],
        protocol: Some(protocol),
        images: Some(options.images.clone()),
        sizes: vec!["32x32".parse()?],
        load: Some(Kind::Closed),
        clients: Some(options.clients.into()),
        warm_up: Some("500ms".parse()?),
        measure: Some(options.measure),
        ..Settings::default()
    };
    let plan = settings.plan(Some(&responder.addresses)).map_err(Failure::Usage)?;
    let report = watched(plan, stop).await?;
    let Some(arm) = report.arms.into_iter().next() else { unreachable!("a plan has an arm") };
    if arm.counts.answered != arm.counts.sent {
        let causes: Vec<&str> = arm.causes.values().map(|(_, message)| message.as_str()).collect();
        return Err(Failure::Failed(anyhow!("{}: not every request was answered: {}", arm.name, causes.join("; "))));
    }
    Ok(arm)
}
