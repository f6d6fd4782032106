//! HTTP/1.1: a connection, driven by whoever waits for its answer.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::outcome::Problem;
use super::pieces::Pieces;

/// Bytes of an answer, at most.
pub(super) const MOST_ANSWER: usize = 16 << 20;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why a request has no answer.
pub(super) enum Lost {
    /// Nothing of the request was sent: the connection had ended before.
    Unsent(Problem),
    Within(Problem),
}

impl From<Lost> for Problem {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Unsent(problem) | Lost::Within(problem) => problem,
        }
    }
}

/// A client's connection, if it has one.
#[derive(Default)]
pub(super) struct Client {
    connection: Option<Connection>,
}

impl Client {
    /// Sends a request and waits for the whole answer. Where the connection kept from the last request is found closed
    /// before anything is sent, a new one is opened; what was sent is never sent again. The connection is kept afterwards,
    /// if the server lets it and it is not to be `single`. A future that is dropped takes the connection along.
    pub(super) async fn ask(
        &mut self,
        addresses: &[SocketAddr],
        single: bool,
        request: impl Fn() -> Request<Pieces>,
    ) -> Result<Answer, Problem> {
        if let Some(mut kept) = self.connection.take() {
            match kept.ask(request()).await {
                Ok(answer) => {
                    self.connection = Some(kept);
                    return Ok(answer);
                }
                Err(Lost::Unsent(_)) => {}
                Err(Lost::Within(problem)) => return Err(problem),
            }
        }
        let mut new = Connection::open(addresses).await?;
        let answer = new.ask(request()).await?;
        if !single {
            self.connection = Some(new);
        }
        Ok(answer)
    }
}

/// Opens a TCP connection that sends at once.
pub(super) async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Problem> {
    let failed = |error: io::Error| {
        let to = addresses.first().map(SocketAddr::to_string).unwrap_or_default();
        Problem::failed("connect", format!("no connection to {to}: {error}"))
    };
    let stream = TcpStream::connect(addresses).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

struct Connection {
    sender: http1::SendRequest<Pieces>,
    /// Polled by the request under way, so that no other task has to be woken for it; absent once it has ended.
    driver: Option<http1::Connection<TokioIo<TcpStream>, Pieces>>,
}

impl Connection {
    async fn open(addresses: &[SocketAddr]) -> Result<Self, Problem> {
        let opened = http1::handshake(TokioIo::new(connect(addresses).await?)).await;
        let (sender, driver) = opened.map_err(|error| Problem::failed("connect", error.to_string()))?;
        Ok(Self { sender, driver: Some(driver) })
    }

    async fn ask(&mut self, request: Request<Pieces>) -> Result<Answer, Lost> {
        let Self { sender, driver } = self;
        let problem = |error: &hyper::Error| {
            Problem::failed(if error.is_parse() { "no HTTP" } else { "connection closed" }, sentence(error))
        };
        let asked = async {
            sender.ready().await.map_err(|error| Lost::Unsent(problem(&error)))?;
            let response = sender.try_send_request(request).await.map_err(|mut failed| {
                let problem = problem(failed.error());
                // hyper gives the request back where it sent nothing of it.
                if failed.take_message().is_some() { Lost::Unsent(problem) } else { Lost::Within(problem) }
            })?;
            let (head, body) = response.into_parts();
            let body = collect(body).await.map_err(Lost::Within)?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let mut asked = pin!(asked);
        poll_fn(|context| {
            if let Poll::Ready(done) = asked.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if let Some(running) = driver
                && Pin::new(running).poll(context).is_ready()
            {
                *driver = None;
            }
            asked.as_mut().poll(context)
        })
        .await
    }
}

/// An error and what lies under it.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let (mut text, mut under) = (error.to_string(), error.source());
    while let Some(error) = under {
        text = format!("{text}: {error}");
        under = error.source();
    }
    text
}

/// The whole body of an answer.
async fn collect(mut body: Incoming) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::failed("answer cut off", sentence(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MOST_ANSWER {
            let problem = format!("the answer has more than {MOST_ANSWER} bytes");
            return Err(Problem::failed("answer too large", problem));
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
