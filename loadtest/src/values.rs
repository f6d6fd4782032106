//! Values of settings, written the same way in flags and files.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::plan::{Arrivals, Format, Protocol};
use crate::record::Fault;

/// A value that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("found '{found}', expected {expected}")]
pub struct ValueError {
    found: String,
    expected: &'static str,
}

impl ValueError {
    pub(crate) fn new(found: &str, expected: &'static str) -> Self {
        Self { found: found.chars().take(80).collect(), expected }
    }
}

/// Reads a value from a file as from a flag; numbers need no quotes.
macro_rules! text {
    ($($type:ty),*) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <crate::values::Text as serde::Deserialize>::deserialize(deserializer)?.0.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use text;

/// A text, or a number as one.
pub(crate) struct Text(pub(crate) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Text;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a text or a number")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

text!(Span, Share, Size, Three, Pixels);

/// A time: `500ms`, `20s`, `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let span =
            humantime::parse_duration(text).map_err(|_| ValueError::new(text, "a time such as 500ms, 20s or 2m"))?;
        Ok(Self(span))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(out)
    }
}

/// From 0 to 1; `5%` is 0.05.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

impl FromStr for Share {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = || ValueError::new(text, "a share from 0 to 1, or from 0% to 100%");
        let (number, unit) = text.trim().strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
        let share: f64 = number.trim().parse().map_err(|_| expected())?;
        let share = share / unit;
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(expected()) }
    }
}

/// Pixels: `640x480`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let side = |text: &str| text.trim().parse().ok().filter(|side| (1..=16_384).contains(side));
        let size = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        let (width, height) =
            size.ok_or_else(|| ValueError::new(text, "width and height such as 640x480, of 1 to 16384 pixels"))?;
        Ok(Self { width, height })
    }
}

/// A value for each of red, green and blue: `0.5,0.5,0.5`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Three(pub [f32; 3]);

impl FromStr for Three {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = || ValueError::new(text, "three numbers, for red, green and blue, such as 0.5,0.5,0.5");
        let numbers: Vec<f32> =
            text.split(',').map(|number| number.trim().parse()).collect::<Result<_, _>>().map_err(|_| expected())?;
        let three: [f32; 3] = numbers.try_into().map_err(|_| expected())?;
        if three.iter().all(|number| number.is_finite()) { Ok(Self(three)) } else { Err(expected()) }
    }
}

/// What an input of the inference protocol holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pixels {
    Bytes,
    Fp32,
}

impl FromStr for Pixels {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_uppercase().as_str() {
            "BYTES" => Ok(Self::Bytes),
            "FP32" => Ok(Self::Fp32),
            _ => Err(ValueError::new(text, "BYTES (image files) or FP32 (pixels)")),
        }
    }
}

/// Reads a name as files write it.
macro_rules! named {
    ($($type:ty, $expected:literal;)*) => {$(
        impl FromStr for $type {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let name = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
                Self::deserialize(name).map_err(|_| ValueError::new(text, $expected))
            }
        }
    )*};
}

named! {
    Protocol, "one of: classify, classify-multipart, oip-json, oip-binary, grpc-oip, grpc-oip-stream, grpc, grpc-stream";
    Format, "png or jpeg";
    Arrivals, "poisson or constant";
    Fault, "one of: disconnect, junk, slow-body, giant-headers, half-close";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them() {
        assert_eq!("1m 30s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("5%".parse(), Ok(Share(0.05)));
        assert_eq!("0.25".parse(), Ok(Share(0.25)));
        assert_eq!("640x480".parse(), Ok(Size { width: 640, height: 480 }));
        assert_eq!("0.5, 1,2".parse(), Ok(Three([0.5, 1.0, 2.0])));
        assert_eq!("fp32".parse(), Ok(Pixels::Fp32));
        assert_eq!("grpc-oip-stream".parse(), Ok(Protocol::GrpcOipStream));
        assert_eq!("slow-body".parse(), Ok(Fault::SlowBody));
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for wrong in ["", "1.1", "-0.1", "101%", "NaN", "many"] {
            let error = wrong.parse::<Share>().expect_err("no share").to_string();
            assert_eq!(error, format!("found '{wrong}', expected a share from 0 to 1, or from 0% to 100%"));
        }
        for wrong in ["", "640", "0x5", "20000x5", "640x480x3"] {
            wrong.parse::<Size>().expect_err("no size");
        }
        for wrong in ["1,2", "1,2,3,4", "1,2,x", "1,2,inf"] {
            wrong.parse::<Three>().expect_err("not three");
        }
        "5".parse::<Span>().expect_err("no unit");
        "http".parse::<Protocol>().expect_err("not known");
    }
}
