//! Every error of the HTTP interface: its status, its code, the one JSON shape, and a sentence that says what was found
//! and what was expected.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use blockdrop_testkit::Net;
use common::raw::{Whole, ask, head, post};
use common::server::Server;
use common::{FORMATS, contains, models, picture, png};
use image::ImageFormat;
use serde_json::Value;

/// A body, and the status, code and parts of the message that it is refused with.
type Case<'a, B> = (B, u16, &'a str, &'a [&'a str]);

fn started() -> Server {
    let flags = ["--max-body-bytes", "65536", "--max-pixels", "10000", "--max-images", "4"];
    Server::start(models("net", &Net::tiny(5)).path(), &flags)
}

/// Checks the shape of an error.
fn check(found: &Whole, status: u16, code: &str, parts: &[&str]) {
    let case = || format!("{} {}", found.head, String::from_utf8_lossy(&found.body));
    assert_eq!(found.status, status, "{}", case());
    assert_eq!(found.header("content-type"), Some("application/json"), "{}", case());
    let body = found.json();
    let keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["error", "code", "request_id"], "{}", case());
    assert_eq!(body["code"], code, "{}", case());
    assert_eq!(body["request_id"].as_str(), found.header("x-request-id"), "{}", case());
    contains(body["error"].as_str().unwrap(), parts);
}

/// Sends a request over a connection of its own.
async fn send(server: &Server, request: &[u8]) -> Whole {
    ask(server.http, request).await.whole()
}

