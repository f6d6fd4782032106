//! Answers to facts: `/v1/classify`, the inference protocol over HTTP and gRPC, and `blockdrop.v1`.

use std::borrow::Cow;
use std::fmt;

use blockdrop::proto::inference::infer_parameter::ParameterChoice;
use blockdrop::proto::inference::model_infer_response::InferOutputTensor;
use blockdrop::proto::inference::{InferParameter, ModelInferResponse, ModelStreamInferResponse};
use blockdrop::proto::v1::classify_stream_response::Result as Either;
use blockdrop::proto::v1::{ClassifyResponse, ClassifyStreamResponse};
use bytes::Bytes;
use hyper::HeaderMap;
use prost::Message;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::judge::{Facts, mask_hash};
use super::outcome::Problem;
use super::tensor::{Summary, Tensor, Wanted};
use crate::record::{Flops, Stages};

/// Bytes of the JSON before binary tensors.
pub(super) const JSON_LENGTH: &str = "inference-header-content-length";

fn no_json(error: &serde_json::Error) -> Problem {
    Problem::failed("no JSON", format!("the answer is not the JSON that was expected: {error}"))
}

fn no_message(error: &prost::DecodeError) -> Problem {
    Problem::failed("no message", format!("the answer is not the message that was expected: {error}"))
}

/// Reads the answer of `/v1/classify` for `count` images.
///
/// # Errors
/// It is none, or an image has an error in place of its result.
pub(super) fn classify(body: &[u8], count: usize) -> Result<Vec<Facts>, Problem> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        results: Vec<Entry<'a>>,
    }
    #[derive(Deserialize)]
    struct Entry<'a> {
        #[serde(default)]
        predictions: Vec<Prediction>,
        #[serde(borrow)]
        path: Option<Taken<'a>>,
        flops: Option<Counted>,
        timing_ms: Option<Stages>,
        #[serde(borrow)]
        error: Option<Cow<'a, str>>,
        #[serde(borrow)]
        code: Option<Cow<'a, str>>,
    }
    #[derive(Deserialize)]
    struct Prediction {
        class: u32,
        probability: f64,
    }
    #[derive(Deserialize)]
    struct Taken<'a> {
        #[serde(borrow)]
        mask: Cow<'a, str>,
        blocks_kept: u16,
    }
    #[derive(Deserialize)]
    struct Counted {
        policy: u64,
        executed: u64,
        full: u64,
    }

    let Answer { results } = serde_json::from_slice(body).map_err(|error| no_json(&error))?;
    let facts = |entry: Entry<'_>| {
        if let Some(error) = entry.error {
            return Err(Problem::coded("200", entry.code.as_deref().unwrap_or(""), &error));
        }
        let [best, others @ ..] = entry.predictions.as_slice() else {
            return Err(Problem::wrong_answer("a result has no predictions"));
        };
        Ok(Facts {
            class: best.class,
            score: Some(best.probability),
            second: others.first().map(|second| second.probability),
            mask: entry.path.as_ref().map(|path| mask_hash(bits(&path.mask))),
            blocks: entry.path.as_ref().map(|path| path.blocks_kept),
            flops: entry
                .flops
                .map(|flops| Flops { spent: flops.policy.saturating_add(flops.executed), full: flops.full }),
            stages: entry.timing_ms,
        })
    };
    counted(results.into_iter().map(facts).collect::<Result<Vec<_>, _>>()?, count)
}

fn bits(mask: &str) -> impl Iterator<Item = bool> {
    mask.bytes().map(|bit| bit == b'1')
}

fn counted(facts: Vec<Facts>, count: usize) -> Result<Vec<Facts>, Problem> {
    match facts.len() {
        found if found == count => Ok(facts),
        found => Err(Problem::wrong_answer(format!("{found} results for {count} images"))),
    }
}

