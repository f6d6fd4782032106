//! Conditions: `[ARM.]METRIC OP VALUE[UNIT]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::metric::{Kind, Metric, Vocabulary};
use super::{Invalid, duration, number};

/// A condition on which a run (or a comparison, by its own metrics) fails. Without an arm it is about any arm.
///
/// An arm's name may hold anything but `<` and `>`. Its text is what stands in JSON and TOML.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition<M = Metric> {
    /// As it was written.
    pub text: String,
    pub arm: Option<String>,
    pub metric: M,
    pub op: Op,
    /// Milliseconds of latencies, 0 to 1 of shares; see [`Kind`].
    pub value: f64,
    /// The value is a share of what is counted, not a count.
    pub share: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    More,
    AtLeast,
    Less,
    AtMost,
}

impl Op {
    /// `found OP wanted`; false of what is no number.
    pub fn holds(self, found: f64, wanted: f64) -> bool {
        match self {
            Self::More => found > wanted,
            Self::AtLeast => found >= wanted,
            Self::Less => found < wanted,
            Self::AtMost => found <= wanted,
        }
    }
}

impl<M: Vocabulary> FromStr for Condition<M> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: String| Invalid(format!("condition {text:?}: {why}"));
        let at = text
            .find(['<', '>'])
            .ok_or_else(|| invalid("none of > >= < <= in it; expected one such as p99>20ms or failed>0".to_owned()))?;
        let (left, right) = text.split_at(at);
        let (op, right) = match right.as_bytes() {
            [b'>', b'=', ..] => (Op::AtLeast, &right[2..]),
            [b'>', ..] => (Op::More, &right[1..]),
            [_, b'=', ..] => (Op::AtMost, &right[2..]),
            _ => (Op::Less, &right[1..]),
        };
        let (arm, metric) = subject::<M>(left.trim()).map_err(invalid)?;
        let (value, share) = value(metric.kind(), right.trim())
            .map_err(|error| invalid(format!("{} of {}: {error}", kind(metric.kind()), metric.name())))?;
        Ok(Self { text: text.trim().to_owned(), arm, metric, op, value, share })
    }
}

/// The arm, if any, and the metric; the longest metric that the text ends in, so that arms may have dots in their names.
fn subject<M: Vocabulary>(left: &str) -> Result<(Option<String>, M), String> {
    let found = M::ALL
        .iter()
        .filter_map(|&(name, metric)| match left.strip_suffix(name)? {
            "" => Some((name, metric, None)),
            arm => arm.strip_suffix('.').filter(|arm| !arm.is_empty()).map(|arm| (name, metric, Some(arm))),
        })
        .max_by_key(|(name, ..)| name.len());
    match found {
        Some((_, metric, arm)) => Ok((arm.map(str::to_owned), metric)),
        None => {
            let name = left.rsplit_once('.').map_or(left, |(_, name)| name);
            let known: Vec<_> = M::ALL.iter().map(|(name, _)| *name).collect();
            Err(format!("{name:?} is no metric; known are {}", known.join(", ")))
        }
    }
}

/// The value in the metric's unit, and whether it is a share of what is counted.
fn value(kind: Kind, text: &str) -> Result<(f64, bool), Invalid> {
    // Only shares may be negative: a comparison has changes of shares.
    match (kind, text.strip_suffix('%')) {
        (Kind::Latency, None) => Ok((duration(text).unwrap_or_else(|| number(text))?, false)),
        (Kind::Rate, None) => Ok((number(text)?, false)),
        (Kind::Count, None) => Ok((number(text)?, false)),
        (Kind::Share, None) => Ok((signed(text)?, false)),
        (Kind::Count, Some(percent)) => Ok((number(percent.trim_end())? / 100.0, true)),
        (Kind::Share, Some(percent)) => Ok((signed(percent.trim_end())? / 100.0, false)),
        (Kind::Latency | Kind::Rate, Some(_)) => Err(Invalid("percent make no sense".to_owned())),
    }
}

/// A number that may be negative.
fn signed(text: &str) -> Result<f64, Invalid> {
    match text.strip_prefix('-') {
        Some(digits) => number(digits).map(|value| -value),
        None => number(text),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Latency => "the latency",
        Kind::Rate => "the value",
        Kind::Count => "the count",
        Kind::Share => "the share",
    }
}

