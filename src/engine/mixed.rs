//! Images of different masks in one batch: each block runs on those that keep it.

use std::sync::Arc;

use ort::value::Tensor;
use prost::Message;

use super::error::EngineError;
use super::rooms::Rooms;
use super::session::{Bound, Sessions};
use crate::bundle::{Bundle, COUNTS, ROWS, mix};
use crate::policy::Mask;

/// The whole net as one graph that takes any masks.
pub(super) struct Mixed {
    bound: Bound,
    blocks: usize,
    /// Where the shapes of one batch are to be those of the next.
    rooms: Option<Arc<Rooms>>,
}

impl Mixed {
    /// For `size` images at a time, with `rooms` for the blocks' rows, or for any number.
    pub(super) fn new(
        bundle: &Bundle,
        sessions: &Sessions,
        size: Option<usize>,
        rooms: &Arc<Rooms>,
    ) -> Result<Self, EngineError> {
        let session = sessions.make(&mix(bundle)?.encode_to_vec(), "the net as one graph for mixed masks", false)?;
        let bound = Bound::new(session, sessions, &bundle.stem.input, &bundle.head.output, size, false);
        Ok(Self { bound, blocks: bundle.blocks.len(), rooms: size.map(|_| Arc::clone(rooms)) })
    }

    /// Class logits, `[C]`, of each image through the blocks of its mask.
    ///
    /// # Panics
    /// An image is not of the model's input size, a mask not as long as there are blocks, or there are more images than the
    /// size, where that is fixed.
    pub(super) fn run(&mut self, images: &[(&Mask, &[f32])]) -> Result<Vec<Vec<f32>>, EngineError> {
        let (masks, pixels): (Vec<&Mask>, Vec<&[f32]>) = images.iter().copied().unzip();
        let size = self.bound.size(images.len());
        let (rows, counts) = rows(&masks, size, self.blocks, self.rooms.as_deref());
        let rows = Tensor::from_array(([rows.len()], rows))?;
        let counts = Tensor::from_array(([counts.len()], counts))?;
        self.bound.run_with(&pixels, &[(ROWS, rows), (COUNTS, counts)])
    }
}

/// For each block the positions of the images that it runs on, and for each block where the result of every image is, as the
/// graph takes them; and how many these are of each. Where there are `rooms`, the first image fills them up: nobody wants
/// that result.
fn rows(masks: &[&Mask], size: usize, blocks: usize, rooms: Option<&Rooms>) -> (Vec<i64>, Vec<i64>) {
    assert!(masks.iter().all(|mask| mask.len() == blocks), "a mask has a bit for each block");
    let mut kept = vec![Vec::new(); blocks];
    // Whoever does not keep a block has the result of the shortcut.
    let mut places: Vec<Vec<i64>> = vec![(0..size as i64).collect(); blocks];
    for (row, mask) in masks.iter().enumerate() {
        for (_, (rows, places)) in mask.iter().zip(kept.iter_mut().zip(&mut places)).filter(|(keep, _)| *keep) {
            places[row] = (size + rows.len()) as i64;
            rows.push(row as i64);
        }
    }
    if let Some(rooms) = rooms {
        let room = rooms.fit(size, &kept.iter().map(Vec::len).collect::<Vec<_>>());
        kept.iter_mut().zip(room).for_each(|(rows, room)| rows.resize(room, 0));
    }
    let parts = [kept, places].concat();
    let counts = parts.iter().map(|rows| rows.len() as i64).collect();
    (parts.concat(), counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a batch of these masks and so many images has, by block: the images that it runs on, and where the results are.
    fn of(rooms: Option<&Rooms>, texts: &[&str], size: usize) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
        let masks: Vec<Mask> = texts.iter().map(|text| text.parse().expect("a mask")).collect();
        let (all, counts) = rows(&masks.iter().collect::<Vec<_>>(), size, 3, rooms);
        let mut left = &*all;
        let parts = counts.iter().map(|&count| left.split_off(..count as usize).expect("as many as counted").to_vec());
        let mut parts: Vec<Vec<i64>> = parts.collect();
        assert!(left.is_empty());
        let places = parts.split_off(3);
        (parts, places)
    }

    #[test]
    fn each_block_gets_the_images_that_keep_it() {
        let (taken, places) = of(None, &["101", "001", "100"], 3);
        assert_eq!(taken, [vec![0, 2], vec![], vec![0, 1]]);
        assert_eq!(places, [[3, 1, 4], [0, 1, 2], [3, 4, 2]]);
        assert_eq!(of(None, &["000"], 1), (vec![vec![]; 3], vec![vec![0]; 3]));
    }

    #[test]
    fn the_first_image_fills_up_what_earlier_batches_needed() {
        let rooms = Rooms::new(3);
        let taken = |texts: &[&str]| of(Some(&rooms), texts, 8).0;
        assert_eq!(taken(&["101", "001"]), [vec![0], vec![], vec![0, 1]]);
        assert_eq!(taken(&["010", "110"]), [vec![1], vec![0, 1], vec![0, 0]]);
        // Of rows that fill up, and of images that are none, nobody looks for a result.
        let (_, places) = of(Some(&rooms), &["001", "100"], 8);
        assert_eq!(places[0], [0, 8, 2, 3, 4, 5, 6, 7]);
        assert_eq!(places[2], [8, 1, 2, 3, 4, 5, 6, 7]);
    }
}
