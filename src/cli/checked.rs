//! Option values that are checked after parsing, so that all that are wrong are reported at once.

use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;

use super::Usage;

/// A value that parsed, or the text that did not.
#[derive(Debug, Clone)]
pub(crate) struct Checked<T>(Result<T, String>);

impl<T: FromStr> FromStr for Checked<T> {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.parse().map_err(|_| text.to_owned())))
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
        let found = match value.0 {
            Ok(value) if fits(&value) => return Some(value),
            Ok(value) => value.to_string(),
            Err(text) => text,
        };
        self.0.push(format!("{flag}: found '{found}', expected {expected}"));
        None
    }

    /// Notes what is wrong with options together.
    pub(crate) fn note(&mut self, problem: &str) {
        self.0.push(problem.to_owned());
    }

    /// `value` if nothing was wrong.
    pub(crate) fn or<T>(self, value: Option<T>) -> Result<T, Usage> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Usage(self.0)),
        }
    }
}
