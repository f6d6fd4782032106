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
        let bound = Bound::new(session, sessions.provider, &bundle.stem.input, &bundle.head.output, size, false);
        Ok(Self { bound, rows: Rows::new(bundle.blocks.len(), size) })
    }

    /// Class logits, `[C]`, of each image through the blocks of its mask.
    ///
    /// # Panics
    /// An image is not of the model's input size, a mask not as long as there are blocks, or there are more images than the
    /// size, where that is fixed.
    pub(super) fn run(&mut self, images: &[(&Mask, &[f32])]) -> Result<Vec<Vec<f32>>, EngineError> {
        let (masks, pixels): (Vec<&Mask>, Vec<&[f32]>) = images.iter().copied().unzip();
        let (rows, counts) = self.rows.of(&masks, self.bound.size(images.len()));
        let rows = Tensor::from_array(([rows.len()], rows))?;
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
    /// Where the shapes of one run are to be those of the next: how many rows each block gets. Filled up with the first image,
    /// of which nobody wants that result.
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

    /// For each block the positions of the images that it runs on, and for each block where the result of every image is, as the
    /// graph takes them; and how many these are of each.
    fn of(&mut self, masks: &[&Mask], size: usize) -> (Vec<i64>, Vec<i64>) {
        assert!(masks.iter().all(|mask| mask.len() == self.blocks), "a mask has a bit for each block");
        let mut kept = vec![Vec::new(); self.blocks];
        // Whoever does not keep a block has the result of the shortcut.
        let mut places: Vec<Vec<i64>> = vec![(0..size as i64).collect(); self.blocks];
        for (row, mask) in masks.iter().enumerate() {
            for (_, (rows, places)) in mask.iter().zip(kept.iter_mut().zip(&mut places)).filter(|(keep, _)| *keep) {
                places[row] = (size + rows.len()) as i64;
                rows.push(row as i64);
            }
        }
        if let Some(steady) = &mut self.steady {
            steady.fit(&kept);
            kept.iter_mut().zip(&steady.room).for_each(|(rows, &room)| rows.resize(room, 0));
        }
        let parts = [kept, places].concat();
        let counts = parts.iter().map(|rows| rows.len() as i64).collect();
        (parts.concat(), counts)
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

    /// What a batch of these masks and so many images has, by block: the images that it runs on, and where the results are.
    fn of(rows: &mut Rows, texts: &[&str], size: usize) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
        let (all, counts) = rows.of(&masks(texts).iter().collect::<Vec<_>>(), size);
        let mut left = &*all;
        let parts = counts.iter().map(|&count| left.split_off(..count as usize).expect("as many as counted").to_vec());
        let mut parts: Vec<Vec<i64>> = parts.collect();
        assert!(left.is_empty());
        let places = parts.split_off(rows.blocks);
        (parts, places)
    }

    #[test]
    fn each_block_gets_the_images_that_keep_it() {
        let mut rows = Rows::new(3, None);
        let (taken, places) = of(&mut rows, &["101", "001", "100"], 3);
        assert_eq!(taken, [vec![0, 2], vec![], vec![0, 1]]);
        assert_eq!(places, [[3, 1, 4], [0, 1, 2], [3, 4, 2]]);
        assert_eq!(of(&mut rows, &["000"], 1), (vec![vec![]; 3], vec![vec![0]; 3]));
    }

    #[test]
    fn shapes_stay_until_a_block_needs_more_rows_or_has_needed_less_for_long() {
        let mut rows = Rows::new(3, Some(8));
        let mut taken = |texts: &[&str]| of(&mut rows, texts, 8).0;
        assert_eq!(taken(&["101", "001"]), [vec![0], vec![], vec![0, 1]]);
        assert_eq!(taken(&["001"]), [vec![0], vec![], vec![0, 0]]);
        assert_eq!(taken(&["010", "110"]), [vec![1], vec![0, 1], vec![0, 0]]);
        for _ in 0..2 * PERIOD {
            taken(&["001"]);
        }
        assert_eq!(taken(&["001"]), [vec![], vec![], vec![0]]);
        // Of rows that fill up, and of images that are none, nobody looks for a result.
        let (_, places) = of(&mut rows, &["001", "100"], 8);
        assert_eq!(places[0], [0, 8, 2, 3, 4, 5, 6, 7]);
        assert_eq!(places[2], [8, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn rooms_are_eighths_of_the_size() {
        let mut rows = Rows::new(1, Some(32));
        assert_eq!(of(&mut rows, &["1"; 9], 32).0[0].len(), 12);
        assert_eq!(of(&mut rows, &["1"; 32], 32).0[0].len(), 32);
    }
}
