//! Requests broken on purpose: bytes over a connection of their own.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http1::connect;
use crate::record::Fault;

/// A request as bytes on a connection.
pub(super) struct Raw {
    /// Up to the body; of HTTP/1.1 without the empty line at its end, of HTTP/2 the header block.
    pub(super) head: Vec<u8>,
    pub(super) body: Bytes,
    pub(super) http2: bool,
}

/// Misbehaves, for at most as long as `most`.
pub(super) async fn commit(fault: Fault, addresses: &[SocketAddr], raw: &Raw, most: Duration) {
    // Whatever becomes of it: a server may well close the connection.
    drop(tokio::time::timeout(most, misbehave(fault, addresses, raw, most)).await);
}

/// What is sent a few bytes at a time: bytes, and how often in the time there is.
const SIP: usize = 7;
const SIPS: u32 = 20;
/// Bytes of headers.
const GIANT: usize = 1 << 20;

async fn misbehave(fault: Fault, addresses: &[SocketAddr], raw: &Raw, most: Duration) -> std::io::Result<()> {
    let Ok(mut stream) = connect(addresses).await else { return Ok(()) };
    match fault {
        Fault::Disconnect => {
            stream.write_all(&raw.open(raw.body.len(), true)).await?;
            stream.flush().await
        }
        Fault::Junk => {
            let junk: Vec<u8> = (0..1024u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect();
            stream.write_all(&junk).await?;
            drain(&mut stream).await
        }
        Fault::SlowBody => {
            stream.write_all(&raw.open(0, false)).await?;
            for sip in raw.body[..raw.body.len() / 2].chunks(SIP).take(SIPS as usize) {
                stream.write_all(&raw.part(sip, false)).await?;
                tokio::time::sleep(most / SIPS).await;
            }
            drain(&mut stream).await
        }
        Fault::GiantHeaders => {
            stream.write_all(&raw.giant()).await?;
            drain(&mut stream).await
        }
        Fault::HalfClose => {
            stream.write_all(&raw.open(raw.body.len() / 2, false)).await?;
            stream.shutdown().await?;
            drain(&mut stream).await
        }
    }
}

/// Reads to the end, so that the server is the one to close.
async fn drain(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut chunk = [0; 4096];
    while stream.read(&mut chunk).await? > 0 {}
    Ok(())
}

/// A frame's payload, at most, where nothing else was agreed on.
const FRAME: usize = 16_384;
/// Bytes of a body that a server takes before it says that it takes more.
const WINDOW: usize = 65_535;

impl Raw {
    /// The head and the first `length` bytes of the body, which may be `all`.
    fn open(&self, length: usize, all: bool) -> Vec<u8> {
        if !self.http2 {
            return [&self.head[..], b"\r\n", &self.body[..length]].concat();
        }
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(HEADERS, END_HEADERS, &self.head));
        bytes.extend(self.part(&self.body[..length.min(WINDOW)], all && length <= WINDOW));
        bytes
    }

    /// More of the body.
    fn part(&self, body: &[u8], all: bool) -> Vec<u8> {
        if !self.http2 {
            return body.to_vec();
        }
        let last = body.len().div_ceil(FRAME).saturating_sub(1);
        let frames = body.chunks(FRAME).enumerate();
        frames.flat_map(|(at, chunk)| frame(DATA, if all && at == last { END_STREAM } else { 0 }, chunk)).collect()
    }

    /// The head with a megabyte more of headers.
    fn giant(&self) -> Vec<u8> {
        if !self.http2 {
            let line = format!("x-giant: {}\r\n", "g".repeat(1013));
            return [&self.head[..], line.repeat(GIANT / line.len()).as_bytes(), b"\r\n"].concat();
        }
        let mut block = self.head.clone();
        for _ in 0..GIANT / 1024 {
            field(&mut block, "x-giant", &"g".repeat(1013));
        }
        let mut bytes = PREFACE.to_vec();
        let last = block.len().div_ceil(FRAME) - 1;
        for (at, chunk) in block.chunks(FRAME).enumerate() {
            let kind = if at == 0 { HEADERS } else { CONTINUATION };
            bytes.extend(frame(kind, if at == last { END_HEADERS } else { 0 }, chunk));
        }
        bytes
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What an HTTP/2 client begins with, and empty settings (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of the first stream.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags, 0, 0, 0, 1];
    bytes.extend_from_slice(payload);
    bytes
}

/// Adds a header as a literal that is not indexed (RFC 7541, 6.2.2).
pub(super) fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        let mut left = text.len();
        if left < 127 {
            block.push(left as u8);
        } else {
            block.push(127);
            left -= 127;
            while left >= 128 {
                block.push((left % 128) as u8 | 128);
                left /= 128;
            }
            block.push(left as u8);
        }
        block.extend_from_slice(text.as_bytes());
    }
}
