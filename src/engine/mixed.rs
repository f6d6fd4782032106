//! Images of different masks in one batch: each block runs on those that keep it.

use ort::value::Tensor;
use prost::Message;

use super::error::EngineError;
use super::session::{Bound, Sessions};
use super::sizes::step;
use crate::bundle::{Bundle, COUNTS, ROWS, mix};
use crate::policy::Mask;

/// The whole net as one graph that takes any masks.
pub(super) struct Mixed {
    bound: Bound,
    rows: Rows,
}

impl Mixed {
    /// For `size` images at a time, or any number.
    pub(super) fn new(bundle: &Bundle, sessions: &Sessions, size: Option<usize>) -> Result<Self, EngineError> {
        let session = sessions.make(&mix(bundle)?.encode_to_vec(), "the net as one graph for mixed masks", false)?;
        let bound = Bound::new(session, sessions.provider, &bundle.stem.input, &bundle.head.output, size);
        Ok(Self { bound, rows: Rows::new(bundle.blocks.len(), size) })
    }

    /// Class logits, `[C]`, of each image through the blocks of its mask.
    ///
    /// # Panics
    /// An image is not of the model's input size, a mask not as long as there are blocks, or there are more images than the
    /// size, where that is fixed.
    pub(super) fn run(&mut self, images: &[(&Mask, &[f32])]) -> Result<Vec<Vec<f32>>, EngineError> {
        let (masks, pixels): (Vec<&Mask>, Vec<&[f32]>) = images.iter().copied().unzip();
        let (rows, counts) = self.rows.of(&masks);
        let rows = Tensor::from_array(([rows.len(), 1], rows))?;
        let counts = Tensor::from_array(([counts.len()], counts))?;
        self.bound.run_with(&pixels, &[(ROWS, rows), (COUNTS, counts)])
    }

    /// Forgets what blocks needed in runs that were no traffic.
    pub(super) fn begin_anew(&mut self) {
        self.rows.steady = self.rows.steady.take().map(|steady| Steady::new(steady.size, self.rows.blocks));
    }
}

/// Which images of a batch each block runs on.
struct Rows {
    /// Where the shapes of one run are to be those of the next: how many rows each block gets. Filled up with the row behind
    /// the images, of which nobody wants the result; or in a batch without one, where anybody keeps the block, with one of
    /// those again.
    steady: Option<Steady>,
    blocks: usize,
}

struct Steady {
    size: usize,
    /// Rows of each block, and the most that it needed in the last runs.
    room: Vec<usize>,
    needed: Vec<usize>,
    runs: u32,
}

/// Runs after which a block gets less room, where it needed less in all of them.
const PERIOD: u32 = 100;

impl Rows {
    fn new(blocks: usize, size: Option<usize>) -> Self {
        Self { steady: size.map(|size| Steady::new(size, blocks)), blocks }
    }

    /// The positions of the images that keep each block, block after block, and how many these are of each; and behind them
    /// one that no block takes.
    fn of(&mut self, masks: &[&Mask]) -> (Vec<i64>, Vec<i64>) {
        assert!(masks.iter().all(|mask| mask.len() == self.blocks), "a mask has a bit for each block");
        let mut kept = vec![Vec::new(); self.blocks];
        for (row, mask) in masks.iter().enumerate() {
            mask.iter().zip(&mut kept).filter(|(keep, _)| *keep).for_each(|(_, rows)| rows.push(row as i64));
        }
        if let Some(steady) = &mut self.steady {
            assert!(masks.len() <= steady.size, "{} images are more than {}", masks.len(), steady.size);
            steady.fit(&kept);
            let spare = (masks.len() < steady.size).then_some(masks.len() as i64);
            for (rows, &room) in kept.iter_mut().zip(&steady.room) {
                if let Some(filling) = spare.or(rows.first().copied()) {
                    rows.resize(room, filling);
                }
            }
        }
        kept.push(vec![0]);
        let counts = kept.iter().map(|rows| rows.len() as i64).collect();
        (kept.concat(), counts)
    }
}

impl Steady {
    fn new(size: usize, blocks: usize) -> Self {
        Self { size, room: vec![0; blocks], needed: vec![0; blocks], runs: 0 }
    }

    /// Gives each block room for its rows.
    fn fit(&mut self, kept: &[Vec<i64>]) {
        let step = step(self.size);
        let rounded = |rows: usize| rows.next_multiple_of(step);
        for (needed, rows) in self.needed.iter_mut().zip(kept) {
            *needed = rounded(rows.len()).max(*needed);
        }
        self.runs += 1;
        if self.runs == PERIOD {
            self.room.clone_from(&self.needed);
            self.runs = 0;
            self.needed.iter_mut().zip(kept).for_each(|(needed, rows)| *needed = rounded(rows.len()));
        }
        self.room.iter_mut().zip(&self.needed).for_each(|(room, needed)| *room = (*room).max(*needed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(texts: &[&str]) -> Vec<Mask> {
        texts.iter().map(|text| text.parse().expect("a mask")).collect()
    }

    fn of(rows: &mut Rows, texts: &[&str]) -> (Vec<i64>, Vec<i64>) {
        rows.of(&masks(texts).iter().collect::<Vec<_>>())
    }

    #[test]
    fn each_block_gets_the_images_that_keep_it() {
        let mut rows = Rows::new(3, None);
        assert_eq!(of(&mut rows, &["101", "001", "100"]), (vec![0, 2, 0, 1, 0], vec![2, 0, 2, 1]));
        assert_eq!(of(&mut rows, &["000"]), (vec![0], vec![0, 0, 0, 1]));
    }

    #[test]
    fn shapes_stay_until_a_block_needs_more_rows_or_has_needed_less_for_long() {
        let mut rows = Rows::new(3, Some(8));
        assert_eq!(of(&mut rows, &["101", "001"]), (vec![0, 0, 1, 0], vec![1, 0, 2, 1]));
        assert_eq!(of(&mut rows, &["001"]), (vec![1, 0, 1, 0], vec![1, 0, 2, 1]), "the row behind the images fills up");
        assert_eq!(of(&mut rows, &["010", "110"]), (vec![1, 0, 1, 2, 2, 0], vec![1, 2, 2, 1]));
        for _ in 0..2 * PERIOD {
            of(&mut rows, &["001"]);
        }
        assert_eq!(of(&mut rows, &["001"]), (vec![0, 0], vec![0, 0, 1, 1]));
    }

    #[test]
    fn a_full_batch_fills_up_with_rows_that_keep_the_block() {
        let mut rows = Rows::new(2, Some(4));
        assert_eq!(of(&mut rows, &["10", "10", "11"]), (vec![0, 1, 2, 2, 0], vec![3, 1, 1]));
        assert_eq!(
            of(&mut rows, &["00", "10", "00", "10"]),
            (vec![1, 3, 1, 0], vec![3, 0, 1]),
            "a block of none has none"
        );
        assert_eq!(of(&mut rows, &["00"; 4]), (vec![0], vec![0, 0, 1]));
    }

    #[test]
    fn rooms_are_eighths_of_the_size() {
        let mut rows = Rows::new(1, Some(32));
        assert_eq!(of(&mut rows, &["1"; 9]).1, [12, 1]);
        assert_eq!(of(&mut rows, &["1"; 32]).1, [32, 1]);
    }
}
