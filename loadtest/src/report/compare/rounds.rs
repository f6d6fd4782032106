//! How much rounds vary, by bootstrap.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::Round;

const DRAWS: usize = 2000;

/// Fewer rounds of either report say nothing of their variation.
const FEWEST: usize = 5;

/// Low and high of the middle 95 % of the draws' ratios, over the ratio of all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Spread {
    pub(super) throughput: Option<(f64, f64)>,
    pub(super) p50: Option<(f64, f64)>,
    pub(super) p95: Option<(f64, f64)>,
    pub(super) p99: Option<(f64, f64)>,
}

/// Means of rounds: of the throughput by seconds; of p50, p95 and p99 by answers.
type Means = [f64; 4];

/// The spread of new over old. The same for the same rounds.
pub(super) fn spread(old: &[Round], new: &[Round]) -> Spread {
    if old.len().min(new.len()) < FEWEST {
        return Spread::default();
    }
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let whole = ratios(means(old.iter()), means(new.iter()));
    let mut draws: [Vec<f64>; 4] = Default::default();
    for _ in 0..DRAWS {
        let drawn = ratios(draw(old, &mut random), draw(new, &mut random));
        for ((values, ratio), whole) in draws.iter_mut().zip(drawn).zip(whole) {
            values.push(ratio / whole);
        }
    }
    let [throughput, p50, p95, p99] = draws.map(middle);
    Spread { throughput, p50, p95, p99 }
}

fn draw(rounds: &[Round], random: &mut impl Rng) -> Means {
    means((0..rounds.len()).map(|_| &rounds[random.random_range(0..rounds.len())]))
}

fn means<'a>(rounds: impl Iterator<Item = &'a Round>) -> Means {
    let (mut seconds, mut answered, mut sums) = (0.0, 0.0, [0.0; 4]);
    for round in rounds {
        let count = round.answered as f64;
        seconds += round.seconds;
        answered += count;
        sums[0] += round.throughput * round.seconds;
        for (sum, latency) in sums[1..].iter_mut().zip([round.p50, round.p95, round.p99]) {
            *sum += latency * count;
        }
    }
    [sums[0] / seconds, sums[1] / answered, sums[2] / answered, sums[3] / answered]
}

fn ratios(old: Means, new: Means) -> Means {
    std::array::from_fn(|at| new[at] / old[at])
}

/// `None` where a draw was without any answer, so that its ratio is no number.
fn middle(mut values: Vec<f64>) -> Option<(f64, f64)> {
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied();
    at(0.025).zip(at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round(throughput: f64, p50: f64) -> Round {
        Round { at: 0.0, seconds: 1.0, throughput, answered: throughput as u64, p50, p95: p50, p99: p50 }
    }

    #[test]
    fn few_rounds_and_rounds_without_answers_have_no_spread() {
        let rounds = |count| (0..count).map(|_| round(100.0, 2.0)).collect::<Vec<_>>();
        assert_eq!(spread(&rounds(4), &rounds(50)), Spread::default());
        assert_eq!(spread(&rounds(9), &rounds(9)).p50, Some((1.0, 1.0)));
        let silent: Vec<_> = (0..9).map(|_| round(0.0, 0.0)).collect();
        assert_eq!(spread(&silent, &rounds(9)), Spread::default());
    }

    #[test]
    fn an_interval_covers_a_known_ratio_about_as_often_as_it_says() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut run = |mean: f64| -> Vec<_> {
            (0..30).map(|_| round(mean * (0.8 + 0.4 * random.random::<f64>()), 2.0)).collect()
        };
        let covered = (0..100).filter(|_| {
            let (old, new) = (run(100.0), run(150.0));
            let ratio = means(new.iter())[0] / means(old.iter())[0];
            let (low, high) = spread(&old, &new).throughput.unwrap();
            (ratio * low..=ratio * high).contains(&1.5)
        });
        let covered = covered.count();
        assert!((87..=99).contains(&covered), "{covered}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_spread_lies_around_1(values in prop::collection::vec(1.0..1000.0_f64, 5..20)) {
            let rounds: Vec<_> = values.iter().map(|&value| round(value, 1.0 / value)).collect();
            let (low, high) = spread(&rounds, &rounds).throughput.unwrap();
            prop_assert!(low <= 1.0 + 1e-9 && high >= 1.0 - 1e-9, "{low} {high}");
        }
    }
}
