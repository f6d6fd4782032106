//! Bytes to a model's input: type by magic bytes, limits before decoding, resize, crop, normalise.

use std::cell::RefCell;
use std::io::Cursor;
use std::panic::AssertUnwindSafe;

use fast_image_resize::images::{Image as Resized, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::error::LimitErrorKind;
use image::{DynamicImage, ImageDecoder, ImageError as DecodeError, ImageFormat, ImageReader, RgbImage};

use crate::bundle::{Filter, InputSpec};

/// The types that are read, for messages.
pub const TYPES: &str = "JPEG, PNG, WebP, BMP or GIF";

/// Pixels of an image, at most, where nothing else is said.
pub const MAX_PIXELS: u64 = 64_000_000;

/// Pixels of a side, at most: what JPEG and GIF can have. A row of it is small whatever the format, and decoders hold
/// several.
const LONGEST_SIDE: u32 = 65_535;

/// Bytes of a colour profile, at most, beside what the file itself has: those in use have a few million.
const PROFILE: u64 = 4 << 20;

/// An image that cannot be classified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("the image is empty, expected the bytes of a {TYPES} file")]
    Empty,
    #[error("the image's type is unknown (it starts with {start}), expected {TYPES}")]
    UnknownType { start: String },
    #[error("the image has {width} x {height} pixels, expected at most {most} pixels")]
    TooManyPixels { width: u32, height: u32, most: u64 },
    #[error("the image has a side of more than {LONGEST_SIDE} pixels, expected at most {LONGEST_SIDE}")]
    TooLong,
    #[error("the image needs more memory than {most} pixels take, expected at most {most} pixels")]
    TooMuchMemory { most: u64 },
    #[error("the {kind} image is damaged: {reason}; expected a whole {kind} file")]
    Damaged { kind: &'static str, reason: String },
}

/// Decodes the image in `bytes` (of an animation, the first frame) to RGB, turned upright where its EXIF data says so.
/// Transparency is dropped.
///
/// # Errors
/// No bytes, none of [`TYPES`], more than `max_pixels` pixels (found before anything is allocated for them), or a
/// truncated or otherwise damaged file.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let (format, kind) = sniff(bytes).ok_or_else(|| {
        let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        ImageError::UnknownType { start: start.join(" ") }
    })?;
    let damaged = |reason: String| ImageError::Damaged { kind, reason };
    if format == ImageFormat::Jpeg && !ends(bytes) {
        return Err(damaged("it is cut off before its end".to_owned()));
    }
    // A panic in a decoder is the input's doing: it is refused like any other damage.
    std::panic::catch_unwind(AssertUnwindSafe(|| decode_as(format, kind, bytes, max_pixels)))
        .unwrap_or_else(|_| Err(damaged("its decoder failed".to_owned())))
}

fn decode_as(format: ImageFormat, kind: &'static str, bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageError> {
    let damaged = |error: DecodeError| match error {
        DecodeError::Limits(limit) if limit.kind() == LimitErrorKind::DimensionError => ImageError::TooLong,
        DecodeError::Limits(_) => ImageError::TooMuchMemory { most: max_pixels },
        error => ImageError::Damaged { kind, reason: error.to_string() },
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits(format, bytes.len(), max_pixels));
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, most: max_pixels });
    }
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    if image.width() == 0 || image.height() == 0 {
        return Err(ImageError::Damaged { kind, reason: "it has no pixels".to_owned() });
    }
    // Turned as RGB: that copy is the smallest.
    let mut image = DynamicImage::ImageRgb8(image.into_rgb8());
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// What a decoder of `format` may take for a file of `length` bytes.
fn limits(format: ImageFormat, length: usize, max_pixels: u64) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    (limits.max_image_width, limits.max_image_height) = (Some(LONGEST_SIDE), Some(LONGEST_SIDE));
    limits.max_alloc = Some(match format {
        // Of what is beside the pixels: chunks as they are, once more as they are kept, a row, and a colour profile,
        // which is compressed. One that is larger is passed over.
        ImageFormat::Png => 2 * length as u64 + PROFILE,
        // The widest pixels, 16-bit RGBA, take eight bytes.
        _ => max_pixels.saturating_mul(8).saturating_add(1 << 20),
    });
    limits
}

fn sniff(bytes: &[u8]) -> Option<(ImageFormat, &'static str)> {
    match image::guess_format(bytes).ok()? {
        format @ ImageFormat::Jpeg => Some((format, "JPEG")),
        format @ ImageFormat::Png => Some((format, "PNG")),
        format @ ImageFormat::WebP => Some((format, "WebP")),
        format @ ImageFormat::Bmp => Some((format, "BMP")),
        format @ ImageFormat::Gif => Some((format, "GIF")),
        _ => None,
    }
}

