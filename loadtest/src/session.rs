//! A run from its plan to its report.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use sysinfo::System;
use tokio::sync::watch;

use crate::drive::{self, Watch};
use crate::images::Pool;
use crate::plan::Plan;
use crate::report::{Machine, Report, SCHEMA, verdict};
use crate::wire::Wire;

/// Reads the images, asks the servers what they are, drives them, and reports. When `stop` turns true the run ends early,
/// and its report says so.
///
/// # Errors
/// Images that cannot be read, servers that cannot be reached or do not have what the plan asks for, arms that answer
/// nothing.
pub async fn run(plan: Plan, looks_on: &dyn Watch, stop: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let started = SystemTime::now();
    let wire = Arc::new(Wire::prepare(&plan).await?);
    let driven = drive::run(&plan, Arc::clone(&wire), looks_on, stop).await?;
    let mut arms = driven.arms(&plan);
    for (arm, server) in arms.iter_mut().zip(wire.servers()) {
        server.clone_into(&mut arm.server);
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
    report.verdicts = report.plan.fail_if.iter().map(|condition| verdict::judge(condition, &report)).collect();
    Ok(report)
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