/// Checks that the server still classifies.
async fn lives(server: &Server) {
    assert_eq!(server.classify("", png(1)).await["results"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn wrong_parameters() {
    const PATHS: &str = "policy, full, mask:BITS, first_k:N, random_k:N, random_k:N:SEED or distribute_k:N";
    const PROBABILITY: &str = "expected a probability from 0 to 1";
    let server = started();
    let least = format!("expected at least {}", {
        let costs = common::reference::Reference::load(models("net", &Net::tiny(5)).path().join("net/1").as_path());
        let costs = costs.costs();
        costs.policy + costs.executed(&"000000".parse().unwrap())
    });
    let cases: &[(&str, &[&str])] = &[
        ("path=", &["path: found ''", PATHS]),
        ("path=fastest", &["path: found 'fastest'", PATHS]),
        ("path=mask:", &["path: found 'mask:'", PATHS]),
        ("path=mask:10101", &["path: found a mask of 5 bits", "expected 6, one for each block"]),
        ("path=mask:10201x", &["path: found '2' in a mask", "expected only 0 and 1"]),
        ("path=first_k", &["path: found 'first_k'", PATHS]),
        ("path=first_k:7", &["path: found 7 blocks to keep", "expected 0 to 6"]),
        ("path=first_k:-1", &["path: found 'first_k:-1'", PATHS]),
        ("path=distribute_k:7", &["path: found 7 blocks to keep", "expected 0 to 6"]),
        ("path=random_k:7:1", &["path: found 7 blocks to keep", "expected 0 to 6"]),
        ("path=random_k:2:seed", &["path: found 'random_k:2:seed'", PATHS]),
        ("path=full&threshold=0.5", &["threshold: found it beside path=full", "only with path=policy"]),
        ("path=first_k:2&max_blocks=1", &["max_blocks: found it beside path=first_k", "only with path=policy"]),
        ("path=mask:111000&max_flops=1", &["max_flops: found it beside path=mask", "only with path=policy"]),
        ("threshold=half", &["threshold: found 'half'", PROBABILITY]),
        ("threshold=1.5", &["threshold: found 1.5", PROBABILITY]),
        ("threshold=-0.1", &["threshold: found -0.1", PROBABILITY]),
        ("threshold=NaN", &["threshold: found NaN", PROBABILITY]),
        ("max_blocks=-1", &["max_blocks: found '-1'", "expected a number of blocks"]),
        ("max_blocks=", &["max_blocks: found ''", "expected a number of blocks"]),
        ("max_flops=1e9", &["max_flops: found '1e9'", "expected a number of FLOPs"]),
        ("max_flops=1", &["max_flops: found 1", &least]),
        ("top_k=0", &["top_k: found 0", "expected a number of classes from 1"]),
        ("top_k=all", &["top_k: found 'all'", "expected a number of classes from 1"]),
        ("treshold=0.5", &["unknown field `treshold`", "expected one of `model`, `version`, `top_k`, `path`"]),
        ("top_k=1&path=full&top_k=2", &["duplicate field `top_k`"]),
    ];
    for (query, parts) in cases {
        let found = send(&server, &post(&format!("?{query}"), "", &png(1))).await;
        check(&found, 400, "invalid_parameter", parts);
    }
    let long = "x".repeat(5000);
    for parameter in ["path", "top_k", "model", "version"] {
        let found = send(&server, &post(&format!("?{parameter}={long}"), "", &png(1))).await;
        assert!(found.body.len() < 500, "{parameter}: what was found is shortened, found {} bytes", found.body.len());
    }
    let found = send(&server, &post("?model=none", "", &png(1))).await;
    check(&found, 404, "unknown_model", &["model 'none' not found", "expected one of: net"]);
    let found = send(&server, &post("?version=2", "", &png(1))).await;
    check(&found, 404, "unknown_model", &["version '2' of model 'net' not found", "expected one of: 1"]);
    lives(&server).await;
}

#[tokio::test]
async fn wrong_images() {
    const TYPES: &str = "expected JPEG, PNG, WebP, BMP or GIF";
    let server = started();
    let found = send(&server, &post("", "", b"")).await;
    let kinds = "expected an image's bytes, multipart/form-data with parts named image, or JSON";
    check(&found, 400, "empty_body", &["the body is empty", kinds]);
    let found = send(&server, &head("", "")).await;
    check(&found, 400, "empty_body", &["the body is empty", kinds]);

    for (bytes, start) in [(&b"%PDF-1.7 and more"[..], "25 50 44 46 2d 31 2e 37"), (b"x", "78"), (b"\0\0", "00 00")] {
        let found = send(&server, &post("", "content-type: image/png\r\n", bytes)).await;
        check(&found, 415, "unsupported_image_type", &[start, TYPES]);
    }
    for format in FORMATS {
        let name = match format {
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::WebP => "WebP",
            other => &format!("{other:?}").to_uppercase(),
        };
        let file = picture(1, 40, format);
        for part in [2, 5, 9] {
            let found = send(&server, &post("", "", &file[..file.len() * part / 10])).await;
            let parts = [&format!("the {name} image is damaged"), "expected a whole", name];
            check(&found, 400, "invalid_image", &parts);
        }
        let found = send(&server, &post("", "", &picture(1, 101, format))).await;
        check(&found, 413, "image_too_large", &["the image has 101 x 101 pixels", "expected at most 10000 pixels"]);
    }
    // So many pixels that memory for them could not be had: the head alone decides.
    let mut huge = picture(1, 2, ImageFormat::Bmp);
    huge[18..22].copy_from_slice(&60_000i32.to_le_bytes());
    huge[22..26].copy_from_slice(&60_000i32.to_le_bytes());
    let found = send(&server, &post("", "", &huge)).await;
    check(&found, 413, "image_too_large", &["the image has 60000 x 60000 pixels", "expected at most 10000 pixels"]);
    assert_eq!(server.classify("", picture(1, 100, ImageFormat::Png)).await["model"], "net", "at the limit");
    lives(&server).await;
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let server = started();
    // Refused by its stated length: nothing of it is sent.
    let found = send(&server, &head("", "content-length: 65537\r\n")).await;
    check(&found, 413, "body_too_large", &["the body has 65537 bytes", "expected at most 65536"]);
    assert_eq!(found.header("connection"), Some("close"));
    // Of unknown length: refused as soon as there is too much of it, though it never ends.
    let mut request = head("", "transfer-encoding: chunked\r\n");
    for _ in 0..65 {
        request.extend_from_slice(b"400\r\n");
        request.extend_from_slice(&[0x89; 1024]);
        request.extend_from_slice(b"\r\n");
    }
    let found = send(&server, &request).await;
    check(&found, 413, "body_too_large", &["the body has more than 65536 bytes", "expected at most 65536"]);

    // At the limit, of either kind, the image decides.
    let mut body = png(1);
    body.resize(65536, 0);
    assert_eq!(send(&server, &post("", "", &body)).await.status, 200);
    let mut request = head("", "transfer-encoding: chunked\r\n");
    request.extend_from_slice(b"10000\r\n");
    request.extend_from_slice(&body);
    request.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(send(&server, &request).await.status, 200);

    // A client that sends it all before it reads gets the answer too, not a broken connection.
    for size in [65537, 1 << 20, 8 << 20] {
        let found = server.post("", vec![0x89; size]).await;
        assert_eq!(found.status(), 413, "{size} bytes");
        assert_eq!(found.json::<Value>().await.unwrap()["code"], "body_too_large");
        let found = send(&server, &post("", "", &vec![0x89; size])).await;
        check(&found, 413, "body_too_large", &[&format!("the body has {size} bytes"), "expected at most 65536"]);
    }
    lives(&server).await;
}

#[tokio::test]
async fn wrong_methods_and_paths() {
    let server = started();
    let cases = [
        ("GET", "/v1/classify", "POST", "found method GET on /v1/classify, expected POST"),
        ("PUT", "/v1/classify?path=full", "POST", "found method PUT on /v1/classify, expected POST"),
        ("POST", "/v1/models", "GET,HEAD", "found method POST on /v1/models, expected GET"),
        ("DELETE", "/v1/models/net", "GET,HEAD", "found method DELETE on /v1/models/net, expected GET"),
    ];
    for (method, path, allow, part) in cases {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        let found = send(&server, request.as_bytes()).await;
        check(&found, 405, "method_not_allowed", &[part]);
        assert_eq!(found.header("allow"), Some(allow));
    }
    for (method, path) in [
        ("GET", "/page"),
        ("POST", "/v1/classify/"),
        ("GET", "/v1"),
        ("GET", "/v1/models/net/1"),
        ("GET", "/v1/../metrics"),
        ("GET", "/docs/nowhere"),
        // These are the admin listener's.
        ("GET", "/metrics"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        let found = send(&server, request.as_bytes()).await;
        check(&found, 404, "not_found", &[&format!("there is nothing at {path}")]);
    }
    let admin = async |method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        ask(server.admin, request).await.whole()
    };
    check(&admin("POST", "/v1/classify").await, 404, "not_found", &["there is nothing at /v1/classify"]);
    check(&admin("GET", "/v1/models").await, 404, "not_found", &["there is nothing at /v1/models"]);
    check(
        &admin("POST", "/metrics").await,
        405,
        "method_not_allowed",
        &["found method POST on /metrics, expected GET"],
    );
    assert_eq!(admin("GET", "/livez").await.json()["live"], true);
    assert_eq!(admin("GET", "/readyz").await.json()["ready"], true);
    lives(&server).await;
}

#[tokio::test]
async fn wrong_forms() {
    let server = started();
    let image = png(1);
    let part = |name: &str, content: &[u8]| {
        let head = format!("--b\r\ncontent-disposition: form-data; {name}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    };
    let good = part("name=\"image\"", &image);
    let end = b"--b--\r\n".to_vec();
    let five = [good.repeat(5), end.clone()].concat();
    let both = [good.clone(), part("filename=\"cat.png\"", &image), end.clone()].concat();
    let other = [part("name=\"file\"", &image), end.clone()].concat();
    let cases: [Case<'_, &[u8]>; 7] = [
        (b"no boundary in here", 400, "invalid_body", &["multipart: "]),
        (&good[..good.len() / 2], 400, "invalid_body", &["multipart: "]),
        (&good, 400, "invalid_body", &["multipart: "]),
        (&other, 400, "invalid_body", &["found a part named 'file'", "expected parts named image"]),
        (&both, 400, "invalid_body", &["found a part named ''", "expected parts named image"]),
        (&end, 400, "empty_body", &["found no parts", "expected parts named image"]),
        (&five, 413, "too_many_images", &["the request has more than 4 images", "expected at most 4"]),
    ];
    for (body, status, code, parts) in cases {
        let found = send(&server, &post("", "content-type: multipart/form-data; boundary=b\r\n", body)).await;
        check(&found, status, code, parts);
    }
    let found = send(&server, &post("", "content-type: multipart/form-data\r\n", &good)).await;
    check(&found, 400, "invalid_body", &["multipart: ", "boundary"]);
    lives(&server).await;
}

#[tokio::test]
async fn wrong_json() {
    const SHAPE: &str = r#"expected {"images":[{"b64":"..."}]}"#;
    let server = started();
    let cases: [Case<'_, &str>; 13] = [
        ("{", 400, "invalid_body", &["JSON: EOF", SHAPE]),
        ("\u{1}", 400, "invalid_body", &["JSON: ", SHAPE]),
        ("[]", 400, "invalid_body", &["JSON: ", SHAPE]),
        ("{}", 400, "invalid_body", &["JSON: missing field `images`", SHAPE]),
        (r#"{"images":"x"}"#, 400, "invalid_body", &["JSON: invalid type: string \"x\"", SHAPE]),
        (r#"{"images":[{"b64":1}]}"#, 400, "invalid_body", &["JSON: invalid type: integer `1`", SHAPE]),
        (r#"{"images":[{"url":"x"}]}"#, 400, "invalid_body", &["JSON: unknown field `url`", SHAPE]),
        (r#"{"images":[],"top_k":1}"#, 400, "invalid_body", &["JSON: unknown field `top_k`", SHAPE]),
        (r#"{"images":[]}"#, 400, "empty_body", &["the request has no images", "expected at least one"]),
        (
            r#"{"images":[{"b64":"*"}]}"#,
            400,
            "invalid_image",
            &["b64: ", "expected an image's bytes in standard base64"],
        ),
        (r#"{"images":[{"b64":""}]}"#, 400, "empty_body", &["the image is empty", "JPEG, PNG, WebP, BMP or GIF"]),
        (r#"{"images":[{"b64":"AAAA"}]}"#, 415, "unsupported_image_type", &["00 00 00", "JPEG, PNG, WebP, BMP or GIF"]),
        (
            r#"{"images":[{"b64":"AA=="},{"b64":"AA=="},{"b64":"AA=="},{"b64":"AA=="},{"b64":"AA=="}]}"#,
            413,
            "too_many_images",
            &["the request has more than 4 images", "expected at most 4"],
        ),
    ];
    for (body, status, code, parts) in cases {
        let found = send(&server, &post("", "content-type: application/json\r\n", body.as_bytes())).await;
        check(&found, status, code, parts);
    }
    let deep = "[".repeat(60_000);
    let found = send(&server, &post("", "content-type: application/json\r\n", deep.as_bytes())).await;
    check(&found, 400, "invalid_body", &["JSON: ", SHAPE]);
    lives(&server).await;
}

/// What is quoted is quoted in part, however long it is.
#[tokio::test]
async fn answers_are_short_whatever_was_found() {
    let server = started();
    let long = "a".repeat(60_000);
    let json = "content-type: application/json\r\n";
    let infer = |body: &str| {
        let length = body.len();
        format!("POST /v2/models/net/infer HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
            .into_bytes()
    };
    for (request, end) in [
        (post("", json, format!("{{\"{long}\":1}}").as_bytes()), r#"expected {"images":[{"b64":"..."}]}"#),
        (post("", json, format!("{{\"images\":\"{long}\"}}").as_bytes()), r#"expected {"images":[{"b64":"..."}]}"#),
        (infer(&format!("{{\"inputs\":\"{long}\"}}")), r#"expected {"inputs":[...]}"#),
    ] {
        let found = send(&server, &request).await;
        check(&found, 400, "invalid_body", &["aaaaaaaa…aaaaaaaa", end]);
        assert!(found.body.len() < 4096, "{}", found.body.len());
    }
    let found = send(&server, &post(&format!("?{long}=1"), "", b"x")).await;
    check(&found, 400, "invalid_parameter", &["query: ", "…"]);
    assert!(found.body.len() < 4096, "{}", found.body.len());
    lives(&server).await;
}
