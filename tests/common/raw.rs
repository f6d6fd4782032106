//! A client that writes bytes as they are told, and tells a whole answer from a broken one.

use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::PATIENCE;

pub(crate) struct Raw {
    stream: TcpStream,
    /// Read beyond the last answer.
    rest: Vec<u8>,
}

/// An answer that arrived to its last byte.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Whole {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Came {
    Whole(Whole),
    /// The connection ended before the first byte of an answer.
    Nothing,
    /// It ended within one.
    Part(Vec<u8>),
}

impl Came {
    pub(crate) fn whole(self) -> Whole {
        match self {
            Self::Whole(whole) => whole,
            other => panic!("expected a whole answer, found {other:?}"),
        }
    }
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.expect("connecting does not hang")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, rest: Vec::new() })
    }

    /// A client that has hardly room for what it does not read.
    pub(crate) async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = timeout(PATIENCE, socket.connect(address)).await.expect("connecting does not hang");
        Self { stream: stream.expect("the server takes connections"), rest: Vec::new() }
    }

    /// Writes `bytes`; a server that has closed the connection already is no error here: its answer may still be read.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("writing does not hang");
        drop(sent);
    }

    /// Writes no more; the other half stays open.
    pub(crate) async fn finish(&mut self) {
        drop(self.stream.shutdown().await);
    }

    /// Waits for the next answer.
    pub(crate) async fn answer(&mut self) -> Came {
        timeout(PATIENCE, self.read()).await.expect("an answer, or the end of the connection")
    }

    async fn read(&mut self) -> Came {
        loop {
            if let Some(whole) = self.take() {
                return Came::Whole(whole);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) if self.rest.is_empty() => return Came::Nothing,
                Ok(0) | Err(_) => return Came::Part(std::mem::take(&mut self.rest)),
                Ok(count) => self.rest.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// The first whole answer of what was read, if there is one.
    fn take(&mut self) -> Option<Whole> {
        let end = self.rest.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.rest[..end].to_vec()).expect("a head of UTF-8");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let mut whole = Whole { status, head, body: Vec::new() };
        let length = whole.header("content-length").map_or(0, |value| value.parse().expect("a length"));
        if self.rest.len() < end + length {
            return None;
        }
        whole.body = self.rest[end..end + length].to_vec();
        self.rest.drain(..end + length);
        Some(whole)
    }
}

/// A request to classify `body`, with `headers` each ended by a line end.
pub(crate) fn post(query: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = head(query, &format!("content-length: {length}\r\n{headers}"));
    request.extend_from_slice(body);
    request
}

/// The head of a request to classify.
pub(crate) fn head(query: &str, headers: &str) -> Vec<u8> {
    format!("POST /v1/classify{query} HTTP/1.1\r\nhost: test\r\n{headers}\r\n").into_bytes()
}

/// Sends `request` over a connection of its own.
pub(crate) async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Came {
    let mut raw = Raw::open(address).await.expect("the server takes connections");
    raw.send(request).await;
    raw.answer().await
}
