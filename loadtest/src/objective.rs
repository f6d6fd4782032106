//! Objectives: `p99=20ms`, and conditions on which a run fails: `policy.p99>20ms`, `failed>0`, `speedup<1.2`.

mod condition;
mod metric;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use condition::{Condition, Op};
pub use metric::{Kind, Metric, Vocabulary};

/// A latency that is wanted of a share of the requests: `p99=20ms`. Its text is also what stands in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slo {
    /// 0 to 1.
    pub quantile: f64,
    /// Milliseconds.
    pub most: f64,
}

/// What is wrong with an objective or a condition, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(crate) String);

/// What a duration ends in, and milliseconds in one. `ms` before `s`, which it ends in.
const UNITS: [(&str, f64); 4] = [("us", 0.001), ("µs", 0.001), ("ms", 1.0), ("s", 1000.0)];

/// Milliseconds in `20ms`; `None` where the unit is missing.
fn duration(text: &str) -> Option<Result<f64, Invalid>> {
    let (digits, factor) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), factor)))?;
    Some(number(digits).map(|value| value * factor))
}

/// A number that is finite and not negative.
fn number(text: &str) -> Result<f64, Invalid> {
    let value: f64 = text.parse().map_err(|_| Invalid(format!("{text:?} is no number")))?;
    if value.is_finite() && value >= 0.0 && !text.starts_with('-') {
        Ok(value)
    } else {
        Err(Invalid(format!("{text} has to be finite and not negative")))
    }
}

/// A quantile as it is called: `p50`, `p99.9`.
struct Percentile(f64);

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", (self.0 * 1e6).round() / 1e4)
    }
}

impl Slo {
    /// The quantile as it is called: `p99`, `p99.9`.
    pub fn percentile(&self) -> String {
        Percentile(self.quantile).to_string()
    }
}

impl FromStr for Slo {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: String| Invalid(format!("objective {text:?}: {why}; expected one such as p99=20ms"));
        let (name, most) = text.split_once('=').ok_or_else(|| invalid("no = in it".to_owned()))?;
        let (name, most) = (name.trim(), most.trim());
        let percent = name
            .strip_prefix('p')
            .and_then(|digits| match digits {
                "999" => Some(99.9),
                "9999" => Some(99.99),
                _ => digits.parse::<f64>().ok(),
            })
            .filter(|percent| (50.0..=99.99).contains(percent))
            .ok_or_else(|| invalid(format!("{name:?} is not of p50 to p99.99")))?;
        let most = duration(most)
            .unwrap_or_else(|| Err(Invalid(format!("{most:?} has no unit (us, ms or s)"))))
            .map_err(|error| invalid(error.0))?;
        if most == 0.0 {
            return Err(invalid("no request is answered in no time".to_owned()));
        }
        Ok(Self { quantile: percent / 100.0, most })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}ms", Percentile(self.quantile), self.most)
    }
}

impl TryFrom<String> for Slo {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Slo> for String {
    fn from(slo: Slo) -> Self {
        slo.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_objective_reads_as_it_is_written() {
        for (text, quantile, most) in [
            ("p99=20ms", 0.99, 20.0),
            ("p50=1.5s", 0.5, 1500.0),
            (" p99.9 = 800us ", 0.999, 0.8),
            ("p999=1ms", 0.999, 1.0),
            ("p99.99=1s", 0.9999, 1000.0),
        ] {
            let slo: Slo = text.parse().unwrap();
            assert!((slo.quantile - quantile).abs() < 1e-12, "{text}: {slo:?}");
            assert!((slo.most - most).abs() < 1e-9, "{text}: {slo:?}");
        }
        assert_eq!(Slo { quantile: 0.99, most: 20.0 }.to_string(), "p99=20ms");
        assert_eq!(Slo { quantile: 0.999, most: 0.5 }.to_string(), "p99.9=0.5ms");
    }

    #[test]
    fn a_wrong_objective_says_what_is_wrong() {
        for (text, why) in [
            ("p99", "no = in it"),
            ("p99=20", "has no unit (us, ms or s)"),
            ("p40=1ms", "\"p40\" is not of p50 to p99.99"),
            ("p100=1ms", "not of p50"),
            ("99=1ms", "not of p50"),
            ("p99=fastms", "\"fast\" is no number"),
            ("p99=-1ms", "not negative"),
            ("p99=NaNms", "finite"),
            ("p99=0ms", "no time"),
        ] {
            let error = text.parse::<Slo>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("p99=20ms"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn an_objective_is_read_back(hundredths in 5000_u32..=9999, micros in 1_u32..100_000_000) {
            let slo = Slo { quantile: f64::from(hundredths) / 1e4, most: f64::from(micros) / 1000.0 };
            let back: Slo = slo.to_string().parse().unwrap();
            prop_assert!((back.quantile - slo.quantile).abs() < 1e-12);
            prop_assert_eq!(back.most, slo.most);
            let json = serde_json::to_string(&slo).unwrap();
            prop_assert_eq!(serde_json::from_str::<Slo>(&json).unwrap(), back);
        }

        #[test]
        fn nothing_panics_on_any_text(text in ".{0,40}") {
            let _ = text.parse::<Slo>();
            let _ = text.parse::<Condition>();
        }
    }
}
