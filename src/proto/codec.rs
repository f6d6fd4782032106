//! The codec of the services: messages that would take far more memory decoded than encoded are refused.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::server::{Error, Kind};

/// Inputs, names, parameters, elements of BYTES and integers in a message, at most. One takes a byte or two encoded and up
/// to some hundred decoded; a request that is any use has fewer.
const MOST_PARTS: usize = 16_384;

/// Protobuf with at most 16,384 parts a message.
pub struct Bounded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// The decoder of [`Bounded`].
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message is in one piece.
        bounded(message.chunk())?;
        self.0.decode(message).map_err(|status| refused(format!("the message: {}", status.message())).into())
    }
}

/// Checks that `message` has no more parts than one may have. What is no message is the decoder's to refuse.
///
/// # Errors
/// It has more.
pub(crate) fn bounded(message: &[u8]) -> Result<(), Error> {
    if parts(message).is_none_or(|parts| parts <= MOST_PARTS) {
        return Ok(());
    }
    Err(refused(format!(
        "the message has more than {MOST_PARTS} parts (inputs, outputs, parameters, elements), expected fewer"
    )))
}

/// The parts of `message`, counted until there are too many; `None` where it is no message.
pub(crate) fn parts(message: &[u8]) -> Option<usize> {
    let mut parts = 0;
    count(message, REQUEST, &mut parts).map(|()| parts)
}

fn refused(problem: String) -> Error {
    Error::new(Kind::InvalidBody, problem)
}

/// Fields of a message that may hold much in few bytes.
struct Lists {
    /// Those that are messages with lists of their own.
    messages: &'static [(u64, Lists)],
    /// Those that are lists of numbers of any size: a byte may become eight.
    numbers: &'static [u64],
}

/// `ModelInferRequest`: inputs with their shapes and contents, outputs. No other request has a message in its fields 5 and
/// 6.
const REQUEST: &Lists = &Lists {
    messages: &[
        (5, Lists { messages: &[(5, Lists { messages: &[], numbers: &[1, 2, 3, 4, 5] })], numbers: &[3] }),
        (6, Lists { messages: &[], numbers: &[] }),
    ],
    numbers: &[],
};

/// Adds to `parts` the fields of a message and of those in it, but numbers of fixed size, until there are too many; of a
/// list of numbers of any size its bytes. `None` where it is no message.
fn count(mut message: &[u8], of: &Lists, parts: &mut usize) -> Option<()> {
    while message.has_remaining() && *parts <= MOST_PARTS {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                varint(&mut message)?;
                *parts += 1;
            }
            1 => message = message.get(8..)?,
            2 => {
                let part = piece(&mut message)?;
                *parts += if of.numbers.contains(&(tag >> 3)) { part.len() } else { 1 };
                if let Some((_, nested)) = of.messages.iter().find(|(field, _)| *field == tag >> 3) {
                    count(part, nested, parts)?;
                }
            }
            3 => skip_group(&mut message)?,
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

/// Passes over a group, from after its first tag to its last. No message here has any, and the decoder forgets it.
fn skip_group(message: &mut &[u8]) -> Option<()> {
    let mut open = 1;
    while open > 0 {
        match varint(message)? & 7 {
            0 => drop(varint(message)?),
            1 => *message = message.get(8..)?,
            2 => drop(piece(message)?),
            3 => open += 1,
            4 => open -= 1,
            5 => *message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

/// What has its length in front.
fn piece<'m>(message: &mut &'m [u8]) -> Option<&'m [u8]> {
    let length = usize::try_from(varint(message)?).ok()?;
    let (piece, rest) = (message.get(..length)?, message.get(length..)?);
    *message = rest;
    Some(piece)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use crate::proto::inference::{InferTensorContents, ModelInferRequest};

    fn parts(request: &ModelInferRequest) -> usize {
        let mut parts = 0;
        count(&request.encode_to_vec(), REQUEST, &mut parts).expect("a message");
        parts
    }

    #[test]
    fn parts_are_counted_at_every_level_and_no_deeper() {
        let looks_like_parts = bytes::Bytes::from_static(&[0x2a, 0, 0x2a, 0, 0x32, 0]);
        let contents = InferTensorContents {
            bytes_contents: vec![looks_like_parts.clone(); 3],
            fp32_contents: vec![0.5; 100],
            ..Default::default()
        };
        let input = InferInputTensor { shape: vec![1, 2, 3], contents: Some(contents), ..Default::default() };
        let request = ModelInferRequest {
            model_name: "m".to_owned(),
            inputs: vec![input; 2],
            outputs: vec![InferRequestedOutputTensor::default(); 4],
            raw_input_contents: vec![looks_like_parts; 5],
            ..Default::default()
        };
        // Of an input: itself, its shape of three bytes, its contents, their floats, three elements.
        assert_eq!(parts(&request), 1 + 2 * 9 + 4 + 5);
    }

    #[test]
    fn many_empty_parts_are_seen_wherever_they_are() {
        let many = || vec![bytes::Bytes::new(); MOST_PARTS + 1];
        let contents = InferTensorContents { bytes_contents: many(), ..Default::default() };
        let nested = InferInputTensor { contents: Some(contents), ..Default::default() };
        let numbers = InferTensorContents { uint64_contents: vec![0; MOST_PARTS + 1], ..Default::default() };
        let numbers = InferInputTensor { contents: Some(numbers), ..Default::default() };
        let shape = InferInputTensor { shape: vec![0; MOST_PARTS + 1], ..Default::default() };
        for request in [
            ModelInferRequest { inputs: vec![numbers], ..Default::default() },
            ModelInferRequest { inputs: vec![shape], ..Default::default() },
            ModelInferRequest { inputs: vec![InferInputTensor::default(); MOST_PARTS + 1], ..Default::default() },
            ModelInferRequest { raw_input_contents: many(), ..Default::default() },
            ModelInferRequest { inputs: vec![nested], ..Default::default() },
        ] {
            assert!(parts(&request) > MOST_PARTS);
        }
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        for bytes in [&[0x2a, 5, 1][..], &[0xff; 12], &[0x2b], &[0x2c], &[0x2d, 1], &[0x7b, 0x08, 1]] {
            assert_eq!(count(bytes, REQUEST, &mut 0), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_group_hides_nothing_after_it() {
        let many = ModelInferRequest { raw_input_contents: vec![bytes::Bytes::new(); 7], ..Default::default() };
        // Field 15 as a group: a number, eight bytes, what is no input in the field of inputs, four bytes, a group.
        let group = [&[0x7b, 0x08, 0x80, 1, 0x11][..], &[0; 8], &[0x2a, 1, 0xff, 0x1d], &[0; 4], &[0x23, 0x24, 0x7c]];
        for (before, after) in [(group.concat(), many.encode_to_vec()), (many.encode_to_vec(), group.concat())] {
            let message = [before, after].concat();
            assert_eq!(ModelInferRequest::decode(&*message).unwrap(), many, "the decoder passes over it too");
            let mut parts = 0;
            assert_eq!((count(&message, REQUEST, &mut parts), parts), (Some(()), 7));
        }
    }
}
