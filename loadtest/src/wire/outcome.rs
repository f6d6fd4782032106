//! What a request that was not answered came to, and the bounded set of kinds to count it by.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use blockdrop::proto::code_name;
use hyper::StatusCode;
use serde::Deserialize;
use tonic::{Code, Status};

use crate::record::{Cause, Reply};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) how: How,
    /// Counted by; may hold what the server said, so it is bounded before it leaves.
    pub(super) kind: String,
    pub(super) message: String,
}

/// What that says of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The server has too much to do, or stops.
    Overloaded,
    /// The server gave up in time.
    Late,
    /// The server does not take the input.
    Input,
    /// It failed.
    Other,
}

impl Problem {
    pub(super) fn failed(kind: &str, message: impl Into<String>) -> Self {
        Self { how: How::Other, kind: kind.to_owned(), message: message.into() }
    }

    /// An answer that is none.
    pub(super) fn wrong_answer(message: impl Into<String>) -> Self {
        Self::failed("wrong answer", message)
    }

    /// What an HTTP answer with a `status` other than 200 means. In its body there may be `{"error", "code"}`.
    pub(super) fn http(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Told {
            error: String,
            code: Option<String>,
        }
        let told: Option<Told> = serde_json::from_slice(body).ok();
        let (message, code) = match told {
            Some(Told { error, code }) => (error, code.unwrap_or_default()),
            None => (String::from_utf8_lossy(&body[..body.len().min(MOST_MESSAGE)]).into_owned(), String::new()),
        };
        let number = status.as_u16();
        let how = match number {
            429 | 503 => How::Overloaded,
            504 => How::Late,
            401 | 403 | 404 | 405 | 407 | 408 => How::Other,
            400..=499 => How::Input,
            _ => How::Other,
        };
        Self { how, kind: format!("{number} {code}"), message: format!("{number}: {message}") }
    }

    /// What a gRPC status from the server means. In its metadata there may be `blockdrop-code`.
    pub(super) fn grpc(status: &Status) -> Self {
        let code = status.metadata().get("blockdrop-code").and_then(|code| code.to_str().ok()).unwrap_or("");
        let how = match (status.code(), code) {
            (_, "body_too_large") => How::Input,
            (Code::Unavailable | Code::ResourceExhausted, _) => How::Overloaded,
            (Code::DeadlineExceeded, _) => How::Late,
            (Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange, _) => How::Input,
            _ => How::Other,
        };
        let name = code_name(status.code());
        Self { how, kind: format!("{name} {code}"), message: format!("{name}: {}", status.message()) }
    }

    /// What blockdrop's `code` of one image, or of one message of a stream, means.
    pub(super) fn coded(place: &str, code: &str, message: &str) -> Self {
        let how = match code {
            "overloaded" | "shutting_down" | "starting" => How::Overloaded,
            "deadline_exceeded" => How::Late,
            "unauthenticated" | "forbidden" | "unknown_model" | "not_found" | "internal" => How::Other,
            _ => How::Input,
        };
        Self { how, kind: format!("{place} {code}"), message: format!("{place} {code}: {message}") }
    }

    /// What a sentence means that has no code, as other servers' `ModelStreamInferResponse`: overload or lateness by the
    /// words that servers use for them, else an input that is not taken.
    pub(super) fn sentence(place: &str, message: &str) -> Self {
        let text = message.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let full = ["overloaded", "try again", "queue is full", "maximum queue size", "unavailable", "shutting down"];
        let late = ["deadline exceeded", "timed out", "timeout expired"];
        let (how, kind) = match () {
            () if says(&full) => (How::Overloaded, "overloaded"),
            () if says(&late) => (How::Late, "late"),
            () => (How::Input, "error"),
        };
        Self { how, kind: format!("{place} {kind}"), message: format!("{place}: {message}") }
    }
}

/// Bytes of a message, at most.
const MOST_MESSAGE: usize = 400;
/// Bytes of a kind, at most.
const MOST_KIND: usize = 48;
/// Kinds of a run, at most; then all new ones are `other`.
const MOST_KINDS: usize = 64;

/// The kinds that were told so far.
#[derive(Debug, Default)]
pub(super) struct Kinds(Mutex<BTreeSet<String>>);

