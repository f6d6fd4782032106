//! Inputs that no correct server answers.

use bytes::Bytes;
use image::{Rgb, RgbImage};

use super::written;
use crate::plan::Format;

/// An input that a server has to refuse.
#[derive(Debug, Clone)]
pub struct Bad {
    /// What it is.
    pub name: &'static str,
    pub bytes: Bytes,
}

/// The kinds, always the same.
pub(super) fn inputs() -> Vec<Bad> {
    let image = RgbImage::from_fn(24, 24, |x, y| Rgb([(x * 10) as u8, (y * 10) as u8, (x * y) as u8]));
    let file = |format| written(&image, format).unwrap_or_default().to_vec();
    let (png, jpeg) = (file(Format::Png), file(Format::Jpeg));
    let bad = |name, bytes: Vec<u8>| Bad { name, bytes: bytes.into() };
    vec![
        bad("empty", Vec::new()),
        bad("text", b"This is a sentence and no image.\n".to_vec()),
        bad("cut-off PNG", png[..png.len().min(HEADER + 6)].to_vec()),
        bad("cut-off JPEG", jpeg[..marker(&jpeg, &[0xda])].to_vec()),
        bad("damaged PNG", flipped(&png, HEADER - 17..HEADER - 9)),
        bad("damaged JPEG", {
            let precision = marker(&jpeg, &[0xc0, 0xc1, 0xc2]) + 4;
            flipped(&jpeg, precision..precision + 1)
        }),
        bad("empty TIFF", b"II*\0\x08\0\0\0\0\0\0\0\0\0".to_vec()),
        bad("PDF", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n".to_vec()),
        bad("PNG of 60000 x 60000", bomb()),
    ]
}

/// A PNG's signature and its first chunk, IHDR.
const HEADER: usize = 33;

/// Where the first of `markers` is in a JPEG file; its end where there is none.
fn marker(jpeg: &[u8], markers: &[u8]) -> usize {
    jpeg.windows(2).position(|pair| pair[0] == 0xff && markers.contains(&pair[1])).unwrap_or(jpeg.len())
}

fn flipped(file: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let mut file = file.to_vec();
    for byte in file.get_mut(range).unwrap_or_default() {
        *byte = !*byte;
    }
    file
}

/// A sound header that claims 3.6 gigapixels, and next to nothing after it.
fn bomb() -> Vec<u8> {
    const SIDE: u32 = 60_000;
    let mut header = Vec::new();
    header.extend_from_slice(&SIDE.to_be_bytes());
    header.extend_from_slice(&SIDE.to_be_bytes());
    // Eight bits, RGB, nothing special.
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    // An empty zlib stream as the pixels.
    for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]), (b"IEND", &[])] {
        let length = u32::try_from(data.len()).unwrap_or(0);
        file.extend_from_slice(&length.to_be_bytes());
        let start = file.len();
        file.extend_from_slice(kind);
        file.extend_from_slice(data);
        let sum = crc(&file[start..]);
        file.extend_from_slice(&sum.to_be_bytes());
    }
    file
}

/// PNG's CRC-32 (ISO 3309).
fn crc(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use blockdrop::image::{MAX_PIXELS, decode};

    use super::*;

    #[test]
    fn every_kind_is_refused_and_for_its_own_reason() {
        for bad in inputs() {
            let error = decode(&bad.bytes, MAX_PIXELS).expect_err(bad.name).to_string();
            let why = match bad.name {
                "empty" => "empty",
                "text" | "empty TIFF" | "PDF" => "type is unknown",
                "PNG of 60000 x 60000" => "60000 x 60000",
                _ => "damaged",
            };
            assert!(error.contains(why), "{}: {error}", bad.name);
        }
    }

    #[test]
    fn the_checksum_is_pngs() {
        assert_eq!(crc(b"IEND"), 0xae42_6082);
    }
}
