//! Reports as JSON.

use serde::Deserialize;

use super::{Report, SCHEMA};

/// Why a text is no report.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it is no JSON: {0}")]
    Json(serde_json::Error),
    #[error("it is no load-test report: it has no number \"schema\"")]
    Other,
    #[error("its schema is {found} (written by version {harness}), this is version {} and reads schema {SCHEMA}", env!("CARGO_PKG_VERSION"))]
    Schema { found: u64, harness: String },
    #[error("it says that its schema is {SCHEMA}, but does not hold to it: {0}")]
    Damaged(serde_json::Error),
}

/// What is read before all else.
#[derive(Deserialize)]
struct Header {
    schema: Option<u64>,
    #[serde(default)]
    harness: Option<String>,
}

impl Report {
    /// As JSON, on one line.
    ///
    /// # Errors
    /// None that are known: every part has a form in JSON. Values that are no numbers become null.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Out of JSON.
    ///
    /// # Errors
    /// When it is no JSON, no report, or one of another schema.
    pub fn from_json(text: &str) -> Result<Self, Unreadable> {
        let json: serde_json::Value = serde_json::from_str(text).map_err(Unreadable::Json)?;
        if !json.is_object() {
            return Err(Unreadable::Other);
        }
        let header = Header::deserialize(&json).map_err(|_| Unreadable::Other)?;
        match header.schema {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(found) => {
                return Err(Unreadable::Schema { found, harness: header.harness.unwrap_or_else(|| "unknown".into()) });
            }
            None => return Err(Unreadable::Other),
        }
        let report = Self::deserialize(json).map_err(Unreadable::Damaged)?;
        report.consistent().map_err(|why| Unreadable::Damaged(serde::de::Error::custom(why)))?;
        Ok(report)
    }

    /// Whether all that points to an arm points to one that there is.
    fn consistent(&self) -> Result<(), String> {
        let arms = self.arms.len();
        if arms == 0 || self.plan.arms.len() != arms {
            return Err(format!("{arms} arms, of which the plan names {}", self.plan.arms.len()));
        }
        let ramp = self.ramp.iter().flat_map(|ramp| ramp.steps.iter().map(|step| step.arm));
        let named = self.ratios.iter().map(|ratio| ratio.arm).chain(ramp).chain([self.plan.baseline]);
        if let Some(arm) = named.into_iter().find(|arm| *arm >= arms) {
            return Err(format!("arm {arm} of {arms}"));
        }
        match &self.ramp {
            Some(ramp) if ramp.best.len() != arms => Err(format!("{} best rates of {arms} arms", ramp.best.len())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    #[test]
    fn a_report_is_read_back() {
        let report = made_up::full();
        let back = Report::from_json(&report.to_json().unwrap()).unwrap();
        assert_eq!(super::super::terminal::text(&back, 100), super::super::terminal::text(&report, 100));
        assert_eq!(back.arms[1].latency, report.arms[1].latency);
        assert_eq!(back.arms[1].latency.quantile(0.99), report.arms[1].latency.quantile(0.99));
        assert_eq!(back.arms[1].counts, report.arms[1].counts);
        assert!((back.ratios[0].throughput.low - report.ratios[0].throughput.low).abs() < 1e-12);
        assert_eq!(back.plan.fail_if, report.plan.fail_if);
    }

    #[test]
    fn a_minute_of_two_arms_is_under_a_megabyte() {
        let bytes = made_up::full().to_json().unwrap().len();
        println!("{bytes} bytes");
        assert!(bytes < 1_000_000, "{bytes} bytes");
    }

    #[test]
    fn what_is_no_number_survives() {
        let mut report = made_up::full();
        report.ratios[0].p99.low = f64::NAN;
        report.ratios[0].p99.high = f64::INFINITY;
        let back = Report::from_json(&report.to_json().unwrap()).unwrap();
        assert!(back.ratios[0].p99.low.is_nan() && back.ratios[0].p99.high.is_nan());
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let complaint = |text: &str| Report::from_json(text).unwrap_err().to_string();
        assert!(complaint("{").starts_with("it is no JSON"));
        assert_eq!(complaint("{}"), Unreadable::Other.to_string());
        assert_eq!(complaint("[1]"), Unreadable::Other.to_string());
        let other = complaint(r#"{"schema": 7, "harness": "9.9"}"#);
        assert!(other.contains("its schema is 7 (written by version 9.9)") && other.contains("reads schema 1"));
        assert!(complaint(r#"{"schema": 1}"#).contains("does not hold to it: missing field"));
        let mut report = made_up::full();
        report.ratios[0].arm = 9;
        assert!(complaint(&report.to_json().unwrap()).contains("arm 9 of 2"));
        let mut report = made_up::full();
        report.plan.baseline = 2;
        assert!(complaint(&report.to_json().unwrap()).contains("arm 2 of 2"));
    }
}
