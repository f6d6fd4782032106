//! Images: bytes to a model's input tensor.

use std::io::Cursor;

use blockdrop::bundle::{Filter, InputSpec, Resize};
use blockdrop::image::{ImageError, decode, preprocess};
use image::{ImageFormat, RgbImage};

use crate::{Outcome, Refused, Taken, check_message};

/// Small, so that an input is quick, and that what takes more memory is seen.
const MOST_PIXELS: u64 = 1 << 16;

pub(crate) fn image(input: &[u8]) -> Outcome {
    let image = match decode(input, MOST_PIXELS) {
        Ok(image) => image,
        Err(error) => {
            check_message(&error.to_string());
            return Refused;
        }
    };
    let (width, height) = image.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    assert!((1..=MOST_PIXELS).contains(&pixels), "{width} x {height} pixels");
    assert_eq!(image.as_raw().len() as u64, 3 * pixels);
    assert_eq!(decode(input, pixels).as_ref(), Ok(&image), "it has no more pixels than it says");
    let fewer = decode(input, pixels - 1);
    assert!(
        matches!(fewer, Err(ImageError::TooManyPixels { .. } | ImageError::TooMuchMemory { .. })),
        "{width} x {height} pixels where fewer may be: {fewer:?}"
    );
    assert_eq!(decode(&bitmap(&image), MOST_PIXELS).as_ref(), Ok(&image), "as a bitmap it is the same image");
    for spec in specs() {
        let tensor = preprocess(&image, &spec);
        assert_eq!(tensor.len(), spec.channels * spec.height * spec.width);
        for (channel, values) in tensor.chunks_exact(spec.height * spec.width).enumerate() {
            let [least, most] = [0.0, 1.0].map(|value| (value - spec.mean[channel]) / spec.std[channel]);
            assert!(values.iter().all(|value| (least..=most).contains(value)), "{spec:?}: {values:?}");
        }
    }
    Taken
}

fn bitmap(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Bmp).expect("a bitmap in memory");
    bytes.into_inner()
}

/// A model for each filter: square, wide, tall, of one pixel.
fn specs() -> [InputSpec; 4] {
    [
        (Filter::Bilinear, 32, 32, 32),
        (Filter::Bicubic, 8, 24, 32),
        (Filter::Lanczos, 24, 8, 24),
        (Filter::Nearest, 1, 1, 40),
    ]
    .map(|(filter, height, width, short_side)| InputSpec {
        channels: 3,
        height,
        width,
        mean: [0.5, 0.25, 0.0],
        std: [0.5, 0.25, 1.0],
        resize: Resize { short_side, filter },
    })
}