impl<M> fmt::Display for Condition<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<M> Serialize for Condition<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de, M: Vocabulary> Deserialize<'de> for Condition<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Condition {
        text.parse().unwrap()
    }

    #[test]
    fn a_condition_reads_as_it_is_written() {
        for (text, arm, metric, op, value, share) in [
            ("policy.p99>20ms", Some("policy"), Metric::P99, Op::More, 20.0, false),
            ("p999 >= 1s", None, Metric::P999, Op::AtLeast, 1000.0, false),
            ("p50<800us", None, Metric::P50, Op::Less, 0.8, false),
            ("max<=30", None, Metric::Max, Op::AtMost, 30.0, false),
            ("failed>0", None, Metric::Failed, Op::More, 0.0, false),
            ("errors>0.5%", None, Metric::Errors, Op::More, 0.005, true),
            ("full.accuracy<92%", Some("full"), Metric::Accuracy, Op::Less, 0.92, false),
            ("accuracy<0.92", None, Metric::Accuracy, Op::Less, 0.92, false),
            ("speedup.low<1.2", None, Metric::SpeedupLow, Op::Less, 1.2, false),
            ("policy.speedup<1.2", Some("policy"), Metric::Speedup, Op::Less, 1.2, false),
            ("threshold=0.7.speedup.low<1", Some("threshold=0.7"), Metric::SpeedupLow, Op::Less, 1.0, false),
            ("first_k:7.timed_out>=1", Some("first_k:7"), Metric::TimedOut, Op::AtLeast, 1.0, false),
            ("p99.p99>1ms", Some("p99"), Metric::P99, Op::More, 1.0, false),
        ] {
            let condition = read(text);
            assert_eq!(condition.text, text);
            assert_eq!((condition.arm.as_deref(), condition.metric, condition.op), (arm, metric, op), "{text}");
            assert!((condition.value - value).abs() < 1e-12, "{text}: {}", condition.value);
            assert_eq!(condition.share, share, "{text}");
        }
    }

    #[test]
    fn a_wrong_condition_says_what_is_wrong() {
        for (text, why) in [
            ("p99=20ms", "none of > >= < <="),
            ("p98>1ms", "\"p98\" is no metric; known are p50, p90, p95, p99"),
            ("policy.speed>1", "\"speed\" is no metric"),
            (">1", "\"\" is no metric"),
            (".p99>1ms", "no metric"),
            ("p99>", "the latency of p99: \"\" is no number"),
            ("p99>20%", "percent make no sense"),
            ("p99>20h", "\"20h\" is no number"),
            ("failed>some", "the count of failed: \"some\" is no number"),
            ("failed>-1", "not negative"),
            ("throughput<inf", "finite"),
        ] {
            let error = text.parse::<Condition>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn json_holds_the_text() {
        let condition = read("policy.p99>20ms");
        let json = serde_json::to_string(&condition).unwrap();
        assert_eq!(json, "\"policy.p99>20ms\"");
        assert_eq!(serde_json::from_str::<Condition>(&json).unwrap(), condition);
        let error = serde_json::from_str::<Condition>("\"p98>1\"").unwrap_err().to_string();
        assert!(error.contains("no metric"), "{error}");
    }

    proptest! {
        #[test]
        fn every_metric_is_read_with_any_arm(
            arm in "[^<>\\s][^<>]{0,12}[^<>\\s]", at in 0..Metric::ALL.len(), op in 0..4_usize, value in 0.0..1e6_f64,
        ) {
            let (name, metric) = Metric::ALL[at];
            let op = [(">", Op::More), (">=", Op::AtLeast), ("<", Op::Less), ("<=", Op::AtMost)][op];
            let condition = read(&format!("{arm}.{name}{}{value}", op.0));
            // An arm that ends as the longer metric begins makes another metric of it; `speedup` and `low` only.
            prop_assume!(condition.metric == metric);
            prop_assert_eq!(condition.arm, Some(arm));
            prop_assert_eq!(condition.op, op.1);
            prop_assert_eq!(condition.value, value);
        }
    }
}
