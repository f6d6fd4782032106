//! Latencies: HDR histograms that can be written to JSON and read back.

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds, from 1 to an hour, to three significant digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// An hour.
const MOST: u64 = 3_600_000_000;

impl Default for Latencies {
    fn default() -> Self {
        let mut histogram = Histogram::new(3).expect("three digits");
        histogram.auto(true);
        Self(histogram)
    }
}

impl Latencies {
    pub fn record(&mut self, micros: u64) {
        self.record_n(micros, 1);
    }

    fn record_n(&mut self, micros: u64, count: u64) {
        // `saturating_record` would not make the histogram larger.
        self.0.record_n(micros.clamp(1, MOST), count).expect("a histogram grows to an hour");
    }

    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("histograms of the same kind");
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Milliseconds below which the share `quantile` (0 to 1) of the values lie; 0 of no values.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Milliseconds; 0 of no values.
    pub fn max(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    /// Milliseconds; 0 of no values.
    pub fn mean(&self) -> f64 {
        if self.is_empty() { 0.0 } else { self.0.mean() / 1000.0 }
    }

    /// Microseconds and how many had them, rising.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value()))
    }
}

impl PartialEq for Latencies {
    fn eq(&self, other: &Self) -> bool {
        self.counts().eq(other.counts())
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.counts())
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut latencies = Self::default();
        for (micros, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            latencies.record_n(micros, count);
        }
        Ok(latencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_from_a_microsecond_to_an_hour_are_kept_to_three_digits() {
        let mut latencies = Latencies::default();
        for micros in [1, 5_000, 1_234_567, MOST] {
            latencies.record(micros);
            assert!((latencies.max() * 1000.0 / micros as f64 - 1.0).abs() < 1e-3, "{micros}: {}", latencies.max());
        }
        latencies.record(0);
        latencies.record(u64::MAX);
        assert_eq!(latencies.len(), 6);
        let json = serde_json::to_string(&latencies).unwrap();
        let read: Latencies = serde_json::from_str(&json).unwrap();
        assert_eq!(read, latencies);
        assert_eq!(read.quantile(0.5), latencies.quantile(0.5));
    }
}
