//! How a run goes, drawn while it goes on: on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use blockdrop_loadtest::drive::{Phase, Progress, Watch};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over the whole run.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(total: Duration) -> Self {
        let bar = ProgressBar::new(millis(total));
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style =
            ProgressStyle::with_template("{elapsed:>4} {bar:24} {percent:>3}%  {msg}").expect("a valid template");
        Self(bar.with_style(style))
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Watch for Bar {
    fn progress(&self, progress: &Progress<'_>) {
        self.0.set_length(millis(progress.total));
        self.0.set_position(millis(progress.elapsed));
        self.0.set_message(line(progress));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `full, 540/s wanted: 531/s, p99 12.3 ms, 4,201 sent, 3 failed`
fn line(progress: &Progress<'_>) -> String {
    let counts = progress.counts;
    let name: String = progress.name.chars().take(24).collect();
    let phase = match progress.phase {
        Phase::WarmUp => ", warm-up".to_owned(),
        Phase::Measure => String::new(),
        Phase::Peak => ", the most it answers".to_owned(),
        Phase::Rate(rate) | Phase::Overload(rate) => format!(", {rate:.0}/s wanted"),
    };
    let p99 = if progress.p99 > 0.0 { format!("p99 {:.1} ms, ", progress.p99) } else { String::new() };
    let mut line = format!("{name}{phase}: {:.0}/s, {p99}{} sent", progress.throughput, counts.sent);
    for (count, what) in [(counts.refused, "refused"), (counts.failed, "failed"), (counts.timed_out, "timed out")] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdrop_loadtest::record::Counts;

    #[test]
    fn trouble_is_told_while_it_happens() {
        let counts = Counts { sent: 12, answered: 8, failed: 2, ..Counts::default() };
        let progress = Progress {
            phase: Phase::Rate(500.0),
            arm: 0,
            name: "full",
            elapsed: Duration::from_secs(1),
            total: Duration::from_secs(2),
            counts,
            throughput: 480.4,
            p99: 12.34,
        };
        assert_eq!(line(&progress), "full, 500/s wanted: 480/s, p99 12.3 ms, 12 sent, 2 failed");
    }
}
