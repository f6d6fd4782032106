//! What a client beyond the bounds is told.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::server::error::Kind;

/// Time for a client to send a request's head, take the answer and close its side.
const TIME: Duration = Duration::from_secs(2);

const WHY: &str = "as many connections are open as may be (--max-connections); try again in a moment";

/// Tells the client at the other end of `stream`, for a moment at most: HTTP/1 by an answer to its request, HTTP/2 by a
/// GOAWAY, which is UNAVAILABLE to clients of gRPC.
pub(super) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    // A client that left does not want to be told.
    drop(tokio::time::timeout(TIME, tell(stream)).await);
}

async fn tell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> std::io::Result<()> {
    // An answer to nothing would be none to many clients.
    let mut head = [0; 2048];
    let mut read = 0;
    while read < head.len() && !head[..read].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut head[read..]).await? {
            0 => return Ok(()),
            more => read += more,
        }
    }
    let answer = if head.starts_with(b"PRI ") { goaway() } else { unavailable().into_bytes() };
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    // A socket that is closed with bytes unread is reset, and the answer lost.
    while stream.read(&mut head).await? > 0 {}
    Ok(())
}

fn unavailable() -> String {
    let id = uuid::Uuid::new_v4().to_string();
    let body = json!({"error": WHY, "code": Kind::Overloaded.code(), "request_id": &id}).to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         retry-after: 1\r\nconnection: close\r\nx-request-id: {id}\r\n\r\n{body}"
    )
}

/// The frames SETTINGS, with none, and GOAWAY, by which no stream was taken up (RFC 9113, sections 6.5 and 6.8).
fn goaway() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const REFUSED_STREAM: u8 = 7;
    let length = (8 + WHY.len()) as u8;
    let head = [0, 0, length, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, REFUSED_STREAM];
    [SETTINGS.as_slice(), &head, WHY.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn told(request: &[u8]) -> Vec<u8> {
        let (ours, mut theirs) = duplex(1 << 16);
        let told = tokio::spawn(refuse(ours));
        theirs.write_all(request).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        told.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn http_1_is_answered() {
        let answer = told(&[b"POST / HTTP/1.1\r\n\r\n".as_slice(), &[0; 5000]].concat()).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nretry-after: 1\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], "overloaded");
        assert!(head.contains(body["request_id"].as_str().unwrap()));
        assert!(told(b"POST / HT").await.is_empty(), "it is no request yet");
    }

    #[tokio::test]
    async fn http_2_is_told_to_go_away() {
        let found = told(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        assert_eq!(found[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        assert_eq!(usize::from(found[11]), found.len() - 18, "the frame's length is what follows its head");
        assert!(found.ends_with(WHY.as_bytes()));
    }
}
