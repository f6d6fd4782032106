//! How many images a session runs at a time.

/// The sizes of batches that a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sizes {
    /// Any: a graph's batch dimension is free.
    Any,
    /// A session for each power of two, smaller batches filled up: cuDNN plans every convolution anew when its shape changes,
    /// and a CUDA graph is of one shape.
    Powers,
}

impl Sizes {
    /// The size that a session for `images` images is made for; `None` where it takes any.
    pub(super) fn of(self, images: usize) -> Option<usize> {
        match self {
            Self::Any => None,
            Self::Powers => Some(images.next_power_of_two()),
        }
    }

    /// Those of batches of up to `most` images, the smallest first.
    pub(super) fn up_to(self, most: usize) -> Vec<Option<usize>> {
        match self {
            Self::Any => vec![None],
            Self::Powers => (0..=most.next_power_of_two().ilog2()).map(|power| Some(1 << power)).collect(),
        }
    }

    /// What a session for `images` images runs some of them as: in steps of an eighth of its size, where that is fixed, so that
    /// there are few shapes.
    pub(super) fn rows(self, images: usize, rows: usize) -> usize {
        self.of(images).map_or(rows, |size| rows.next_multiple_of(step(size)))
    }
}

/// Rows that are added to a shape at a time, in a session of that `size`.
pub(super) fn step(size: usize) -> usize {
    (size / 8).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_hold_the_images_and_are_few() {
        assert_eq!([1, 2, 3, 8, 9].map(|images| Sizes::Powers.of(images).unwrap()), [1, 2, 4, 8, 16]);
        assert_eq!(Sizes::Powers.up_to(5), [1, 2, 4, 8].map(Some));
        assert_eq!((Sizes::Powers.up_to(1), Sizes::Any.up_to(9)), (vec![Some(1)], vec![None]));
        assert_eq!([0, 1, 2, 3].map(|rows| Sizes::Powers.rows(15, rows)), [0, 2, 2, 4]);
        assert_eq!((Sizes::Any.of(9), Sizes::Any.rows(9, 3)), (None, 3));
    }
}
