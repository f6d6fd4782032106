//! Compressed requests and answers: whole ones, damaged ones, and those that are made to cost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};

use blockdrop_testkit::Net;
use common::raw::{Raw, Whole, ask, head, post};
use common::server::Server;
use common::{contains, models, picture, png};
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use image::ImageFormat;
use serde_json::Value;

const LIMIT: usize = 65536;

fn started() -> Server {
    Server::start(models("net", &Net::tiny(5)).path(), &["--max-body-bytes", &LIMIT.to_string()])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn send(server: &Server, encoding: &str, body: &[u8]) -> Whole {
    ask(server.http, post("?path=full", &format!("content-encoding: {encoding}\r\n"), body)).await.whole()
}

fn chunked(encoding: &str, chunks: &[&[u8]]) -> Vec<u8> {
    let mut request = head("?path=full", &format!("content-encoding: {encoding}\r\ntransfer-encoding: chunked\r\n"));
    for chunk in chunks {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend_from_slice(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

fn check(found: &Whole, status: u16, code: &str, parts: &[&str]) {
    assert_eq!(found.status, status, "{found:?}");
    let body = found.json();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["request_id"].as_str(), found.header("x-request-id"));
    contains(body["error"].as_str().unwrap(), parts);
}

fn results(whole: &Whole) -> Value {
    assert_eq!(whole.status, 200, "{}", String::from_utf8_lossy(&whole.body));
    whole.json()["results"][0]["predictions"].clone()
}

#[tokio::test]
async fn a_compressed_body_is_as_good_as_a_plain_one() {
    let server = started();
    let image = picture(3, 100, ImageFormat::Bmp);
    let plain = results(&send(&server, "identity", &image).await);
    for (encoding, body) in
        [("gzip", gzip(&image)), ("GZIP", gzip(&image)), ("x-gzip", gzip(&image)), ("deflate", zlib(&image))]
    {
        assert_eq!(results(&send(&server, encoding, &body).await), plain, "{encoding}");
        let pieces: Vec<&[u8]> = body.chunks(97).collect();
        assert_eq!(results(&ask(server.http, chunked(encoding, &pieces)).await.whole()), plain, "{encoding}");
    }
    // One gzip stream after another is one body.
    let (first, second) = image.split_at(1000);
    assert_eq!(results(&send(&server, "gzip", &[gzip(first), gzip(second)].concat()).await), plain);
    // Of any kind of body.
    let form =
        [b"--b\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\n", &image[..], b"\r\n--b--\r\n"].concat();
    let headers = "content-encoding: gzip\r\ncontent-type: multipart/form-data; boundary=b\r\n";
    assert_eq!(results(&ask(server.http, post("?path=full", headers, &gzip(&form))).await.whole()), plain);
    server.stop();
}

#[tokio::test]
async fn what_is_no_whole_stream_is_refused() {
    let server = started();
    let image = picture(3, 60, ImageFormat::Bmp);
    for (encoding, whole) in [("gzip", gzip(&image)), ("deflate", zlib(&image))] {
        let expected = format!("expected a whole {encoding} stream");
        for part in [1, 5, whole.len() / 2, whole.len() - 1] {
            let found = send(&server, encoding, &whole[..part]).await;
            check(&found, 400, "invalid_body", &["ends too early", &expected]);
        }
        let mut damaged = vec![image.clone(), b"{}".to_vec(), vec![0; 40]];
        for at in [0, 1, whole.len() / 2, whole.len() - 3] {
            let mut body = whole.clone();
            body[at] ^= 0x55;
            damaged.push(body);
        }
        damaged.push([&whole[..], b"and more behind its end"].concat());
        for body in damaged {
            let found = send(&server, encoding, &body).await;
            check(&found, 400, "invalid_body", &["the body is damaged", &expected]);
        }
        check(&send(&server, encoding, b"").await, 400, "empty_body", &["the body is empty"]);
    }
    check(&send(&server, "gzip", &gzip(b"")).await, 400, "empty_body", &["the body is empty"]);
    // Deflate without the zlib format around it is not what HTTP calls deflate.
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::best());
    raw.write_all(&image).unwrap();
    check(&send(&server, "deflate", &raw.finish().unwrap()).await, 400, "invalid_body", &["deflate"]);
    // A connection that ends in the middle is told from a stream that does.
    let mut raw = Raw::open(server.http).await.unwrap();
    raw.send(&post("", "content-encoding: gzip\r\n", &gzip(&image))[..200]).await;
    raw.finish().await;
    drop(raw.answer().await);
    assert_eq!(server.classify("", png(1)).await["model"], "net");
    server.stop();
}

#[tokio::test]
async fn other_encodings_are_refused_with_those_that_are_not() {
    let server = started();
    for encoding in ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "*"] {
        let found = send(&server, encoding, &gzip(&png(1))).await;
        let said = format!("found content-encoding '{encoding}', expected one of: gzip, deflate");
        check(&found, 415, "unsupported_encoding", &[&said]);
        assert_eq!(found.header("accept-encoding"), Some("gzip, deflate"));
    }
    assert_eq!(server.metrics().await.code(415), 6.0);
}

/// Bodies that are small until they are decompressed, and those that never become anything.
#[tokio::test]
async fn bombs_cost_little() {
    let server = started();
    let before = server.metrics().await;
    let zeros = vec![0; 64 << 20];
    let many = format!("the body has more than {LIMIT} bytes");
    for (encoding, bomb) in [("gzip", gzip(&zeros)), ("deflate", zlib(&zeros))] {
        assert!(bomb.len() <= 2 * LIMIT);
        // So much of it that it is under the limit itself.
        let bomb = &bomb[..LIMIT.min(bomb.len())];
        for _ in 0..20 {
            let found = send(&server, encoding, bomb).await;
            check(&found, 413, "body_too_large", &[&many, &format!("expected at most {LIMIT}")]);
        }
    }
    // Gzip streams of nothing, one after another, are counted as they come.
    let nothing = gzip(b"").repeat(LIMIT / 20 + 1);
    let pieces: Vec<&[u8]> = nothing.chunks(1 << 12).collect();
    let found = ask(server.http, chunked("gzip", &pieces)).await.whole();
    let many = format!("the compressed body has more than {LIMIT} bytes");
    check(&found, 413, "body_too_large", &[&many, &format!("expected at most {LIMIT}")]);
    // What is too long is refused before any of it has come.
    let request = head("", &format!("content-encoding: gzip\r\ncontent-length: {}\r\n", LIMIT + 1));
    let found = ask(server.http, request).await.whole();
    check(&found, 413, "body_too_large", &[&format!("the compressed body has {} bytes", LIMIT + 1)]);
    // What is just small enough is read.
    let mut body = png(1);
    body.resize(LIMIT, 0);
    assert_eq!(send(&server, "gzip", &gzip(&body)).await.status, 200);
    body.push(0);
    check(&send(&server, "gzip", &gzip(&body)).await, 413, "body_too_large", &["the body has more than"]);
    if cfg!(target_os = "linux") {
        let resident = "process_resident_memory_bytes";
        let (before, after) = (before.of(resident), server.metrics().await.of(resident));
        assert!(after - before < 32e6, "{before} bytes grew to {after}");
    }
    server.stop();
}

/// A thousand times as many streams as a client has a use for, each with its own head to set up.
#[tokio::test]
async fn many_streams_of_next_to_nothing_are_refused_early() {
    let server = Server::start(models("net", &Net::tiny(5)).path(), &[]);
    for (encoding, one) in [("gzip", gzip(b"")), ("gzip", gzip(b"x")), ("deflate", zlib(b""))] {
        let body = one.repeat((8 << 20) / one.len());
        let found = send(&server, encoding, &body).await;
        check(&found, 400, "invalid_body", &[encoding, "bytes that decompress to", "expected a stream"]);
    }
    // What does not compress passes, in one stream or in several.
    let noise: Vec<u8> = {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..4 << 20).map(|_| next()).collect()
    };
    let several: Vec<u8> = noise.chunks(64 << 10).flat_map(gzip).collect();
    for body in [gzip(&noise), several] {
        assert!(body.len() > noise.len());
        check(&send(&server, "gzip", &body).await, 415, "unsupported_image_type", &["the image's type is unknown"]);
    }
    server.stop();
}

