//! How sure a ratio is: paired bootstrap over rounds.
//!
//! In a round each arm has had a turn, so what ails the machine in that minute ails all. Rounds are drawn with
//! replacement, as many as there are, for both arms the same ones; the throughput of such a resample is the sum of its
//! images over the sum of its seconds, its quantiles are those of its merged latencies. What 1000 resamples give shows
//! how far the ratio strays.
//!
//! Of few rounds the plain percentile interval is too narrow. The tails are therefore taken further out (Hesterberg,
//! "What Teachers Should Know About the Bootstrap", 2015, section 4.3.3: the expanded percentile interval), as the t
//! interval is wider than the normal one. Under [`FEWEST`] rounds there is no interval at all.

use rand::RngExt;

use crate::latencies::Latencies;
use crate::report::Interval;
use crate::seed::{Use, generator};

/// Rounds that an interval needs.
pub const FEWEST: usize = 5;
const RESAMPLES: usize = 1000;

/// A histogram of few values: microseconds and how many had them, rising.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compact(Vec<(u32, u64)>);

impl From<&Latencies> for Compact {
    fn from(latencies: &Latencies) -> Self {
        Self(latencies.counts().map(|(micros, count)| (u32::try_from(micros).unwrap_or(u32::MAX), count)).collect())
    }
}

impl Compact {
    pub fn add(&mut self, other: &Self) {
        let mut merged = Vec::with_capacity(self.0.len() + other.0.len());
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let Some(&&(micros, _)) = [ours.peek(), theirs.peek()].into_iter().flatten().min_by_key(|entry| entry.0) {
            let count = [ours.next_if(|entry| entry.0 == micros), theirs.next_if(|entry| entry.0 == micros)];
            merged.push((micros, count.into_iter().flatten().map(|entry| entry.1).sum()));
        }
        self.0 = merged;
    }

    /// Milliseconds below which the share `quantile` (0 to 1) of the values lie; 0 of no values.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let counts: Vec<u64> = self.0.iter().map(|entry| entry.1).collect();
        position(&counts, self.len(), quantile).map_or(0.0, |at| f64::from(self.0[at].0) / 1000.0)
    }

    pub fn len(&self) -> u64 {
        self.0.iter().map(|entry| entry.1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An arm's turn in a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Under load.
    pub seconds: f64,
    /// Images answered.
    pub images: u64,
    pub latency: Compact,
}

/// An arm over another: above 1 is more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    pub throughput: Interval,
    pub p50: Interval,
    pub p95: Interval,
    pub p99: Interval,
}

/// Ratios of `arm` to `base`, round by round the same ones, with their 95 % intervals. The same samples and seed give the
/// same. None of fewer than [`FEWEST`] rounds, or where an arm answered nothing.
///
/// # Panics
/// Where the two differ in length.
pub fn compare(arm: &[Sample], base: &[Sample], seed: u64) -> Option<Compared> {
    assert_eq!(arm.len(), base.len(), "samples come in pairs");
    let rounds = arm.len();
    if rounds < FEWEST {
        return None;
    }
    let micros = values(arm.iter().chain(base));
    let (mut ours, mut theirs) = (Side::new(arm, &micros), Side::new(base, &micros));
    let ratios = |ours: &Side, theirs: &Side| -> Option<[f64; 4]> {
        let (ours, theirs) = (ours.figures(&micros)?, theirs.figures(&micros)?);
        Some(std::array::from_fn(|at| ours[at] / theirs[at]))
    };

    let every = vec![1; rounds];
    ours.weigh(&every);
    theirs.weigh(&every);
    let found = ratios(&ours, &theirs)?;

    let mut generator = generator(seed, Use::Resample, 0);
    let mut resampled: [Vec<f64>; 4] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let mut weights = vec![0; rounds];
        for _ in 0..rounds {
            weights[generator.random_range(0..rounds)] += 1;
        }
        ours.weigh(&weights);
        theirs.weigh(&weights);
        // A resample of rounds in which an arm answered nothing says nothing.
        let Some(ratios) = ratios(&ours, &theirs) else { continue };
        for (all, ratio) in resampled.iter_mut().zip(ratios) {
            all.push(ratio);
        }
    }
    let tail = tail(rounds);
    let [throughput, p50, p95, p99] = std::array::from_fn(|at| interval(found[at], &mut resampled[at], tail));
    Some(Compared { throughput, p50, p95, p99 })
}

