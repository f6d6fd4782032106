//! gRPC over HTTP/2: calls of one message, and streams with one message under way.
//!
//! Messages are encoded before the clock starts, so this speaks the protocol's framing itself: five bytes before a message,
//! a status in the trailers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::http1::{Lost, MOST_ANSWER, connect, sentence};
use super::outcome::Problem;
use super::pieces::{Outgoing, Pieces};

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The bytes before a message of `length` bytes.
pub(super) fn prefix(length: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// Clients that share a connection: so many streams keep one busy without waiting for each other.
const SHARED: usize = 16;

/// A connection that clients share; opened by the first that needs it.
#[derive(Default)]
struct Line(tokio::sync::Mutex<Option<http2::SendRequest<Outgoing>>>);

/// The connections of an arm.
#[derive(Default)]
pub(super) struct Lines(Mutex<Vec<Weak<Line>>>);

impl Lines {
    /// A client, on the first connection that has fewer than sixteen.
    pub(super) fn client(&self) -> Client {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|line| line.strong_count() > 0);
        let free = lines.iter().find(|line| line.strong_count() < SHARED).and_then(Weak::upgrade);
        let line = free.unwrap_or_else(|| {
            let line = Arc::default();
            lines.push(Arc::downgrade(&line));
            line
        });
        Client { line, sender: None, stream: None }
    }
}

/// A client: calls, or a stream of its own, over a connection that others use too.
pub(super) struct Client {
    line: Arc<Line>,
    sender: Option<http2::SendRequest<Outgoing>>,
    stream: Option<Stream>,
}

impl Client {
    /// Calls the method that `request` names with a message and waits for the answer's message. Where the connection is
    /// found closed before anything is sent, a new one is opened; what was sent is never sent again.
    pub(super) async fn call(
        &mut self,
        addresses: &[SocketAddr],
        request: impl Fn() -> Request<Pieces>,
    ) -> Result<Bytes, Problem> {
        let kept = self.connect(addresses).await?;
        match self.unary(request().map(Outgoing::Whole)).await {
            Err(Lost::Unsent(_)) if kept && self.closed() => {}
            done => return Ok(done?),
        }
        self.connect(addresses).await?;
        Ok(self.unary(request().map(Outgoing::Whole)).await?)
    }

    /// Sends a message on the client's stream, which is opened by what `request` says, and waits for the message that
    /// answers it. A stream that has ended before it takes the message is opened once more. A future that is dropped, and an
    /// error, take the stream along.
    pub(super) async fn stream(
        &mut self,
        addresses: &[SocketAddr],
        request: impl Fn() -> Request<Pieces>,
    ) -> Result<Bytes, Problem> {
        if let Some(mut stream) = self.stream.take() {
            match stream.ask(request().into_body()).await {
                Ok(message) => {
                    self.stream = Some(stream);
                    return Ok(message);
                }
                Err(Lost::Unsent(_)) => {}
                Err(Lost::Within(problem)) => return Err(problem),
            }
        }
        let kept = self.connect(addresses).await?;
        let (answered, stream) = self.fresh(request()).await;
        let (answered, stream) = match answered {
            Err(Lost::Unsent(_)) if kept && self.closed() => {
                self.connect(addresses).await?;
                self.fresh(request()).await
            }
            answered => (answered, stream),
        };
        let message = answered?;
        self.stream = stream;
        Ok(message)
    }

    async fn fresh(&mut self, request: Request<Pieces>) -> (Result<Bytes, Lost>, Option<Stream>) {
        let (head, message) = request.into_parts();
        let Some(mut stream) = self.open(Request::from_parts(head, ())) else {
            let problem = Problem::failed("connect", "the connection is gone");
            return (Err(Lost::Unsent(problem)), None);
        };
        (stream.ask(message).await, Some(stream))
    }

    fn closed(&self) -> bool {
        self.sender.as_ref().is_none_or(http2::SendRequest::is_closed)
    }

