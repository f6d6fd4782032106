//! Medians and how sure they are.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// A median with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The median of `values`, and the interval by the percentile bootstrap with 1000 resamples. The same values give the
/// same interval.
pub(super) fn estimate(values: &[f64]) -> Estimate {
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let resample = |generator: &mut ChaCha8Rng| -> f64 {
        median((0..values.len()).map(|_| values[generator.random_range(0..values.len())]).collect())
    };
    let mut medians: Vec<f64> = (0..1000).map(|_| resample(&mut generator)).collect();
    medians.sort_by(f64::total_cmp);
    Estimate { median: median(values.to_vec()), low: medians[25], high: medians[974] }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn intervals_hold_the_median_and_narrow_with_more_values() {
        let values = |count: usize| -> Vec<f64> { (0..count).map(|at| (at * 37 % 100) as f64).collect() };
        let (few, many) = (estimate(&values(10)), estimate(&values(1000)));
        for estimate in [few, many] {
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high, "{estimate:?}");
        }
        assert!(many.high - many.low < few.high - few.low, "{many:?} and {few:?}");
        assert_eq!(estimate(&[2.0; 5]), Estimate { median: 2.0, low: 2.0, high: 2.0 });
    }
}