/// Whether a JPEG file has its end marker. The decoder fills what is missing with grey and says nothing.
fn ends(jpeg: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    loop {
        match jpeg.get(at..at + 4) {
            // The marker of the first scan: from here on FF D9 can only be the end of the image.
            Some([0xff, START_OF_SCAN, ..]) => return jpeg[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            // A filling byte before a marker, or a marker without a length.
            Some([0xff, 0xff, ..]) => at += 1,
            Some([0xff, 0x01 | 0xd0..=0xd7, ..]) => at += 2,
            Some(&[0xff, _, high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
            // Not a marker: leave it to the decoder. No more bytes: cut off.
            Some(_) => return true,
            None => return false,
        }
    }
}

/// The tensor `[3, height, width]` of `image` for a model: short side to `resize.short_side`, centre crop, RGB in
/// \[0, 1\], then `(x - mean) / std`. An image that has the input's size already is not resampled.
pub fn preprocess(image: &RgbImage, input: &InputSpec) -> Vec<f32> {
    let resized;
    let pixels = if (image.width() as usize, image.height() as usize) == (input.width, input.height)
        && input.resize.short_side == input.width.min(input.height)
    {
        image.as_raw().as_slice()
    } else {
        resized = resize(image, input);
        &resized
    };
    normalise(pixels, input)
}

thread_local! {
    /// Keeps its buffers from image to image.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// The centre of the image, resampled straight to the input's size: what is cropped away is never computed, whatever
/// the image's shape.
fn resize(image: &RgbImage, input: &InputSpec) -> Vec<u8> {
    let algorithm = match input.resize.filter {
        Filter::Nearest => ResizeAlg::Nearest,
        Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        Filter::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
    };
    let (left, width) = span(image.width(), image.height(), input.resize.short_side, input.width);
    let (top, height) = span(image.height(), image.width(), input.resize.short_side, input.height);
    let options = ResizeOptions::new().resize_alg(algorithm).crop(left, top, width, height).use_alpha(false);
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .expect("an RGB image has three bytes a pixel");
    let mut target = Resized::new(input.width as u32, input.height as u32, PixelType::U8x3);
    RESIZER.with_borrow_mut(|resizer| {
        resizer.resize(&source, &mut target, &options).expect("a crop inside the image, both of 8-bit RGB");
    });
    target.into_vec()
}

/// Where the crop lies on one side of the original image: its offset and length, in pixels.
///
/// As torchvision's `Resize(short)` and `CenterCrop(crop)` place it: the resized side is rounded down, the offset to
/// the nearest even.
fn span(side: u32, other: u32, short: usize, crop: usize) -> (f64, f64) {
    let resized =
        if side <= other { short as f64 } else { (short as f64 * f64::from(side) / f64::from(other)).floor() };
    let offset = ((resized - crop as f64) / 2.0).round_ties_even();
    let scale = f64::from(side) / resized;
    let (start, length) = (offset * scale, crop as f64 * scale);
    let start = start.min(f64::from(side) - length).max(0.0);
    (start, length.min(f64::from(side) - start))
}

/// RGB rows to planes, `(x / 255 - mean) / std`.
fn normalise(pixels: &[u8], input: &InputSpec) -> Vec<f32> {
    let plane = input.width * input.height;
    let mut tensor = vec![0.0; 3 * plane];
    for (channel, values) in tensor.chunks_exact_mut(plane).enumerate() {
        let (mean, std) = (input.mean[channel], input.std[channel]);
        for (value, pixel) in values.iter_mut().zip(pixels.chunks_exact(3)) {
            *value = (f32::from(pixel[channel]) / 255.0 - mean) / std;
        }
    }
    tensor
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use proptest::prelude::*;

    use super::*;
    use crate::bundle::Resize;

    const MOST: u64 = 1 << 20;

    fn spec(side: usize, short_side: usize) -> InputSpec {
        InputSpec {
            channels: 3,
            height: side,
            width: side,
            mean: [0.5, 0.25, 0.0],
            std: [0.5, 0.25, 1.0],
            resize: Resize { short_side, filter: Filter::Bilinear },
        }
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 128]))
    }

    fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    const FORMATS: [ImageFormat; 5] =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];

    #[test]
    fn every_type_decodes_to_its_pixels() {
        let image = gradient(40, 30);
        for format in FORMATS {
            let decoded = decode(&encode(&image, format), MOST).unwrap();
            assert_eq!(decoded.dimensions(), (40, 30), "{format:?}");
            let apart = decoded.as_raw().iter().zip(image.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // JPEG loses, GIF has a palette, the others are exact.
            let allowed = if matches!(format, ImageFormat::Jpeg | ImageFormat::Gif) { 40 } else { 0 };
            assert!(apart <= allowed, "{format:?} is {apart} off");
        }
    }

    #[test]
    fn grey_alpha_and_deep_images_become_rgb() {
        let deep = DynamicImage::ImageRgb8(gradient(8, 8));
        for image in [
            DynamicImage::ImageLuma8(deep.to_luma8()),
            DynamicImage::ImageRgba8(deep.to_rgba8()),
            DynamicImage::ImageRgba16(deep.to_rgba16()),
        ] {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, ImageFormat::Png).unwrap();
            assert_eq!(decode(bytes.get_ref(), MOST).unwrap(), image.to_rgb8());
        }
    }

    #[test]
    fn truncated_files_of_every_type_are_refused() {
        let image = gradient(64, 64);
        for format in FORMATS {
            let bytes = encode(&image, format);
            for part in [0.2, 0.5, 0.9] {
                let cut = &bytes[..(bytes.len() as f64 * part) as usize];
                let error = decode(cut, MOST).expect_err("a file cut off");
                assert!(matches!(error, ImageError::Damaged { .. }), "{format:?} at {part}: {error}");
            }
        }
    }

    #[test]
    fn pixels_are_counted_before_they_are_decoded() {
        // The header of a BMP of 60,000 x 60,000 pixels, and nothing after it.
        let mut bytes = encode(&gradient(2, 2), ImageFormat::Bmp);
        bytes[18..22].copy_from_slice(&60_000i32.to_le_bytes());
        bytes[22..26].copy_from_slice(&60_000i32.to_le_bytes());
        let error = decode(&bytes, MOST).unwrap_err();
        assert_eq!(error, ImageError::TooManyPixels { width: 60_000, height: 60_000, most: MOST });
        assert!(decode(&encode(&gradient(33, 31), ImageFormat::Png), 1023).is_ok());
        assert!(decode(&encode(&gradient(32, 32), ImageFormat::Png), 1023).is_err());
    }

    /// A PNG file with these chunks, of which a decoder sees no more than its limits let it.
    fn chunks(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, content) in chunks {
            let mut sum = flate2::Crc::new();
            sum.update(*name);
            sum.update(content);
            bytes.extend((content.len() as u32).to_be_bytes());
            bytes.extend([&name[..], content, &sum.sum().to_be_bytes()].concat());
        }
        bytes
    }

    fn zlib(bytes: usize) -> Vec<u8> {
        let mut packed = Vec::new();
        let zeros = std::io::Read::take(std::io::repeat(0), bytes as u64);
        std::io::Read::read_to_end(
            &mut flate2::read::ZlibEncoder::new(zeros, flate2::Compression::fast()),
            &mut packed,
        )
        .unwrap();
        packed
    }

    fn rgb(width: u32, height: u32) -> (&'static [u8; 4], Vec<u8>) {
        (b"IHDR", [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat())
    }

    #[test]
    fn rows_are_short_whatever_the_shape() {
        let decoded = |width: u32, height: u32| {
            let pixels = zlib(height as usize * (1 + 3 * width as usize));
            decode(&chunks(&[rgb(width, height), (b"IDAT", pixels), (b"IEND", Vec::new())]), MOST)
        };
        assert_eq!(decoded(65_535, 1).unwrap().dimensions(), (65_535, 1));
        assert_eq!(decoded(1, 65_535).unwrap().dimensions(), (1, 65_535));
        assert_eq!(decoded(65_536, 1), Err(ImageError::TooLong));
        assert_eq!(decoded(1, 65_536), Err(ImageError::TooLong));
    }

    #[test]
    fn a_colour_profile_takes_little_however_much_it_unpacks_to() {
        let with = |profile: usize| {
            let profile = [b"name\0\0", &zlib(profile)[..]].concat();
            let png = chunks(&[rgb(1, 1), (b"iCCP", profile), (b"IDAT", zlib(4)), (b"IEND", Vec::new())]);
            assert_eq!(decode(&png, MOST).unwrap().dimensions(), (1, 1));
            let limits = limits(ImageFormat::Png, png.len(), MOST);
            let mut decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(png), limits).unwrap();
            decoder.icc_profile().unwrap().map(|profile| profile.len())
        };
        assert_eq!(with(3 << 20), Some(3 << 20));
        assert_eq!(with(64 << 20), None);
    }

    #[test]
    fn other_bytes_are_named() {
        assert_eq!(decode(b"", MOST), Err(ImageError::Empty));
        let error = decode(b"%PDF-1.7 and more", MOST).unwrap_err().to_string();
        assert!(error.contains("25 50 44 46 2d 31 2e 37") && error.contains(TYPES), "{error}");
    }

    #[test]
    fn an_image_of_the_input_size_is_normalised_and_not_resampled() {
        let image = RgbImage::from_fn(4, 4, |x, y| Rgb([(16 * x) as u8, (16 * y) as u8, 255]));
        let tensor = preprocess(&image, &spec(4, 4));
        assert_eq!(tensor.len(), 48);
        assert_eq!(tensor[1], (16.0 / 255.0 - 0.5) / 0.5);
        assert_eq!(tensor[16 + 4], (16.0 / 255.0 - 0.25) / 0.25);
        assert_eq!(tensor[32], 1.0);
    }

    #[test]
    fn the_centre_is_kept_and_the_sides_are_cropped_away() {
        // Black with a white square in the middle: of a wide and of a tall image only the white is left.
        for (width, height) in [(96u32, 32u32), (32, 96)] {
            let image = RgbImage::from_fn(width, height, |x, y| {
                let inside = |at: u32, side: u32| (side - 32) / 2 <= at && at < (side + 32) / 2;
                if inside(x, width) && inside(y, height) { Rgb([255; 3]) } else { Rgb([0; 3]) }
            });
            // Shrinking also reads the pixels just outside, as resizing the whole image and then cropping does.
            for (side, least) in [(32, 1.0), (16, 0.85)] {
                let tensor = preprocess(&image, &spec(side, side));
                let darkest = tensor[2 * side * side..].iter().fold(1.0f32, |least, &value| least.min(value));
                assert!(darkest >= least, "{width} x {height} to {side}: {darkest}");
            }
        }
    }

    #[test]
    fn resizing_keeps_the_mean_of_what_it_shows() {
        let image = gradient(300, 200);
        let tensor = preprocess(&image, &spec(32, 32));
        // Columns 50 to 250 of 300 are shown, so red goes from 1/6 to 5/6 of its range.
        let red: Vec<f32> = tensor[..32 * 32].iter().map(|value| value * 0.5 + 0.5).collect();
        let mean = red.iter().sum::<f32>() / red.len() as f32;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((red[0] - 1.0 / 6.0).abs() < 0.02 && (red[31] - 5.0 / 6.0).abs() < 0.02, "{} {}", red[0], red[31]);
    }

    #[test]
    fn a_turned_photograph_is_set_upright() {
        // A red pixel left of a blue one, turned clockwise by a quarter in its EXIF data (orientation 6).
        let image = RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
        let jpeg = encode(&image, ImageFormat::Jpeg);
        let tiff =
            [&b"Exif\0\0II*\0\x08\0\0\0\x01\0"[..], &[0x12, 0x01, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]].concat();
        let mut turned = jpeg[..2].to_vec();
        turned.extend([0xff, 0xe1]);
        turned.extend(((tiff.len() + 2) as u16).to_be_bytes());
        turned.extend(tiff);
        turned.extend(&jpeg[2..]);
        let upright = decode(&turned, MOST).unwrap();
        assert_eq!(upright.dimensions(), (8, 16));
        assert!(upright.get_pixel(4, 1)[0] > 200 && upright.get_pixel(4, 14)[2] > 200);
    }

    proptest! {
        /// Whatever the bytes and the sizes, there is an error or a tensor of the input's size.
        #[test]
        fn damage_never_panics(format in 0usize..5, at in 0.0..1.0f64, byte: u8, width in 1u32..50, height in 1u32..50) {
            let mut bytes = encode(&gradient(width, height), FORMATS[format]);
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = byte;
            if let Ok(image) = decode(&bytes, MOST) {
                prop_assert_eq!(preprocess(&image, &spec(32, 40)).len(), 3 * 32 * 32);
            }
        }

        #[test]
        fn crops_lie_inside_the_image(width in 1u32..5000, height in 1u32..5000, crop in 1usize..300, more in 0usize..60) {
            for (side, other) in [(width, height), (height, width)] {
                let (start, length) = span(side, other, crop + more, crop);
                prop_assert!(start >= 0.0 && length > 0.0 && start + length <= f64::from(side) + 1e-9);
            }
        }
    }
}