    /// Sees to a connection; whether there was one already.
    async fn connect(&mut self, addresses: &[SocketAddr]) -> Result<bool, Problem> {
        if !self.closed() {
            return Ok(true);
        }
        let mut shared = self.line.0.lock().await;
        if let Some(open) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            self.sender = Some(open.clone());
            return Ok(true);
        }
        let stream = TokioIo::new(connect(addresses).await?);
        let opened = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, driver) = opened.map_err(|error| Problem::failed("connect", sentence(&error)))?;
        // Ends with the last of its clients; what went wrong each of them is told.
        tokio::spawn(async move { drop(driver.await) });
        *shared = Some(sender.clone());
        self.sender = Some(sender);
        Ok(false)
    }

    async fn unary(&mut self, request: Request<Outgoing>) -> Result<Bytes, Lost> {
        let Some(sender) = &mut self.sender else {
            return Err(Lost::Unsent(Problem::failed("connect", "the connection is gone")));
        };
        let response = sender.try_send_request(request).await.map_err(lost)?;
        let within = async {
            let mut messages = Messages::of(response)?;
            let Some(message) = messages.next().await? else {
                return Err(Problem::wrong_answer("the call ended well and without a message"));
            };
            match messages.next().await? {
                None => Ok(message),
                Some(_) => Err(Problem::wrong_answer("the call was answered with two messages")),
            }
        };
        within.await.map_err(Lost::Within)
    }

    fn open(&mut self, request: Request<()>) -> Option<Stream> {
        let (feed, messages) = mpsc::channel(1);
        let request = request.map(|()| Outgoing::Stream { messages, now: Pieces::default() });
        let answer = self.sender.as_mut()?.try_send_request(request);
        Some(Stream { feed, answers: Answers::Due(Box::pin(answer)) })
    }
}

/// hyper gives the request back where it sent nothing of it.
fn lost(mut failed: TrySendError<Request<Outgoing>>) -> Lost {
    let problem = Problem::failed("connection closed", sentence(failed.error()));
    if failed.take_message().is_some() { Lost::Unsent(problem) } else { Lost::Within(problem) }
}

struct Stream {
    feed: mpsc::Sender<Pieces>,
    answers: Answers,
}

/// The head of an answer, or the request back.
type Head = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>;

enum Answers {
    /// The head of the answer is not here yet.
    Due(Pin<Box<dyn Future<Output = Head> + Send>>),
    Open(Messages),
}

impl Stream {
    async fn ask(&mut self, message: Pieces) -> Result<Bytes, Lost> {
        if self.feed.try_send(message).is_err() {
            return Err(Lost::Unsent(Problem::failed("stream ended", "the stream takes no more messages")));
        }
        if let Answers::Due(answer) = &mut self.answers {
            let response = answer.await.map_err(lost)?;
            self.answers = Answers::Open(Messages::of(response).map_err(Lost::Within)?);
        }
        let Answers::Open(messages) = &mut self.answers else {
            return Err(Lost::Within(Problem::failed("stream ended", "the stream has no answers")));
        };
        match messages.next().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Lost::Within(Problem::failed("stream ended", "the stream ended before the answer"))),
            Err(problem) => Err(Lost::Within(problem)),
        }
    }
}

/// The messages of an answer.
struct Messages {
    body: Incoming,
    rest: BytesMut,
}

impl Messages {
    /// Reads the head of an answer.
    fn of(response: Response<Incoming>) -> Result<Self, Problem> {
        let (head, body) = response.into_parts();
        // An error may be all of an answer.
        if let Some(status) = Status::from_header_map(&head.headers)
            && status.code() != Code::Ok
        {
            return Err(Problem::grpc(&status));
        }
        if head.status != StatusCode::OK {
            return Err(Problem::http(head.status, b"HTTP without a gRPC status"));
        }
        Ok(Self { body, rest: BytesMut::new() })
    }

    /// The next message; `None` at an end that is well.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return self.ended("the answer ended without a status");
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return Err(Problem::failed("answer cut off", sentence(&error))),
            };
            match frame.into_data() {
                Ok(data) => self.rest.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return self.over(&trailers);
                }
            }
        }
    }

    fn over(&self, trailers: &HeaderMap) -> Result<Option<Bytes>, Problem> {
        match Status::from_header_map(trailers) {
            Some(status) if status.code() == Code::Ok => self.ended("the answer ended within a message"),
            Some(status) => Err(Problem::grpc(&status)),
            None => Err(Problem::wrong_answer("the answer's trailers have no status")),
        }
    }

    fn ended(&self, otherwise: &str) -> Result<Option<Bytes>, Problem> {
        if self.rest.is_empty() { Ok(None) } else { Err(Problem::wrong_answer(otherwise)) }
    }

    /// A message that is all there.
    fn whole(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some((&[compressed, ref length @ ..], _)) = self.rest.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if compressed != 0 {
            return Err(Problem::wrong_answer("the answer is compressed, which was not asked for"));
        }
        if length > MOST_ANSWER {
            let problem = format!("a message of {length} bytes, expected at most {MOST_ANSWER}");
            return Err(Problem::failed("answer too large", problem));
        }
        if self.rest.len() < PREFIX + length {
            return Ok(None);
        }
        self.rest.advance(PREFIX);
        Ok(Some(self.rest.split_to(length).freeze()))
    }
}