/// Reads an answer of the inference protocol over HTTP: JSON, or JSON and binary tensors.
///
/// # Errors
/// It is none, or its outputs are not what was asked for.
pub(super) fn oip_http(headers: &HeaderMap, body: &[u8], wanted: &Wanted, count: usize) -> Result<Vec<Facts>, Problem> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        /// Of other servers: anything.
        #[serde(borrow)]
        parameters: Option<&'a RawValue>,
        #[serde(borrow)]
        outputs: Vec<Output<'a>>,
    }
    #[derive(Deserialize)]
    struct Output<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        datatype: Cow<'a, str>,
        #[serde(default)]
        shape: Vec<i64>,
        parameters: Option<Size>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Size {
        binary_data_size: Option<usize>,
    }

    let length = match headers.get(JSON_LENGTH) {
        None => body.len(),
        Some(value) => {
            let found = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|length| *length <= body.len());
            found.ok_or_else(|| Problem::wrong_answer(format!("{JSON_LENGTH} is {value:?}")))?
        }
    };
    let (json, mut tensors) = body.split_at(length);
    let Answer { parameters, outputs } = serde_json::from_slice(json).map_err(|error| no_json(&error))?;
    let mut taken = Vec::with_capacity(outputs.len());
    for (place, output) in outputs.into_iter().enumerate() {
        let Output { name, datatype, shape, parameters, data } = output;
        let size = parameters.and_then(|parameters| parameters.binary_data_size);
        let raw = match size {
            None => None,
            Some(size) => {
                let (raw, rest) = tensors.split_at_checked(size).ok_or_else(|| {
                    let left = tensors.len();
                    Problem::wrong_answer(format!("output '{name}' states {size} bytes, found {left}"))
                })?;
                tensors = rest;
                Some(raw)
            }
        };
        if !wanted.takes(&name, place) {
            continue;
        }
        taken.push(match (raw, data) {
            (Some(raw), _) => Tensor::raw(&name, &datatype, shape, raw)?,
            (None, Some(data)) => {
                let mut values = Vec::new();
                let mut text = serde_json::Deserializer::from_str(data.get());
                Numbers(&mut values).deserialize(&mut text).map_err(|error| no_json(&error))?;
                Tensor::new(&name, &datatype, shape, values)
            }
            (None, None) => return Err(Problem::wrong_answer(format!("output '{name}' has no data"))),
        });
    }
    let mut facts = wanted.facts(&taken, count)?;
    if let Some(summary) = parameters.and_then(|text| serde_json::from_str::<Summary>(text.get()).ok()) {
        summary.complete(&mut facts);
    }
    Ok(facts)
}

/// Numbers in lists, nested or not, one after another.
struct Numbers<'a>(&'a mut Vec<f64>);

impl<'de> DeserializeSeed<'de> for Numbers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, data: D) -> Result<(), D::Error> {
        data.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Numbers<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Numbers(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.0.push(value);
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.visit_f64(f64::from(u8::from(value)))
    }
}

/// Reads a `ModelInferResponse`.
///
/// # Errors
/// It is none, or its outputs are not what was asked for.
pub(super) fn oip_grpc(message: Bytes, wanted: &Wanted, count: usize) -> Result<Vec<Facts>, Problem> {
    infer(ModelInferResponse::decode(message).map_err(|error| no_message(&error))?, wanted, count)
}

/// Reads a `ModelStreamInferResponse`.
///
/// # Errors
/// It is an error, or none, or its outputs are not what was asked for.
pub(super) fn oip_stream(message: Bytes, wanted: &Wanted, count: usize) -> Result<Vec<Facts>, Problem> {
    let answer = ModelStreamInferResponse::decode(message).map_err(|error| no_message(&error))?;
    if !answer.error_message.is_empty() {
        let code = answer.infer_response.as_ref().and_then(|response| response.parameters.get("blockdrop-code"));
        return Err(match code.and_then(|code| code.parameter_choice.as_ref()) {
            Some(ParameterChoice::StringParam(code)) => Problem::coded("stream", code, &answer.error_message),
            _ => Problem::sentence("stream", &answer.error_message),
        });
    }
    let answer = answer.infer_response.ok_or_else(|| Problem::wrong_answer("neither an error nor an answer"))?;
    infer(answer, wanted, count)
}

