//! What goes over the wire: every protocol, prepared before the clock starts.
//!
//! HTTP/1.1: each caller has a connection of its own, kept or new for each request. gRPC: up to sixteen callers share an
//! HTTP/2 connection; with a streaming protocol each has a stream of its own, with one message under way. All connections
//! send at once (`TCP_NODELAY`).
//!
//! A kept connection that turns out to be closed before anything is sent is replaced: servers close idle ones. Nothing that
//! was sent is sent again, so a server that loses requests is found out.
//!
//! A call has no time limit of its own: who waits drops it. The connection (of gRPC: the stream) goes with it.

mod answers;
mod door;
mod fault;
mod grpc;
mod http1;
mod judge;
mod mail;
mod outcome;
mod pieces;
mod prepare;
mod tensor;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};

use crate::plan::{self, Protocol};
use crate::record::{Item, Payload, Reply};
use crate::target::{Caller, Target};

use answers::JSON_LENGTH;
use fault::Raw;
use judge::{Facts, Judge};
use mail::{Asked, Mail};
use outcome::{Kinds, Problem};
use pieces::Pieces;
use tensor::Wanted;

pub use prepare::{Input, classes, input};

/// The arms of a plan, ready to be driven.
#[derive(Clone)]
pub struct Wire(Arc<Shared>);

struct Shared {
    protocol: Protocol,
    arms: Vec<Arm>,
    /// Of the pool's images.
    labels: Vec<Option<u32>>,
    kinds: Kinds,
    /// Of a request that is broken on purpose.
    patience: Duration,
    /// A new connection for each request.
    single: bool,
}

struct Arm {
    addresses: Vec<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
    mail: Mail,
    wanted: Wanted,
    judge: Judge,
    lines: grpc::Lines,
    server: String,
}

/// A plan that its servers do not fit.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("request: found {found}, expected {expected}")]
    Request { found: String, expected: String },
    #[error("arm '{arm}': {url} does not answer: {reason}")]
    Unreachable { arm: String, url: String, reason: String },
    #[error("arm '{arm}': found {found}, expected {expected}")]
    Mismatch { arm: String, found: String, expected: String },
    #[error("{name}: {reason}")]
    Image { name: String, reason: String },
}

impl WireError {
    fn mismatch(arm: &plan::Arm, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Mismatch { arm: arm.name.clone(), found: found.into(), expected: expected.into() }
    }
}

impl Wire {
    /// What the server of an arm says it is, for the report: `blockdrop 0.1.0, cifar10-resnet32 version 1`. A part that it
    /// does not say is left out.
    pub fn server(&self, arm: usize) -> &str {
        &self.0.arms[arm].server
    }
}

impl Target for Wire {
    type Caller = WireCaller;

    fn caller(&self, arm: usize) -> WireCaller {
        let link = match http(self.0.protocol) {
            true => Link::Http(Box::default()),
            false => Link::Grpc(self.0.arms[arm].lines.client()),
        };
        WireCaller { shared: Arc::clone(&self.0), arm, link }
    }

    fn images(&self) -> usize {
        self.0.labels.len()
    }
}

/// Whether a protocol is one over HTTP/1.1.
fn http(protocol: Protocol) -> bool {
    !protocol.is_grpc()
}

/// A client of one arm.
pub struct WireCaller {
    shared: Arc<Shared>,
    arm: usize,
    link: Link,
}

enum Link {
    Http(Box<http1::Client>),
    Grpc(grpc::Client),
}

impl Caller for WireCaller {
    /// Sends `item` to the caller's own arm.
    async fn call(&mut self, item: Item) -> Reply {
        let asked = match item.load {
            Payload::Images { first } => Asked::Images { first },
            Payload::Bad { kind } => Asked::Bad { kind },
            Payload::Broken { fault, first } => {
                let (shared, arm) = (&self.shared, &self.shared.arms[self.arm]);
                let raw = arm.raw(shared.protocol, Asked::Images { first });
                fault::commit(fault, &arm.addresses, &raw, shared.patience).await;
                return Reply::Broken(fault);
            }
        };
        let facts = self.ask(asked).await;
        let (kinds, arm) = (&self.shared.kinds, &self.shared.arms[self.arm]);
        match (facts, asked) {
            (Ok(facts), Asked::Images { first }) => {
                let label = |image: usize| self.shared.labels[image];
                let judged = arm.mail.numbers(first).zip(&facts);
                Reply::Answered(judged.map(|(image, facts)| arm.judge.judge(image, label(image), facts)).collect())
            }
            (Ok(_), Asked::Bad { kind }) => {
                let message = format!("bad input {kind} was answered as if it were an image");
                Reply::Failed(kinds.cause("bad input answered", &message))
            }
            (Err(problem), asked) => kinds.reply(problem, matches!(asked, Asked::Images { .. })),
        }
    }
}

impl WireCaller {
    async fn ask(&mut self, asked: Asked) -> Result<Vec<Facts>, Problem> {
        let Shared { protocol, arms, single, .. } = &*self.shared;
        let arm = &arms[self.arm];
        let count = arm.mail.count(asked);
        let request = || arm.request(*protocol, asked);
        match &mut self.link {
            Link::Http(client) => {
                let answer = client.ask(&arm.addresses, *single, request).await?;
                if answer.status != StatusCode::OK {
                    return Err(Problem::http(answer.status, &answer.body));
                }
                match protocol {
                    Protocol::OipJson | Protocol::OipBinary => {
                        answers::oip_http(&answer.headers, &answer.body, &arm.wanted, count)
                    }
                    _ => answers::classify(&answer.body, count),
                }
            }
            Link::Grpc(client) => {
                let streams = matches!(protocol, Protocol::GrpcOipStream | Protocol::GrpcStream);
                let message = match streams {
                    true => client.stream(&arm.addresses, request).await?,
                    false => client.call(&arm.addresses, request).await?,
                };
                match protocol {
                    Protocol::GrpcOip => answers::oip_grpc(message, &arm.wanted, count),
                    Protocol::GrpcOipStream => answers::oip_stream(message, &arm.wanted, count),
                    Protocol::GrpcStream => answers::typed_stream(message),
                    _ => answers::typed(message),
                }
            }
        }
    }
}

impl Arm {
    fn request(&self, protocol: Protocol, asked: Asked) -> Request<Pieces> {
        let (head, body) = self.mail.write(asked);
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if protocol == Protocol::OipBinary {
            request.headers_mut().insert(JSON_LENGTH, HeaderValue::from(head));
        }
        request
    }

    /// A request as bytes, to be broken.
    fn raw(&self, protocol: Protocol, asked: Asked) -> Raw {
        let request = self.request(protocol, asked);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let http2 = !http(protocol);
        let mut head = Vec::new();
        if http2 {
            let authority = request.uri().authority().map_or("", |authority| authority.as_str());
            let pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)];
            pseudo.into_iter().chain(headers).for_each(|(name, value)| fault::field(&mut head, name, value));
        } else {
            head.extend_from_slice(format!("POST {path} HTTP/1.1\r\n").as_bytes());
            headers.for_each(|(name, value)| head.extend_from_slice(format!("{name}: {value}\r\n").as_bytes()));
            head.extend_from_slice(format!("content-length: {}\r\n", request.body().len()).as_bytes());
        }
        Raw { head, body: request.body().whole(), http2 }
    }
}
