//! Connections that behave as they are told, and requests written by hand: HTTP/1.1, and the frames of HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection. Whatever becomes of it is no error: it may be refused, closed or not read by the server at any moment.
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) async fn open(address: SocketAddr) -> Option<Self> {
        let stream = timeout(Duration::from_secs(5), TcpStream::connect(address)).await.ok()?.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self(stream))
    }

    /// A connection on which HTTP/2 has begun.
    pub(crate) async fn second(address: SocketAddr) -> Option<Self> {
        let mut wire = Self::open(address).await?;
        wire.send(preface()).await;
        Some(wire)
    }

    /// Writes `bytes`, as far as they are taken. Returns whether all of them were.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        timeout(Duration::from_secs(1), self.0.write_all(bytes.as_ref())).await.is_ok_and(|sent| sent.is_ok())
    }

    /// What comes within `most`, or until the connection ends.
    pub(crate) async fn read(&mut self, most: Duration) -> Vec<u8> {
        let mut all = Vec::new();
        let read = async {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = self.0.read(&mut part).await {
                all.extend_from_slice(&part[..count]);
            }
        };
        drop(timeout(most, read).await);
        all
    }

    /// Writes no more.
    pub(crate) async fn finish(&mut self) {
        drop(self.0.shutdown().await);
    }

    /// Ends the connection by RST, with what was not sent yet forgotten.
    pub(crate) fn reset(self) {
        drop(self.0.set_zero_linger());
    }
}

/// The preface of HTTP/2 with empty settings.
fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags of HEADERS and DATA.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// RST_STREAM with the code CANCEL.
pub(crate) fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// The header block of a POST: each field a literal that is not indexed.
pub(crate) fn block(path: &str, content_type: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", content_type),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a length of one byte");
            block.push(text.len() as u8);
            block.extend(text.bytes());
        }
    }
    block
}

pub(crate) fn head(stream: u32, path: &str, content_type: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(path, content_type))
}

/// A whole POST of up to a frame's length.
pub(crate) fn request(stream: u32, path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    [head(stream, path, content_type), frame(DATA, END_STREAM, stream, body)].concat()
}

/// A gRPC message with its prefix.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0], &(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// The types of the frames that an answer consists of.
pub(crate) fn kinds(mut answer: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *answer
        && let Some(rest) = answer.get(9 + u32::from_be_bytes([0, a, b, c]) as usize..)
    {
        kinds.push(kind);
        answer = rest;
    }
    kinds
}
