//! Random numbers that repeat: a stream of its own for each use and round, so that neither shifts another.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What random numbers are for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    Payloads = 1,
    Gaps = 2,
    Order = 3,
    Stagger = 4,
    Resample = 5,
}

/// The generator of `seed` for a use in a round.
pub(crate) fn generator(seed: u64, what: Use, round: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(((what as u64) << 56) | (round & ((1 << 56) - 1)));
    generator
}
