//! Images made up from a seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `count` tensors of `elements` normalised values, each around a mean of its own so that a policy tells them apart.
pub fn noise(seed: u64, count: usize, elements: usize) -> Vec<Vec<f32>> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut tensor = || {
        let means: [f32; 3] = std::array::from_fn(|_| generator.random_range(-1.5..1.5));
        let plane = elements.div_ceil(3);
        (0..elements).map(|index| means[index / plane] + generator.random_range(-1.0f32..1.0)).collect()
    };
    (0..count).map(|_| tensor()).collect()
}

/// RGB pixels of a made-up picture, row by row: a gradient in colours drawn from `seed`, with a disc on it.
pub fn encoded(seed: u64, width: u32, height: u32) -> Vec<u8> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let [from, to, disc]: [[f32; 3]; 3] =
        std::array::from_fn(|_| std::array::from_fn(|_| generator.random_range(0.0..255.0)));
    let (w, h) = (width as f32, height as f32);
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for row in 0..height {
        for column in 0..width {
            let (x, y) = (column as f32 / w, row as f32 / h);
            let inside = (x - 0.5).powi(2) + (y - 0.5).powi(2) < 0.1;
            for channel in 0..3 {
                let shade = from[channel] + (to[channel] - from[channel]) * y;
                pixels.push(if inside { disc[channel] } else { shade } as u8);
            }
        }
    }
    pixels
}