impl Kinds {
    /// The reply that `problem` is, to a `good` request or to one that had to be refused.
    pub(super) fn reply(&self, problem: Problem, good: bool) -> Reply {
        let cause = self.cause(&problem.kind, &problem.message);
        match problem.how {
            How::Overloaded => Reply::Refused(cause),
            How::Late => Reply::TimedOut,
            How::Input if !good => Reply::Refused(cause),
            How::Input | How::Other => Reply::Failed(cause),
        }
    }

    pub(super) fn cause(&self, kind: &str, message: &str) -> Cause {
        let tame = |at: char| at.is_ascii_alphanumeric() || matches!(at, ' ' | '_' | '-' | '.' | ':');
        let kind: String = kind.trim().chars().filter(|&at| tame(at)).take(MOST_KIND).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = if known.contains(&kind) || known.len() < MOST_KINDS {
            known.insert(kind.clone());
            kind
        } else {
            "other".to_owned()
        };
        Cause { kind, message: short(message) }
    }
}

/// What a server said, on one line and not too long.
pub(super) fn short(text: &str) -> String {
    let plain = |at: char| if at.is_control() { ' ' } else { at };
    let mut cut: String = text.trim().chars().take(MOST_MESSAGE).map(plain).collect();
    if text.trim().chars().nth(MOST_MESSAGE).is_some() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_replies() {
        let kinds = Kinds::default();
        let reply = |status: u16, body: &str, good| {
            kinds.reply(Problem::http(StatusCode::from_u16(status).unwrap(), body.as_bytes()), good)
        };
        let kind = |reply: Reply| match reply {
            Reply::Refused(cause) => format!("refused {}", cause.kind),
            Reply::Failed(cause) => format!("failed {}", cause.kind),
            other => format!("{other:?}"),
        };
        let said = |code: &str| format!(r#"{{"error":"why","code":"{code}","request_id":"1"}}"#);
        assert_eq!(kind(reply(503, &said("overloaded"), true)), "refused 503 overloaded");
        assert_eq!(kind(reply(429, "slow down", true)), "refused 429");
        assert_eq!(kind(reply(504, "", true)), "TimedOut");
        assert_eq!(kind(reply(400, &said("invalid_image"), true)), "failed 400 invalid_image");
        assert_eq!(kind(reply(400, &said("invalid_image"), false)), "refused 400 invalid_image");
        assert_eq!(kind(reply(404, &said("unknown_model"), false)), "failed 404 unknown_model");
        assert_eq!(kind(reply(500, "<html>", false)), "failed 500");
        let grpc = |code, good| kind(kinds.reply(Problem::grpc(&Status::new(code, "why")), good));
        assert_eq!(grpc(Code::Unavailable, true), "refused UNAVAILABLE");
        assert_eq!(grpc(Code::ResourceExhausted, true), "refused RESOURCE_EXHAUSTED");
        assert_eq!(grpc(Code::DeadlineExceeded, true), "TimedOut");
        assert_eq!(grpc(Code::InvalidArgument, true), "failed INVALID_ARGUMENT");
        assert_eq!(grpc(Code::InvalidArgument, false), "refused INVALID_ARGUMENT");
        assert_eq!(grpc(Code::Internal, false), "failed INTERNAL");
    }

    #[test]
    fn kinds_are_bounded_and_tame() {
        let kinds = Kinds::default();
        let found: BTreeSet<String> =
            (0..1000).map(|number| kinds.cause(&format!("400 code{number}"), "why").kind).collect();
        assert_eq!(found.len(), MOST_KINDS + 1);
        assert!(found.contains("other"));
        assert_eq!(kinds.cause("400 code1", "why").kind, "400 code1");
        let cause = Kinds::default().cause(&format!("400 \u{1b}[31m{}", "x".repeat(500)), &"é\n".repeat(5000));
        assert_eq!(cause.kind.len(), MOST_KIND);
        assert!(cause.kind.starts_with("400 31mxx"), "{}", cause.kind);
        assert_eq!(cause.message.chars().count(), MOST_MESSAGE + 1);
        assert!(!cause.message.contains('\n'));
    }
}