/// All values that occur, rising.
fn values<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<u32> {
    let mut values: Vec<u32> = samples.flat_map(|sample| sample.latency.0.iter().map(|entry| entry.0)).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// An arm's rounds, its values numbered, and the sums of some of them.
struct Side {
    /// The values of each are numbers of values.
    rounds: Vec<Sample>,
    counts: Vec<u64>,
    answered: u64,
    seconds: f64,
    images: u64,
}

impl Side {
    fn new(samples: &[Sample], micros: &[u32]) -> Self {
        let number = |value: u32| micros.partition_point(|known| *known < value) as u32;
        let rounds = samples
            .iter()
            .map(|sample| {
                let latency = sample.latency.0.iter().map(|&(value, count)| (number(value), count)).collect();
                Sample { latency: Compact(latency), ..*sample }
            })
            .collect();
        Self { rounds, counts: vec![0; micros.len()], answered: 0, seconds: 0.0, images: 0 }
    }

    /// Sums the rounds, each so many times.
    fn weigh(&mut self, weights: &[u64]) {
        self.counts.fill(0);
        (self.answered, self.seconds, self.images) = (0, 0.0, 0);
        for (round, &weight) in self.rounds.iter().zip(weights).filter(|(_, weight)| **weight > 0) {
            self.seconds += round.seconds * weight as f64;
            self.images += round.images * weight;
            for &(at, count) in &round.latency.0 {
                self.counts[at as usize] += count * weight;
                self.answered += count * weight;
            }
        }
    }

    /// Throughput, p50, p95, p99, all above 0; none where nothing was answered.
    fn figures(&self, micros: &[u32]) -> Option<[f64; 4]> {
        if self.images == 0 || self.seconds <= 0.0 {
            return None;
        }
        let quantile =
            |quantile| position(&self.counts, self.answered, quantile).map(|at| f64::from(micros[at].max(1)));
        Some([self.images as f64 / self.seconds, quantile(0.5)?, quantile(0.95)?, quantile(0.99)?])
    }
}

/// The first entry up to which the share `quantile` of all `total` lies.
fn position(counts: &[u64], total: u64, quantile: f64) -> Option<usize> {
    let wanted = ((quantile * total as f64).ceil() as u64).clamp(1, total.max(1));
    let mut seen = 0;
    counts.iter().position(|count| {
        seen += count;
        seen >= wanted
    })
}

/// The share of resamples to leave out at each end, so that the interval of so many rounds covers 95 %.
fn tail(rounds: usize) -> f64 {
    let freedom = (rounds - 1) as f64;
    normal(-(rounds as f64 / freedom).sqrt() * student(freedom))
}

/// The 97.5 % quantile of Student's t (Abramowitz and Stegun, 26.7.5).
fn student(freedom: f64) -> f64 {
    let z: f64 = 1.959_963_985;
    z + (z.powi(3) + z) / (4.0 * freedom)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * freedom.powi(2))
        + (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * freedom.powi(3))
}

/// The normal distribution below `x`, which is negative, to a relative error of 1e-3 or better (Abramowitz and Stegun,
/// 26.2.17).
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 - 0.231_641_9 * x);
    let series =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * series
}

