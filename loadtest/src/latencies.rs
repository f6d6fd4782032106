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
        self.0.record(micros.clamp(1, MOST)).expect("it grows up to an hour");
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
            latencies.0.record_n(micros.clamp(1, MOST), count).expect("it grows up to an hour");
        }
        Ok(latencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_are_kept_to_three_digits_and_read_back(
            mut values in prop::collection::vec(0..2 * MOST, 1..100), at in 0.0..=1.0_f64,
        ) {
            let mut latencies = Latencies::default();
            values.iter().for_each(|&micros| latencies.record(micros));
            values.iter_mut().for_each(|micros| *micros = (*micros).clamp(1, MOST));
            values.sort_unstable();
            let rank = ((at * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
            let near = |found: f64, micros: u64| (found * 1000.0 / micros as f64 - 1.0).abs() < 1e-3;
            prop_assert!(near(latencies.quantile(at), values[rank]), "{} {}", latencies.quantile(at), values[rank]);
            prop_assert!(near(latencies.max(), values[values.len() - 1]));
            prop_assert_eq!(latencies.len(), values.len() as u64);
            let back: Latencies = serde_json::from_str(&serde_json::to_string(&latencies).unwrap()).unwrap();
            prop_assert_eq!(&back, &latencies);
            prop_assert_eq!(back.quantile(at), latencies.quantile(at));
        }
    }

    #[test]
    fn of_no_values_all_is_0() {
        let none = Latencies::default();
        assert_eq!((none.quantile(0.99), none.max(), none.mean(), none.len()), (0.0, 0.0, 0.0, 0));
    }
}
