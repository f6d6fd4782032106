//! The input tensor `image` to images: FP32 `[N, 3, H, W]`, normalised already, or BYTES `[N]`, encoded files.

use bytes::{Buf, Bytes};

use crate::bundle::InputSpec;
use crate::server::classify::Image;
use crate::server::error::{Error, Kind};
use crate::text::shortened;

/// Name of a model's only input.
pub(in crate::server) const INPUT: &str = "image";

/// A tensor's contents, as a transport has them.
pub(in crate::server) enum Contents {
    /// Little endian; of BYTES each element's length, a 32-bit number, and then its bytes.
    Raw(Bytes),
    Floats(Vec<f32>),
    Files(Vec<Bytes>),
}

impl Contents {
    fn what(&self) -> &'static str {
        match self {
            Self::Raw(_) => "bytes",
            Self::Floats(_) => "numbers",
            Self::Files(_) => "strings",
        }
    }
}

fn wrong(problem: String) -> Error {
    Error::new(Kind::InvalidBody, format!("inputs: {problem}"))
}

/// What an input tensor has to hold, by its name, datatype and shape.
pub(in crate::server) struct Expected {
    count: usize,
    of: Of,
}

enum Of {
    /// So many values an image; the shape is for messages.
    Floats {
        each: usize,
        shape: String,
    },
    Files,
}

impl Expected {
    /// What an input of a model that takes `input` has to hold, with at most `most` images.
    ///
    /// # Errors
    /// Name, datatype or shape do not fit the model.
    pub(in crate::server) fn new(
        input: &InputSpec,
        name: &str,
        datatype: &str,
        shape: &[i64],
        most: usize,
    ) -> Result<Self, Error> {
        if name != INPUT {
            return Err(wrong(format!("found one named '{}', expected {INPUT}", shortened(name))));
        }
        match datatype {
            "FP32" => {
                let (height, width) = (input.height, input.width);
                let of_images = shape.len() == 4 && shape[1..] == [3, height as i64, width as i64];
                if !of_images {
                    let shown = shown(shape);
                    return Err(wrong(format!("found FP32 of shape {shown}, expected [N,3,{height},{width}]")));
                }
                // The count is bounded and the rest is the model's own: no product overflows.
                let of = Of::Floats { each: 3 * height * width, shape: shown(shape) };
                Ok(Self { count: batch(shape[0], most)?, of })
            }
            "BYTES" => {
                // [N,1] is what clients send that keep a dimension for the batch.
                let ([size] | [size, 1]) = shape else {
                    return Err(wrong(format!("found BYTES of shape {}, expected [N]", shown(shape))));
                };
                Ok(Self { count: batch(*size, most)?, of: Of::Files })
            }
            other => Err(wrong(format!(
                "found datatype '{}' of {INPUT}, expected FP32 (normalised pixels) or BYTES (encoded images)",
                shortened(other)
            ))),
        }
    }

    /// How many values or files.
    pub(in crate::server) fn values(&self) -> usize {
        match self.of {
            Of::Floats { each, .. } => self.count * each,
            Of::Files => self.count,
        }
    }

    /// Whether it holds encoded files, not values.
    pub(in crate::server) fn takes_files(&self) -> bool {
        matches!(self.of, Of::Files)
    }

    /// The images of `contents`.
    ///
    /// # Errors
    /// They are not what is expected, or a value is not finite.
    pub(in crate::server) fn images(&self, contents: Contents) -> Result<Vec<Image>, Error> {
        match &self.of {
            Of::Floats { each, shape } => floats(self.values(), *each, shape, contents),
            Of::Files => files(self.count, contents),
        }
    }
}

fn batch(size: i64, most: usize) -> Result<usize, Error> {
    match usize::try_from(size) {
        Err(_) | Ok(0) => Err(wrong(format!("found a batch of {size} images, expected 1 to {most}"))),
        Ok(size) if size > most => Err(Error::too_many_images(most)),
        Ok(size) => Ok(size),
    }
}

fn floats(expected: usize, each: usize, shape: &str, contents: Contents) -> Result<Vec<Image>, Error> {
    let misfit = |found: usize, unit: &str, expected: usize| {
        wrong(format!("found {found} {unit}, expected {expected} for FP32 of shape {shape}"))
    };
    let values: Vec<f32> = match contents {
        Contents::Raw(raw) if raw.len() != 4 * expected => return Err(misfit(raw.len(), "bytes", 4 * expected)),
        Contents::Raw(raw) => {
            raw.chunks_exact(4).map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]])).collect()
        }
        Contents::Floats(values) if values.len() != expected => return Err(misfit(values.len(), "values", expected)),
        Contents::Floats(values) => values,
        Contents::Files(_) => return Err(wrong(format!("found {}, expected numbers for FP32", contents.what()))),
    };
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(wrong(format!("found {} at value {at}, expected finite numbers", values[at])));
    }
    Ok(values.chunks_exact(each).map(|image| Image::Pixels(image.to_vec())).collect())
}

fn files(count: usize, contents: Contents) -> Result<Vec<Image>, Error> {
    let files = match contents {
        Contents::Raw(raw) => elements(raw, count)?,
        Contents::Files(files) if files.len() != count => {
            let found = files.len();
            return Err(wrong(format!("found {found} elements, expected {count} for BYTES of shape [{count}]")));
        }
        Contents::Files(files) => files,
        Contents::Floats(_) => return Err(wrong(format!("found {}, expected strings for BYTES", contents.what()))),
    };
    Ok(files.into_iter().map(Image::Encoded).collect())
}

/// The `count` elements of BYTES in binary form.
fn elements(mut raw: Bytes, count: usize) -> Result<Vec<Bytes>, Error> {
    let mut found = Vec::with_capacity(count);
    for element in 0..count {
        if raw.len() < 4 {
            let left = raw.len();
            return Err(wrong(format!("found {left} bytes left at element {element}, expected its length in 4 bytes")));
        }
        let length = raw.get_u32_le() as usize;
        if length > raw.len() {
            let left = raw.len();
            return Err(wrong(format!("element {element} states {length} bytes, found {left} after its length")));
        }
        found.push(raw.split_to(length));
    }
    if raw.is_empty() {
        return Ok(found);
    }
    Err(wrong(format!("found {} bytes after the last of {count} elements, expected none", raw.len())))
}

/// A shape as in JSON; of one with absurdly many dimensions only how many there are.
fn shown(shape: &[i64]) -> String {
    if shape.len() > 8 {
        return format!("of {} dimensions", shape.len());
    }
    let sizes: Vec<String> = shape.iter().map(i64::to_string).collect();
    format!("[{}]", sizes.join(","))
}
