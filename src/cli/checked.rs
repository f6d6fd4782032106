//! Option values that are checked after parsing, so that all that are wrong are reported at once.

use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;

use super::Usage;

/// A value that parsed, or the text that did not and why.
#[derive(Debug, Clone)]
pub(crate) struct Checked<T>(Result<T, (String, String)>);

impl<T: FromStr<Err: Display>> FromStr for Checked<T> {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.parse().map_err(|error: T::Err| (text.to_owned(), error.to_string()))))
    }
}

/// Collects what is wrong with the options.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    /// The value, if it parsed and `fits`; otherwise it is noted with what was expected.
    pub(crate) fn take<T>(
        &mut self,
        flag: &str,
        expected: &str,
        value: Checked<T>,
        fits: impl FnOnce(&T) -> bool,
    ) -> Option<T>
    where
        T: Display,
    {
        match value.0 {
            Ok(value) if fits(&value) => return Some(value),
            Ok(value) => self.note(format!("{flag}: found '{value}', expected {expected}")),
            Err((text, reason)) => self.note(format!("{flag}: found '{text}', expected {expected} ({reason})")),
        }
        None
    }

    pub(crate) fn note(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// `value` if nothing was wrong.
    pub(crate) fn or<T>(self, value: Option<T>) -> Result<T, Usage> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Usage(self.0)),
        }
    }
}