#[tokio::test]
async fn answers_are_compressed_where_that_is_asked_for_and_worth_it() {
    let server = started();
    let get = async |url: String, encoding: &str| {
        let response = server.client.get(url).header("accept-encoding", encoding).send().await.unwrap();
        let headers = response.headers().clone();
        (headers, response.bytes().await.unwrap())
    };
    for (url, least) in [(server.url("/v1/models"), "net"), (server.admin_url("/metrics"), "blockdrop_build_info")] {
        let plain = server.client.get(&url).send().await.unwrap();
        assert_eq!(plain.headers().get("content-encoding"), None);
        for (encoding, text) in [
            ("gzip", {
                let (headers, body) = get(url.clone(), "gzip").await;
                assert_eq!(headers["content-encoding"], "gzip");
                assert_eq!(headers["content-type"], plain.headers()["content-type"]);
                contains(headers["vary"].to_str().unwrap(), &["accept-encoding"]);
                let mut text = String::new();
                GzDecoder::new(&*body).read_to_string(&mut text).unwrap();
                text
            }),
            ("deflate", {
                let (headers, body) = get(url.clone(), "deflate, br;q=0.5").await;
                assert_eq!(headers["content-encoding"], "deflate");
                let mut text = String::new();
                ZlibDecoder::new(&*body).read_to_string(&mut text).unwrap();
                text
            }),
        ] {
            contains(&text, &[least]);
            assert!(text.len() > 1024, "{encoding}");
        }
        let (headers, body) = get(url, "br, zstd, identity").await;
        assert_eq!(headers.get("content-encoding"), None);
        contains(std::str::from_utf8(&body).unwrap(), &[least]);
    }
    for path in ["/v2/health/live", "/nowhere"] {
        let (headers, body) = get(server.url(path), "gzip").await;
        assert_eq!(headers.get("content-encoding"), None, "{path}");
        assert!(serde_json::from_slice::<Value>(&body).is_ok());
    }
}
