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

    /// As [`of`](Self::of), where one row more than the images is needed.
    pub(super) fn with_spare(self, images: usize) -> Option<usize> {
        self.of(images + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_hold_the_images_and_are_few() {
        assert_eq!([1, 2, 3, 8, 9].map(|images| Sizes::Powers.of(images).unwrap()), [1, 2, 4, 8, 16]);
        assert_eq!([1, 7, 8].map(|images| Sizes::Powers.with_spare(images).unwrap()), [2, 8, 16]);
        assert_eq!((Sizes::Any.of(9), Sizes::Any.with_spare(9)), (None, None));
    }
}
