//! How many images a session runs at a time.

/// What a choice has to save at least to be worth it: estimates are not exact.
pub(super) const WORTH: f64 = 0.95;

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

    /// How `images` are run: all at once, or a power of two of them and then the others, where that takes less by the `seconds`
    /// of a batch of a size.
    pub(super) fn parts(self, images: usize, seconds: impl Fn(usize) -> f64) -> Vec<usize> {
        match self {
            Self::Any => vec![images],
            Self::Powers => split(images, &seconds).0,
        }
    }

    /// What a session for `images` images runs some of them as: in steps of an eighth of its size, where that is fixed, so that
    /// there are few shapes.
    pub(super) fn rows(self, images: usize, rows: usize) -> usize {
        self.of(images).map_or(rows, |size| rounded(size, rows))
    }
}

/// What a session of that `size` runs so many `rows` as.
pub(super) fn rounded(size: usize, rows: usize) -> usize {
    rows.next_multiple_of((size / 8).max(1))
}

/// The parts of so many images and the seconds of all.
fn split(images: usize, seconds: &impl Fn(usize) -> f64) -> (Vec<usize>, f64) {
    let size = images.next_power_of_two();
    let whole = (vec![images], seconds(size));
    if images < 2 || images == size {
        return whole;
    }
    let (rest, rest_seconds) = split(images - size / 2, seconds);
    let apart = seconds(size / 2) + rest_seconds;
    if apart < WORTH * whole.1 { ([vec![size / 2], rest].concat(), apart) } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_split_where_that_is_cheaper_than_filling_them_up() {
        let parts = |images, fixed: f64| Sizes::Powers.parts(images, |size| fixed + size as f64);
        // Where images alone cost, nothing is filled up; where a run costs most, everything runs at once.
        assert_eq!(parts(72, 0.0), [64, 8]);
        assert_eq!(parts(7, 0.0), [4, 2, 1]);
        assert_eq!(parts(72, 1000.0), [72]);
        assert_eq!(parts(100, 10.0), [64, 32, 4]);
        assert_eq!(parts(127, 1.0), [127], "one more is nothing");
        assert_eq!([0, 1, 2, 64].map(|images| parts(images, 0.0)), [[0], [1], [2], [64]]);
        assert_eq!(Sizes::Any.parts(72, |size| size as f64), [72]);
    }

    #[test]
    fn sizes_hold_the_images_and_are_few() {
        assert_eq!([1, 2, 3, 8, 9].map(|images| Sizes::Powers.of(images).unwrap()), [1, 2, 4, 8, 16]);
        assert_eq!(Sizes::Powers.up_to(5), [1, 2, 4, 8].map(Some));
        assert_eq!((Sizes::Powers.up_to(1), Sizes::Any.up_to(9)), (vec![Some(1)], vec![None]));
        assert_eq!([0, 1, 2, 3].map(|rows| Sizes::Powers.rows(15, rows)), [0, 2, 2, 4]);
        assert_eq!((Sizes::Any.of(9), Sizes::Any.rows(9, 3)), (None, 3));
    }
}
