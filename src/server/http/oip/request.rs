//! The JSON of an inference request.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::server::http::json::Object;

/// An inference request, without what follows it in binary. Members that other servers know are passed over, and null is
/// as good as absent.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct InferRequest<'a> {
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<Map<String, Json>>)]
    pub(super) parameters: Parameters,
    #[serde(borrow, deserialize_with = "bounded::<_, _, 1>")]
    #[schema(min_items = 1, max_items = 1, value_type = Vec<Input>)]
    pub(super) inputs: Vec<Object<Input<'a>>>,
    #[serde(default, deserialize_with = "bounded::<_, _, 16>")]
    #[schema(max_items = 16, value_type = Option<Vec<Output>>)]
    pub(super) outputs: Vec<Object<Output>>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = InferInputTensor)]
pub(super) struct Input<'a> {
    pub(super) name: String,
    pub(super) datatype: String,
    #[serde(deserialize_with = "bounded::<_, _, 16>")]
    pub(super) shape: Vec<i64>,
    #[serde(default)]
    #[schema(value_type = Option<Map<String, Json>>)]
    pub(super) parameters: Parameters,
    /// Read [once it is known](Data::read) what it has to be.
    #[serde(default, borrow)]
    #[schema(value_type = Option<Vec<Json>>)]
    pub(super) data: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = InferRequestedOutput)]
pub(super) struct Output {
    pub(super) name: String,
    #[serde(default)]
    #[schema(value_type = Option<Map<String, Json>>)]
    pub(super) parameters: Parameters,
}

/// Parameters in their order; what is no string, number or boolean is kept as [`Parameter::Other`].
#[derive(Debug, Default)]
pub(super) struct Parameters(pub(super) Vec<(String, Parameter)>);

#[derive(Debug, PartialEq)]
pub(super) enum Parameter {
    Text(String),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Other,
}

impl Parameter {
    /// As text, as it would stand in a query.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Other => "a list, an object or null".to_owned(),
        }
    }
}

