//! A server as it is asked before the run.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TE, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use prost::Message;
use serde::Deserialize;

use super::WireError;
use super::grpc::{Lines, prefix};
use super::http1::{Answer, Client};
use super::outcome::{Problem, short};
use super::pieces::Pieces;
use crate::plan;

/// For each question before the run.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A server, where it is.
pub(super) struct Door<'a> {
    pub(super) arm: &'a plan::Arm,
    pub(super) addresses: Vec<SocketAddr>,
    authority: String,
    /// Before all paths.
    pub(super) base: String,
    key: Option<HeaderValue>,
}

impl<'a> Door<'a> {
    pub(super) async fn open(arm: &'a plan::Arm, request: &plan::Request) -> Result<Self, WireError> {
        let wrong = || WireError::mismatch(arm, format!("url '{}'", arm.url), "http://host:port");
        let uri: Uri = arm.url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let unreachable =
            |reason: String| WireError::Unreachable { arm: arm.name.clone(), url: arm.url.clone(), reason };
        let found = tokio::net::lookup_host((host, authority.port_u16().unwrap_or(80))).await;
        let addresses: Vec<SocketAddr> = found.map_err(|error| unreachable(error.to_string()))?.collect();
        let key = request.api_key.as_ref().map(|key| {
            let expected = "an API key of letters, digits and signs of ASCII";
            let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| WireError::mismatch(arm, "a key that no header can hold", expected))?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Self {
            arm,
            addresses,
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').to_owned(),
            key: key.transpose()?,
        })
    }

    pub(super) fn mismatch(&self, found: impl Into<String>, expected: impl Into<String>) -> WireError {
        WireError::mismatch(self.arm, found, expected)
    }

    pub(super) fn unreachable(&self, problem: &Problem) -> WireError {
        let (arm, url) = (self.arm.name.clone(), self.arm.url.clone());
        WireError::Unreachable { arm, url, reason: short(&problem.message) }
    }

    pub(super) fn head(&self, path: &str, grpc: bool) -> Result<(Uri, HeaderMap), WireError> {
        let wrong = || self.mismatch(format!("path '{}'", short(path)), "one that fits into a request");
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("blockdrop-loadtest/", env!("CARGO_PKG_VERSION"))));
        if let Some(key) = &self.key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        let uri = if grpc {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            format!("http://{}{path}", self.authority).parse()
        } else {
            headers.insert(HOST, self.value(&self.authority)?);
            path.parse()
        };
        Ok((uri.map_err(|_| wrong())?, headers))
    }

    pub(super) fn value(&self, text: &str) -> Result<HeaderValue, WireError> {
        HeaderValue::from_str(text).map_err(|_| self.mismatch(format!("'{}'", short(text)), "what a header can hold"))
    }

    pub(super) fn model_path(&self, model: &str) -> String {
        let version = self.arm.version.as_ref().map(|version| format!("/versions/{}", escaped(version)));
        format!("{}/v2/models/{}{}", self.base, escaped(model), version.unwrap_or_default())
    }

    pub(super) fn refused(&self, problem: &Problem, expected: &str) -> WireError {
        match problem.kind.as_str() {
            "connect" | "connection closed" | "late" => self.unreachable(problem),
            _ => self.mismatch(short(&problem.message), expected),
        }
    }

    pub(super) fn json<T: for<'de> Deserialize<'de>>(&self, what: &str, answer: &Answer) -> Result<T, WireError> {
        if answer.status != StatusCode::OK {
            let problem = Problem::http(answer.status, &answer.body);
            return Err(self.mismatch(short(&problem.message), format!("{what} at the server")));
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            let start = short(&String::from_utf8_lossy(&answer.body[..answer.body.len().min(80)]));
            self.mismatch(format!("'{start}' ({error})"), format!("{what} as JSON"))
        })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, WireError> {
        let (uri, mut headers) = self.head(path, false)?;
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let request = || {
            let mut request = Request::new(Pieces::default());
            *request.method_mut() = Method::GET;
            (*request.uri_mut(), *request.headers_mut()) = (uri.clone(), headers.clone());
            request
        };
        let answer = tokio::time::timeout(PATIENCE, Client::default().ask(&self.addresses, true, request)).await;
        answer.unwrap_or_else(|_| Err(late())).map_err(|problem| self.unreachable(&problem))
    }

    pub(super) async fn call<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A, Problem> {
        let wrong = |error: WireError| Problem::failed("path", error.to_string());
        let (uri, mut headers) = self.head(&format!("{}{method}", self.base), true).map_err(wrong)?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(HeaderName::from_static("grpc-timeout"), HeaderValue::from_static("10S"));
        let encoded = message.encode_to_vec();
        let (start, encoded) = (Bytes::copy_from_slice(&prefix(encoded.len())), Bytes::from(encoded));
        let request = || {
            let mut request = Request::new(Pieces::new([start.clone(), encoded.clone()].into_iter()));
            *request.method_mut() = Method::POST;
            (*request.uri_mut(), *request.headers_mut()) = (uri.clone(), headers.clone());
            request
        };
        let mut client = Lines::default().client();
        let answer = tokio::time::timeout(PATIENCE, client.call(&self.addresses, request)).await;
        let answer = answer.unwrap_or_else(|_| Err(late()))?;
        A::decode(answer).map_err(|error| Problem::failed("no message", format!("{method}: {error}")))
    }
}

fn late() -> Problem {
    Problem::failed("late", format!("no answer within {} seconds", PATIENCE.as_secs()))
}

/// Percent-encoded, but for what is never taken for anything else in a path or a query.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b',') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escaped("first_k:7"), "first_k:7");
        assert_eq!(escaped("a b&c=ü/?"), "a%20b%26c%3D%C3%BC%2F%3F");
    }
}