fn infer(answer: ModelInferResponse, wanted: &Wanted, count: usize) -> Result<Vec<Facts>, Problem> {
    let ModelInferResponse { parameters, outputs, raw_output_contents, .. } = answer;
    let mut taken = Vec::with_capacity(outputs.len());
    for (place, output) in outputs.into_iter().enumerate().filter(|(place, at)| wanted.takes(&at.name, *place)) {
        let InferOutputTensor { name, datatype, shape, contents, .. } = output;
        taken.push(match (raw_output_contents.get(place), contents) {
            (Some(raw), _) => Tensor::raw(&name, &datatype, shape, raw)?,
            (None, Some(contents)) => {
                // Only the list that belongs to the datatype has anything in it.
                let mut values: Vec<f64> = contents.fp32_contents.iter().map(|value| f64::from(*value)).collect();
                values.extend(&contents.fp64_contents);
                values.extend(contents.int_contents.iter().map(|value| f64::from(*value)));
                values.extend(contents.int64_contents.iter().map(|value| *value as f64));
                values.extend(contents.uint_contents.iter().map(|value| f64::from(*value)));
                values.extend(contents.uint64_contents.iter().map(|value| *value as f64));
                values.extend(contents.bool_contents.iter().map(|value| f64::from(u8::from(*value))));
                Tensor::new(&name, &datatype, shape, values)
            }
            (None, None) => return Err(Problem::wrong_answer(format!("output '{name}' has no contents"))),
        });
    }
    let mut facts = wanted.facts(&taken, count)?;
    if count == 1 {
        let number = |name: &str| {
            let choice = |parameter: &InferParameter| match parameter.parameter_choice {
                Some(ParameterChoice::Int64Param(number)) => u64::try_from(number).ok(),
                _ => None,
            };
            parameters.get(name).and_then(choice)
        };
        let or_none = |name| number(name).unwrap_or(0);
        let summary = Summary {
            flops_policy: number("flops_policy"),
            flops_executed: number("flops_executed"),
            flops_full: number("flops_full"),
            decode_us: or_none("decode_us"),
            preprocess_us: or_none("preprocess_us"),
            queue_us: or_none("queue_us"),
            policy_us: or_none("policy_us"),
            backbone_us: or_none("backbone_us"),
            total_us: number("total_us"),
        };
        summary.complete(&mut facts);
    }
    Ok(facts)
}

/// Reads a `ClassifyResponse`.
///
/// # Errors
/// It is none.
pub(super) fn typed(message: Bytes) -> Result<Vec<Facts>, Problem> {
    described(&ClassifyResponse::decode(message).map_err(|error| no_message(&error))?)
}

/// Reads a `ClassifyStreamResponse`.
///
/// # Errors
/// It is an error, or none.
pub(super) fn typed_stream(message: Bytes) -> Result<Vec<Facts>, Problem> {
    match ClassifyStreamResponse::decode(message).map_err(|error| no_message(&error))?.result {
        Some(Either::Response(answer)) => described(&answer),
        Some(Either::Error(error)) => Err(Problem::coded("stream", &error.code, &error.message)),
        None => Err(Problem::wrong_answer("neither an error nor an answer")),
    }
}