fn interval(value: f64, resampled: &mut [f64], tail: f64) -> Interval {
    resampled.sort_by(f64::total_cmp);
    let most = resampled.len().saturating_sub(1);
    let low = ((tail * resampled.len() as f64) as usize).min(most);
    let at = |index: usize| resampled.get(index).copied().unwrap_or(value);
    Interval { value, low: at(low).min(value), high: at(most - low).max(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn latencies(values: &[u64]) -> Latencies {
        let mut latencies = Latencies::default();
        values.iter().for_each(|value| latencies.record(*value));
        latencies
    }

    proptest! {
        #[test]
        fn compact_histograms_are_those_they_were_made_of(
            first in proptest::collection::vec(1_u64..10_000_000, 0..200),
            second in proptest::collection::vec(1_u64..10_000_000, 0..200),
        ) {
            let mut whole = latencies(&first);
            whole.add(&latencies(&second));
            let mut compact = Compact::from(&latencies(&first));
            compact.add(&Compact::from(&latencies(&second)));
            prop_assert_eq!(&compact, &Compact::from(&whole));
            prop_assert_eq!(compact.len(), whole.len());
            for quantile in [0.0, 0.5, 0.95, 0.99, 1.0] {
                let (found, expected) = (compact.quantile(quantile), whole.quantile(quantile));
                prop_assert!((found - expected).abs() <= expected * 1e-3 + 1e-9, "{found} {expected}");
            }
        }
    }

    /// Rounds of a second, of exponential latencies around `mean` microseconds, which drift from round to round by up to
    /// `drift` of it, for two arms alike.
    fn rounds(generator: &mut ChaCha8Rng, count: usize, means: [f64; 2], drift: f64) -> [Vec<Sample>; 2] {
        let mut arms = [Vec::new(), Vec::new()];
        for _ in 0..count {
            let factor = 1.0 + drift * generator.random::<f64>();
            for (arm, mean) in arms.iter_mut().zip(means) {
                let mut seconds = 0.0;
                let mut all = Latencies::default();
                while seconds < 1.0 {
                    let latency = -(1.0 - generator.random::<f64>()).ln() * mean * factor;
                    all.record(latency as u64);
                    seconds += latency / 1e6;
                }
                arm.push(Sample { seconds, images: all.len(), latency: Compact::from(&all) });
            }
        }
        arms
    }

    #[test]
    fn a_ratio_is_found_whatever_drifts_and_its_interval_holds_it() {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let [fast, slow] = rounds(&mut generator, 30, [10_000.0, 20_000.0], 1.0);
        let found = compare(&fast, &slow, 1).unwrap();
        for (interval, expected) in [(found.throughput, 2.0), (found.p50, 0.5), (found.p95, 0.5), (found.p99, 0.5)] {
            assert!(interval.low <= interval.value && interval.value <= interval.high, "{interval:?}");
            assert!(interval.low <= expected && expected <= interval.high, "{interval:?} {expected}");
            assert!((interval.value / expected - 1.0).abs() < 0.2, "{interval:?} {expected}");
        }
        assert!(found.throughput.high - found.throughput.low < 0.3, "{found:?}");
        assert_eq!(compare(&fast, &slow, 1), Some(found));
        let narrow = |count: usize| compare(&fast[..count], &slow[..count], 1).unwrap().throughput;
        assert!(narrow(30).high - narrow(30).low < narrow(6).high - narrow(6).low);
    }

    #[test]
    fn intervals_cover_what_they_say_of_ten_rounds() {
        let mut generator = ChaCha8Rng::seed_from_u64(2);
        let (mut throughput, mut median) = (0, 0);
        for seed in 0..100 {
            let [one, other] = rounds(&mut generator, 10, [40_000.0; 2], 0.3);
            let found = compare(&one, &other, seed).unwrap();
            throughput += u32::from(found.throughput.low <= 1.0 && 1.0 <= found.throughput.high);
            median += u32::from(found.p50.low <= 1.0 && 1.0 <= found.p50.high);
        }
        assert!((90..=99).contains(&throughput), "{throughput} of 100");
        assert!((90..=99).contains(&median), "{median} of 100");
    }

    #[test]
    fn no_interval_is_made_of_nothing() {
        let mut generator = ChaCha8Rng::seed_from_u64(3);
        let [one, other] = rounds(&mut generator, 8, [20_000.0; 2], 0.0);
        assert_eq!(compare(&one[..4], &other[..4], 0), None);
        assert_eq!(compare(&one, &vec![Sample { seconds: 1.0, ..Sample::default() }; 8], 0), None);
        assert_eq!(compare(&vec![Sample::default(); 8], &other, 0), None);
        // One round of eight was answered: many resamples hold none of it, and the rest still say something finite.
        let mut once = vec![Sample { seconds: 1.0, ..Sample::default() }; 8];
        once[3] = one[3].clone();
        let found = compare(&once, &other, 0).unwrap();
        for interval in [found.throughput, found.p50, found.p95, found.p99] {
            assert!(interval.low.is_finite() && interval.high.is_finite(), "{interval:?}");
        }
    }

    #[test]
    fn tails_are_those_of_tables() {
        assert!((student(9.0) - 2.262_157).abs() < 1e-3);
        assert!((student(4.0) - 2.776_445).abs() < 1e-2);
        assert!((normal(-1.959_964) - 0.025).abs() < 1e-5);
        assert!((normal(-3.0) - 0.001_349_9).abs() < 1e-6);
        assert!(tail(10) < 0.01 && tail(1000) > 0.0245);
    }
}
