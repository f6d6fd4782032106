//! What conditions can be about.

/// The metrics that a condition may name.
pub trait Vocabulary: Copy + PartialEq + Send + Sync + 'static {
    /// By name.
    const ALL: &'static [(&'static str, Self)];

    fn kind(self) -> Kind;

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, metric)| *metric == self).map_or("?", |(name, _)| name)
    }
}

/// How a metric's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `20ms`, `1s`, `800us`; milliseconds where there is no unit.
    Latency,
    /// A plain number.
    Rate,
    /// A plain number; with `%` a share of all requests (of images, where images are counted).
    Count,
    /// A plain number, or percent.
    Share,
}

/// Of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Latency, from due to answered.
    P50,
    P90,
    P95,
    P99,
    P999,
    Max,
    Mean,
    /// From due to refused, of 99 % of what was refused.
    RefusalP99,
    /// Images answered in a second.
    Throughput,
    /// Requests answered in time in a second.
    Goodput,
    Refused,
    Failed,
    TimedOut,
    /// Broken on purpose.
    Broken,
    /// Images whose answer differs from the first one.
    Changed,
    /// Failed or timed out.
    Errors,
    /// Correct among those with a label.
    Accuracy,
    /// Mean blocks kept.
    Blocks,
    /// Mean FLOPs to those of the baseline.
    FlopsRatio,
    /// Throughput to that of the baseline.
    Speedup,
    /// Lower end of the speedup's interval.
    SpeedupLow,
    /// Latency to that of the baseline.
    P50Ratio,
    P95Ratio,
    P99Ratio,
    /// The highest rate of a ramp that met the objective, in requests a second.
    Capacity,
    /// Goodput to what the closed load before reached; of overload.
    GoodputShare,
}

impl Vocabulary for Metric {
    const ALL: &'static [(&'static str, Self)] = &[
        ("p50", Self::P50),
        ("p90", Self::P90),
        ("p95", Self::P95),
        ("p99", Self::P99),
        ("p999", Self::P999),
        ("max", Self::Max),
        ("mean", Self::Mean),
        ("refusal_p99", Self::RefusalP99),
        ("throughput", Self::Throughput),
        ("goodput", Self::Goodput),
        ("refused", Self::Refused),
        ("failed", Self::Failed),
        ("timed_out", Self::TimedOut),
        ("broken", Self::Broken),
        ("changed", Self::Changed),
        ("errors", Self::Errors),
        ("accuracy", Self::Accuracy),
        ("blocks", Self::Blocks),
        ("flops_ratio", Self::FlopsRatio),
        ("speedup", Self::Speedup),
        ("speedup.low", Self::SpeedupLow),
        ("p50_ratio", Self::P50Ratio),
        ("p95_ratio", Self::P95Ratio),
        ("p99_ratio", Self::P99Ratio),
        ("capacity", Self::Capacity),
        ("goodput_share", Self::GoodputShare),
    ];

    fn kind(self) -> Kind {
        match self {
            Self::P50 | Self::P90 | Self::P95 | Self::P99 | Self::P999 | Self::Max | Self::Mean | Self::RefusalP99 => {
                Kind::Latency
            }
            Self::Throughput | Self::Goodput | Self::Blocks | Self::Capacity => Kind::Rate,
            Self::Refused | Self::Failed | Self::TimedOut | Self::Broken | Self::Changed | Self::Errors => Kind::Count,
            Self::Accuracy
            | Self::FlopsRatio
            | Self::Speedup
            | Self::SpeedupLow
            | Self::P50Ratio
            | Self::P95Ratio
            | Self::P99Ratio
            | Self::GoodputShare => Kind::Share,
        }
    }
}

impl Metric {
    /// Whether it says how an arm stands to the baseline, and so nothing of the baseline itself.
    pub fn relative(self) -> bool {
        matches!(
            self,
            Self::FlopsRatio | Self::Speedup | Self::SpeedupLow | Self::P50Ratio | Self::P95Ratio | Self::P99Ratio
        )
    }
}