fn described(answer: &ClassifyResponse) -> Result<Vec<Facts>, Problem> {
    let [best, others @ ..] = answer.predictions.as_slice() else {
        return Err(Problem::wrong_answer("the answer has no predictions"));
    };
    let path = answer.path.as_ref();
    let stages = |timing: &blockdrop::proto::v1::Timing| Stages {
        decode: timing.decode_ms,
        preprocess: timing.preprocess_ms,
        queue: timing.queue_ms,
        policy: timing.policy_ms,
        backbone: timing.backbone_ms,
        total: timing.total_ms,
    };
    let flops = answer.flops.as_ref();
    Ok(vec![Facts {
        class: best.class,
        score: Some(f64::from(best.probability)),
        second: others.first().map(|second| f64::from(second.probability)),
        mask: path.map(|path| mask_hash(bits(&path.mask))),
        blocks: path.map(|path| u16::try_from(path.blocks_kept).unwrap_or(u16::MAX)),
        flops: flops.map(|flops| Flops { spent: flops.policy.saturating_add(flops.executed), full: flops.full }),
        stages: answer.timing.as_ref().map(stages),
    }])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLASSIFIED: &str = r#"{"model":"m","version":"1","request_id":"r","results":[
        {"predictions":[{"label":"a \"b\"","class":8,"probability":0.75},{"label":"c","class":0,"probability":0.2}],
         "path":{"policy":"learned","mask":"0110","blocks_kept":2,"blocks_total":4},
         "flops":{"policy":6,"executed":43,"full":137,"ratio":0.35},
         "timing_ms":{"decode":1.5,"preprocess":0.1,"queue":0.2,"policy":0.3,"backbone":0.6,"total":2.7}},
        {"error":"why","code":"invalid_image"}]}"#;

    #[test]
    fn an_error_among_results_is_the_requests() {
        let problem = classify(CLASSIFIED.as_bytes(), 2).unwrap_err();
        assert_eq!(problem.kind, "200 invalid_image");
        let one = CLASSIFIED.replace(
            r#",
        {"error":"why","code":"invalid_image"}"#,
            "",
        );
        let found = classify(one.as_bytes(), 1).unwrap().remove(0);
        assert_eq!((found.class, found.score, found.second, found.blocks), (8, Some(0.75), Some(0.2), Some(2)));
        assert_eq!(found.mask, Some(mask_hash([false, true, true, false].into_iter())));
        assert_eq!(found.flops, Some(Flops { spent: 49, full: 137 }));
        assert_eq!(found.stages.map(|stages| (stages.decode, stages.total)), Some((1.5, 2.7)));
        assert_eq!(classify(one.as_bytes(), 2).unwrap_err().kind, "wrong answer");
    }

    #[test]
    fn other_servers_answers_are_read() {
        let wanted = Wanted::default();
        let read = |text: &str, count| oip_http(&HeaderMap::new(), text.as_bytes(), &wanted, count);
        let nested =
            r#"{"model_name":"m","outputs":[{"name":"s","datatype":"FP32","shape":[2,2],"data":[[1,2],[4.5,3]]}]}"#;
        let found = read(nested, 2).unwrap();
        assert_eq!([found[0].class, found[1].class], [1, 0]);
        let odd =
            r#"{"parameters":{"decode_us":"soon"},"outputs":[{"name":"s","datatype":"INT64","shape":[1],"data":[7]}]}"#;
        let found = read(odd, 1).unwrap().remove(0);
        assert_eq!((found.class, found.score, found.stages), (7, None, None));
        for (text, kind) in [
            ("<html>", "no JSON"),
            ("{}", "no JSON"),
            (r#"{"outputs":[]}"#, "wrong answer"),
            (r#"{"outputs":[{"name":"s","datatype":"FP32","shape":[1]}]}"#, "wrong answer"),
            (r#"{"outputs":[{"name":"s","datatype":"FP32","data":["x"]}]}"#, "no JSON"),
            (r#"{"outputs":[{"name":"s","datatype":"FP32","parameters":{"binary_data_size":4}}]}"#, "wrong answer"),
        ] {
            assert_eq!(read(text, 1).unwrap_err().kind, kind, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_a_reader(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 1usize..4) {
            let wanted = Wanted::default();
            drop(classify(&bytes, count));
            drop(oip_http(&HeaderMap::new(), &bytes, &wanted, count));
            for read in [oip_grpc, oip_stream] {
                drop(read(bytes.clone().into(), &wanted, count));
            }
            drop(typed(bytes.clone().into()));
            drop(typed_stream(bytes.into()));
        }

        /// Every cut of a sound answer is read or refused.
        #[test]
        fn no_cut_breaks_a_reader(at in 0..CLASSIFIED.len()) {
            prop_assert!(classify(&CLASSIFIED.as_bytes()[..at], 2).is_err());
        }
    }
}
