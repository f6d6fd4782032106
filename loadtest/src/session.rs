//! A run from its plan to its report.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use sysinfo::System;
use tokio::sync::watch;

use crate::drive::{self, Watch};
use crate::images::Pool;
use crate::plan::{Datatype, Plan};
use crate::report::{Machine, Report, SCHEMA, judge};
use crate::wire::{self, Input, Wire};

/// Reads the images, asks the servers what they are, drives them, and reports. When `stop` turns true the run ends early,
/// and its report says so.
///
/// # Errors
/// Images that cannot be read, servers that cannot be reached or do not have what the plan asks for, arms that answer
/// nothing.
pub async fn run(mut plan: Plan, looks_on: &dyn Watch, stop: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let started = SystemTime::now();
    pixels(&mut plan).await?;
    let classes = match plan.arms.first() {
        Some(arm) => wire::classes(arm, &plan.request).await?,
        None => bail!("the plan has no arm"),
    };
    // Reading and resizing many images is no work for a thread that others wait for.
    let (images, seed) = (plan.images.clone(), plan.seed);
    let pool = tokio::task::spawn_blocking(move || Pool::load(&images, seed, classes.as_deref())).await??;
    let wire = Arc::new(Wire::prepare(&plan, &pool).await?);
    drop(pool);
    let driven = drive::run(&plan, Arc::clone(&wire), looks_on, stop).await?;
    let mut arms = driven.arms(&plan);
    for (index, arm) in arms.iter_mut().enumerate() {
        wire.server(index).clone_into(&mut arm.server);
    }
    let ratios = driven.ratios(&plan);
    let mut report = Report {
        schema: SCHEMA,
        harness: env!("CARGO_PKG_VERSION").to_owned(),
        started: humantime::format_rfc3339_seconds(started).to_string(),
        seconds: driven.seconds,
        machine: machine(),
        plan,
        arms,
        ratios,
        ramp: driven.ramp,
        verdicts: Vec::new(),
        interrupted: driven.interrupted,
    };
    report.verdicts = report.plan.fail_if.iter().map(|condition| judge(condition, &report)).collect();
    Ok(report)
}

/// Fills in how the model wants its pixels, where the plan leaves that to the model.
async fn pixels(plan: &mut Plan) -> anyhow::Result<()> {
    if let Datatype::Fp32 { height: 0, .. } = plan.request.datatype {
        let arm = plan.arms.first().context("the plan has no arm")?;
        let Some(Input { height, width, mean, std }) = wire::input(arm, &plan.request).await? else {
            bail!(
                "arm '{}': its server does not say how it wants pixels, expected --input-size, --mean and --std",
                arm.name
            );
        };
        plan.request.datatype = Datatype::Fp32 { height, width, mean, std };
    }
    Ok(())
}

fn machine() -> Machine {
    let mut system = System::new();
    system.refresh_cpu_all();
    let cpu = system.cpus().first().map_or_else(String::new, |cpu| cpu.brand().trim().to_owned());
    Machine {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        cpu,
        system: System::long_os_version().unwrap_or_default(),
    }
}