/// Parameters of a request, an input or an output, at most.
const MOST_PARAMETERS: usize = 64;

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(parameters: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Parameters;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of parameters")
            }

            fn visit_unit<E>(self) -> Result<Parameters, E> {
                Ok(Parameters::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut pairs: Vec<(String, Parameter)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if pairs.len() == MOST_PARAMETERS {
                        return Err(A::Error::custom(format!("more than {MOST_PARAMETERS} parameters")));
                    }
                    if pairs.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("parameter '{name}' twice")));
                    }
                    pairs.push((name, map.next_value()?));
                }
                Ok(Parameters(pairs))
            }
        }

        parameters.deserialize_any(Pairs)
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(parameter: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl<'de> Visitor<'de> for Scalar {
            type Value = Parameter;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a parameter's value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Parameter, E> {
                Ok(Parameter::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Parameter, E> {
                Ok(Parameter::Signed(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Parameter, E> {
                Ok(Parameter::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Parameter, E> {
                Ok(Parameter::Text(value.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parameter, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Parameter::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameter, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Parameter::Other)
            }
        }

        parameter.deserialize_any(Scalar)
    }
}

/// A list of at most `MOST` elements, or null for none: no more are ever in memory.
fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(list: D) -> Result<Vec<T>, D::Error> {
    struct Bounded<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(out, "a list of at most {MOST}")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut found = Vec::new();
            while let Some(element) = list.next_element()? {
                if found.len() == MOST {
                    return Err(A::Error::custom(format!("a list of more than {MOST}")));
                }
                found.push(element);
            }
            Ok(found)
        }
    }

    list.deserialize_any(Bounded::<T, MOST>(PhantomData))
}

/// The `data` of an input, flat or nested.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) values: Values,
    /// Lengths of the lists in lists; of a flat list its own alone.
    pub(super) shape: Vec<usize>,
}

#[derive(Debug)]
pub(super) enum Values {
    Floats(Vec<f32>),
    /// Decoded from base64.
    Files(Vec<Bytes>),
}

impl Values {
    /// What each of them is, and the datatype that they are of.
    fn what(&self) -> &'static str {
        match self {
            Self::Floats(_) => "numbers for FP32",
            Self::Files(_) => "base64 strings for BYTES",
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.len(),
            Self::Files(files) => files.len(),
        }
    }
}

impl Data {
    /// Reads `data` of what `expected` has none of yet, at most `most` of them.
    ///
    /// # Errors
    /// It is no list of such values, flat or nested regularly, or has more: no more are ever in memory.
    pub(super) fn read(data: &RawValue, expected: Values, most: usize) -> Result<Self, serde_json::Error> {
        let mut found = Self { values: expected, shape: Vec::new() };
        let mut text = serde_json::Deserializer::from_str(data.get());
        Level { found: &mut found, depth: 0, known: &mut Vec::new(), most }.deserialize(&mut text)?;
        Ok(found)
    }
}

/// A list at a `depth`, or a value in one.
struct Level<'a> {
    found: &'a mut Data,
    depth: usize,
    /// Whether the length at each depth has been found.
    known: &'a mut Vec<bool>,
    /// Values in all, at most.
    most: usize,
}

impl Level<'_> {
    fn leaf<E: serde::de::Error>(&self) -> Result<(), E> {
        match self.depth {
            0 => Err(E::custom(format!("data is no list, expected one of {}", self.found.values.what()))),
            depth if depth == self.found.shape.len() => {
                let most = self.most;
                if self.found.values.count() < most {
                    Ok(())
                } else {
                    Err(E::custom(format!("data has more than the {most} values of its shape")))
                }
            }
            _ => Err(E::custom("data has values and lists side by side, expected lists of one depth")),
        }
    }

    fn float<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.leaf()?;
        let expected = self.found.values.what();
        let Values::Floats(floats) = &mut self.found.values else {
            return Err(E::custom(format!("data has a number, expected {expected}")));
        };
        floats.push(value as f32);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, data: D) -> Result<(), D::Error> {
        data.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.found.values.what())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { found, depth, known, most } = self;
        if depth == found.shape.len() {
            if found.values.count() > 0 {
                return Err(A::Error::custom("data has values and lists side by side, expected lists of one depth"));
            }
            found.shape.push(0);
            known.push(false);
        }
        let mut length = 0;
        while list
            .next_element_seed(Level { found: &mut *found, depth: depth + 1, known: &mut *known, most })?
            .is_some()
        {
            length += 1;
        }
        if known[depth] && found.shape[depth] != length {
            let other = found.shape[depth];
            return Err(A::Error::custom(format!("data has lists of {other} and of {length} side by side")));
        }
        (found.shape[depth], known[depth]) = (length, true);
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.float(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.float(value as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.float(value as f64)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.leaf()?;
        let expected = self.found.values.what();
        let Values::Files(files) = &mut self.found.values else {
            return Err(E::custom(format!("data has a string, expected {expected}")));
        };
        let file = base64::engine::general_purpose::STANDARD.decode(value).map(Bytes::from).map_err(|error| {
            E::custom(format!("data: {error}, expected an encoded image's bytes in standard base64"))
        })?;
        files.push(file);
        Ok(())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<(), E> {
        self.visit_str(&value)
    }
}

/// Reads the JSON of an inference request.
///
/// # Errors
/// It is none, said with where.
pub(super) fn read(text: &[u8]) -> Result<InferRequest<'_>, serde_json::Error> {
    serde_json::from_slice(text).map(|Object(request)| request)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value, expected: Values, most: usize) -> Result<Data, String> {
        let raw = serde_json::value::to_raw_value(value).unwrap();
        Data::read(&raw, expected, most).map_err(|error| error.to_string())
    }

    fn numbers(value: &Value) -> Result<Data, String> {
        read(value, Values::Floats(Vec::new()), 1000)
    }

    fn files(value: &Value) -> Result<Data, String> {
        read(value, Values::Files(Vec::new()), 1000)
    }

    fn floats(value: &Value) -> (Vec<f32>, Vec<usize>) {
        let Data { values: Values::Floats(floats), shape } = numbers(value).unwrap() else { panic!("no numbers") };
        (floats, shape)
    }

    #[test]
    fn data_may_be_flat_or_nested() {
        assert_eq!(floats(&json!([1, 2.5, -3])), (vec![1.0, 2.5, -3.0], vec![3]));
        assert_eq!(floats(&json!([[[1], [2]], [[3], [4]]])), (vec![1.0, 2.0, 3.0, 4.0], vec![2, 2, 1]));
    }

    #[test]
    fn data_that_is_no_tensor_is_told_why() {
        for (value, why) in [
            (json!(1), "no list, expected one of numbers for FP32"),
            (json!("aGk="), "no list, expected one of numbers for FP32"),
            (json!([[1, 2], [3]]), "lists of 2 and of 1"),
            (json!([1, [2]]), "side by side"),
            (json!([[1], 2]), "side by side"),
            (json!([[], [1]]), "lists of 0 and of 1"),
            (json!([1, "aGk="]), "a string, expected numbers for FP32"),
            (json!(["no base64"]), "a string, expected numbers for FP32"),
            (json!([true]), "expected numbers for FP32"),
            (json!([null]), "expected numbers for FP32"),
            (json!({"0": 1}), "expected numbers for FP32"),
        ] {
            contains(&numbers(&value).expect_err("no tensor"), why);
        }
        for (value, why) in [
            (json!("aGk="), "no list, expected one of base64 strings for BYTES"),
            (json!(["aGk=", 1]), "a number, expected base64 strings for BYTES"),
            (json!(["aGk=", ["aGk="]]), "side by side"),
            (json!(["no base64"]), "standard base64"),
            (json!([true]), "expected base64 strings for BYTES"),
            (json!([null]), "expected base64 strings for BYTES"),
            (json!({"0": 1}), "expected base64 strings for BYTES"),
        ] {
            contains(&files(&value).expect_err("no tensor"), why);
        }
    }

    #[test]
    fn data_ends_where_its_shape_does() {
        for value in [json!([1, 2, 3]), json!([[1], [2], [3]])] {
            assert!(read(&value, Values::Floats(Vec::new()), 3).is_ok());
            contains(&read(&value, Values::Floats(Vec::new()), 2).expect_err("too many"), "more than the 2 values");
        }
        let value = json!(["aGk=", "aGk=", "aGk="]);
        assert!(read(&value, Values::Files(Vec::new()), 3).is_ok());
        contains(&read(&value, Values::Files(Vec::new()), 2).expect_err("too many"), "more than the 2 values");
    }

    fn contains(text: &str, part: &str) {
        assert!(text.contains(part), "{text}");
    }

    proptest! {
        /// Every regular nesting is read with its shape and its values in their order.
        #[test]
        fn nested_lists_have_their_shape(shape in prop::collection::vec(1usize..4, 1..5)) {
            let count: usize = shape.iter().product();
            let mut level: Vec<Value> = (0..count).map(|value| json!(value)).collect();
            for &length in shape.iter().skip(1).rev() {
                level = level.chunks(length).map(|chunk| json!(chunk)).collect();
            }
            let expected: Vec<f32> = (0..count).map(|value| value as f32).collect();
            prop_assert_eq!(floats(&json!(level)), (expected, shape));
        }
    }

    #[test]
    fn parameters_keep_their_types() {
        let read: Parameters =
            serde_json::from_str(r#"{"a": "x", "b": 3, "c": -3, "d": 0.5, "e": true, "f": {"g": [1]}}"#).unwrap();
        let values: Vec<Parameter> = read.0.into_iter().map(|(_, value)| value).collect();
        use Parameter::*;
        assert_eq!(values, [Text("x".into()), Unsigned(3), Signed(-3), Float(0.5), Bool(true), Other]);
    }
}
