//! Clients that send junk, lie, stall, leave, or come all at once: each gets its answer or a closed connection, and the
//! server goes on answering correctly.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::BufRead;

use blockdrop_testkit::Net;
use common::raw::{Came, Raw, Whole, ask, head, post};
use common::reference::Reference;
use common::server::{Server, answered, parts};
use common::{PATIENCE, heavy, models, picture, png};
use image::ImageFormat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::{StatusCode, Version};
use serde_json::Value;

/// A server of one net with what its answers have to be.
struct Bench {
    server: Server,
    reference: Reference,
    image: Vec<u8>,
}

impl Bench {
    fn start(net: &Net, flags: &[&str]) -> Self {
        let models = models("net", net);
        let server = Server::start(models.path(), flags);
        let reference = Reference::load(&models.path().join("net/1"));
        Self { server, reference, image: picture(1, net.side as u32, ImageFormat::Png) }
    }

    /// Runs one image at a time, each for a while.
    fn slow(flags: &[&str]) -> Self {
        Self::start(&heavy(3), &[&["--workers", "1", "--max-batch", "1"], flags].concat())
    }

    fn check(&self, answer: &Value) {
        self.reference.check(&answer["results"][0], &self.image, &self.reference.selection("full"), 0);
    }

    /// Checks that the server still answers correctly.
    async fn lives(&self) {
        self.check(&self.server.classify("?path=full", self.image.clone()).await);
    }

    /// Sends a request of several images in the background.
    fn send(&self, images: usize) -> tokio::task::JoinHandle<reqwest::Response> {
        let url = self.server.url("/v1/classify?path=full");
        let post = self.server.client.post(url).multipart(parts(&vec![self.image.clone(); images]));
        tokio::spawn(async move { post.send().await.unwrap() })
    }
}

#[tokio::test]
async fn junk_is_refused_or_hung_up_on() {
    let bench = Bench::start(&Net::tiny(5), &[]);
    let server = &bench.server;
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    let cases: [(&str, Vec<u8>, &[u16]); 10] = [
        ("no HTTP", b"hello there\r\n\r\n".to_vec(), &[400]),
        ("zeros", vec![0; 4096], &[400]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400]),
        ("a giant header", head("", &format!("x-giant: {}\r\n", "x".repeat(1 << 20))), &[431]),
        ("too many headers", head("", &many), &[431]),
        ("a giant path", head(&format!("?{}", "x".repeat(70_000)), ""), &[414]),
        ("a negative length", head("", "content-length: -1\r\n"), &[400]),
        ("two lengths", head("", "content-length: 1\r\ncontent-length: 2\r\n"), &[400]),
        ("a chunk without a size", [head("", "transfer-encoding: chunked\r\n"), b"zz\r\n".to_vec()].concat(), &[400]),
        ("an unknown version", b"GET / HTTP/7.0\r\n\r\n".to_vec(), &[400]),
    ];
    for (what, bytes, codes) in cases {
        match ask(server.http, bytes).await {
            Came::Whole(found) => assert!(codes.contains(&found.status), "{what}: {found:?}"),
            Came::Nothing => {}
            Came::Part(part) => panic!("{what}: {}", String::from_utf8_lossy(&part)),
        }
        bench.lives().await;
    }
}

#[tokio::test]
async fn damaged_requests_harm_nobody() {
    let bench = Bench::start(&Net::tiny(5), &[]);
    let mut generator = ChaCha8Rng::seed_from_u64(11);
    let form = b"--b\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nx\r\n--b--\r\n";
    let whole = [
        post("?path=full", "", &png(1)),
        post("", "content-type: multipart/form-data; boundary=b\r\n", form),
        post("", "content-type: application/json\r\n", br#"{"images":[{"b64":"AAAA"}]}"#),
    ];
    let mut answers = 0;
    for round in 0..150 {
        let mut bytes = whole[round % whole.len()].clone();
        for _ in 0..generator.random_range(1..4) {
            let at = generator.random_range(0..bytes.len());
            match generator.random_range(0..3) {
                0 => bytes[at] = generator.random(),
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, generator.random()),
            }
        }
        let mut raw = Raw::open(bench.server.http).await.unwrap();
        raw.send(&bytes).await;
        // Says that nothing more will come, where the length promises more.
        raw.finish().await;
        match raw.answer().await {
            Came::Whole(found) => {
                assert!(found.status < 500, "{found:?} to {}", String::from_utf8_lossy(&bytes));
                answers += 1;
            }
            Came::Nothing => {}
            Came::Part(part) => panic!("{}", String::from_utf8_lossy(&part)),
        }
    }
    assert!(answers > 30, "most of the damage should be to what is inside, found {answers} answers");
    bench.lives().await;
    let metrics = bench.server.until(|series| series.of("blockdrop_inflight_requests") == 0.0).await;
    assert_eq!(metrics.code(500), 0.0);
    assert_eq!(metrics.of("blockdrop_queue_depth"), 0.0);
}

#[tokio::test]
async fn clients_that_leave_within_their_request() {
    let bench = Bench::start(&Net::tiny(5), &[]);
    let server = &bench.server;
    // Within the head: it was no request yet.
    for bytes in ["P", "POST /v1/classify HT", "POST /v1/classify HTTP/1.1\r\nhost: test\r\ncontent-le"] {
        let mut raw = Raw::open(server.http).await.unwrap();
        raw.send(bytes).await;
    }
    bench.lives().await;
    // Within the body, at once or after having said that no more comes.
    for half in [false, true] {
        let mut raw = Raw::open(server.http).await.unwrap();
        raw.send(head("", "content-length: 1000\r\n")).await;
        raw.send(&bench.image[..20]).await;
        server.until(|series| series.of("blockdrop_inflight_requests") == 1.0).await;
        if half {
            raw.finish().await;
        }
        drop(raw);
        server.until(|series| series.of("blockdrop_inflight_requests") == 0.0).await;
    }
    let metrics = server.until(|series| series.code(400) + series.code(499) == 2.0).await;
    assert_eq!(metrics.of("blockdrop_images_total{model=\"net\"}"), 1.0, "nothing of them was run");
    bench.lives().await;
}

#[tokio::test]
async fn a_body_that_stalls_times_out() {
    let bench = Bench::start(&Net::tiny(5), &["--request-timeout", "1s"]);
    for request in [head("", "content-length: 1000\r\n"), head("", "transfer-encoding: chunked\r\n")] {
        let mut raw = Raw::open(bench.server.http).await.unwrap();
        raw.send(request).await;
        raw.send(b"6\r\n\x89PNG\r\n\r\n").await;
        let found = raw.answer().await.whole();
        assert_eq!(found.status, 408, "{found:?}");
        assert_eq!(found.json()["code"], "body_timeout");
        common::contains(found.json()["error"].as_str().unwrap(), &["did not arrive in time", "bytes of it"]);
        assert_eq!(found.header("connection"), Some("close"));
    }
    let metrics = bench.server.metrics().await;
    assert_eq!(metrics.code(408), 2.0);
    bench.lives().await;
}

#[tokio::test]
async fn http_2_without_asking_first() {
    let bench = Bench::start(&Net::tiny(5), &[]);
    let client = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let url = bench.server.url("/v1/classify?path=full");
    let posts = (0..50).map(|_| client.post(&url).body(bench.image.clone()).send());
    for response in futures_util::future::join_all(posts).await {
        let response = response.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        assert!(response.headers().contains_key("x-request-id"));
        bench.check(&answered(response).await);
    }
    let found = client.post(&url).body(vec![0; 17 << 20]).send().await.unwrap();
    assert_eq!(found.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(found.json::<Value>().await.unwrap()["code"], "body_too_large");
    let found = client.get(&url).send().await.unwrap();
    assert_eq!((found.status(), &found.headers()["allow"]), (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap()));
    bench.lives().await;
}

#[tokio::test]
async fn the_work_of_a_client_that_left_is_dropped() {
    let bench = Bench::slow(&[]);
    let server = &bench.server;
    let before = server.metrics().await.stage("decode");
    // Seven images wait for the only worker, and behind them those of clients that will leave.
    let busy = bench.send(8);
    server.until(|series| series.stage("decode") == before + 8.0).await;
    let mut raw = Raw::open(server.http).await.unwrap();
    raw.send(post("?path=full", "", &bench.image)).await;
    server.until(|series| series.stage("decode") == before + 9.0).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let stream = client.post(server.url("/v1/classify?path=full")).body(bench.image.clone()).send();
    let stream = tokio::spawn(stream);
    let queued = server.until(|series| series.stage("decode") == before + 10.0).await;
    assert!(queued.of("blockdrop_queue_depth") >= 3.0, "they are still waiting: {queued:?}");
    drop(raw);
    stream.abort();
    server.until(|series| series.code(499) == 2.0).await;

    let busy = answered(busy.await.unwrap()).await;
    assert_eq!(busy["results"].as_array().unwrap().len(), 8);
    bench.check(&busy);
    bench.lives().await;
    let after = server.metrics().await;
    assert_eq!(after.rejected("cancelled"), 2.0);
    assert_eq!(after.of("blockdrop_images_total{model=\"net\"}"), 9.0, "what was given up was not run");
    assert_eq!(after.of("blockdrop_queue_depth"), 0.0);
}

#[tokio::test]
async fn overload_is_refused_at_once() {
    let bench = Bench::slow(&["--max-queue", "3"]);
    let server = &bench.server;
    // One image runs and three wait: the queue is full until the worker is done with the first.
    let running = bench.send(1);
    server.until(|series| series.stage("decode") == 1.0 && series.of("blockdrop_queue_depth") == 0.0).await;
    let waiting = bench.send(3);
    server.until(|series| series.of("blockdrop_queue_depth") == 3.0).await;
    // Refused before its body is read: none of it is sent.
    let found = ask(server.http, head("", "content-length: 1000\r\n")).await.whole();
    assert!(!waiting.is_finished(), "it was not answered after those that wait");
    assert_eq!((found.status, found.header("retry-after")), (503, Some("1")));
    assert_eq!(found.json()["code"], "overloaded");

    let posts = (0..40).map(|_| server.post("?path=full", bench.image.clone()));
    let (mut served, mut refused) = (0, 0);
    for response in futures_util::future::join_all(posts).await {
        match response.status() {
            StatusCode::OK => {
                bench.check(&answered(response).await);
                served += 1;
            }
            status => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(response.headers()["retry-after"], "1");
                assert_eq!(response.json::<Value>().await.unwrap()["code"], "overloaded");
                refused += 1;
            }
        }
    }
    assert_eq!(served + refused, 40, "sent is answered");
    assert!(refused >= 30, "the queue has three places, {refused} of 40 were refused");
    for (task, images) in [(running, 1), (waiting, 3)] {
        let answer = answered(task.await.unwrap()).await;
        assert_eq!(answer["results"].as_array().unwrap().len(), images, "what was accepted is answered");
        bench.check(&answer);
    }
    // More images in one request than may ever wait.
    let found = bench.send(4).await.unwrap();
    assert_eq!(found.status(), StatusCode::PAYLOAD_TOO_LARGE);
    bench.lives().await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.rejected("queue_full"), f64::from(refused + 1));
    assert_eq!(metrics.code(503), f64::from(refused + 1));
    assert_eq!(metrics.of("blockdrop_images_total{model=\"net\"}"), f64::from(served + 5));
    assert_eq!(metrics.of("blockdrop_queue_depth"), 0.0);
}

#[tokio::test]
async fn a_refused_client_that_is_still_sending_sees_why() {
    let bench = Bench::slow(&["--max-queue", "1"]);
    let running = bench.send(1);
    bench.server.until(|series| series.stage("decode") == 1.0 && series.of("blockdrop_queue_depth") == 0.0).await;
    let waiting = bench.send(1);
    bench.server.until(|series| series.of("blockdrop_queue_depth") == 1.0).await;
    // More than the system's buffers take.
    let found = bench.server.post("", vec![0x89; 15 << 20]).await;
    assert_eq!(found.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(found.headers()["retry-after"], "1");
    for task in [running, waiting] {
        bench.check(&answered(task.await.unwrap()).await);
    }
}

#[tokio::test]
async fn bodies_in_memory_are_bounded() {
    let bench = Bench::start(&Net::tiny(5), &["--max-body-bytes", "65536", "--max-bodies-bytes", "65536"]);
    let server = &bench.server;
    // A whole image and zeros behind it, which the decoder never reads.
    let mut body = bench.image.clone();
    body.resize(65_536, 0);
    // A body at the limit fits alone, in whatever pieces it arrives.
    let mut pieces = head("?path=full", "transfer-encoding: chunked\r\n");
    for piece in body.chunks(700) {
        pieces.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        pieces.extend_from_slice(piece);
        pieces.extend_from_slice(b"\r\n");
    }
    pieces.extend_from_slice(b"0\r\n\r\n");
    let found = ask(server.http, pieces).await.whole();
    assert_eq!(found.status, 200, "{found:?}");
    bench.check(&found.json());

    // Of two at once, one is refused: it takes some tries until it is the second, and not the first.
    let request = post("?path=full", "", &body);
    let (most, last) = request.split_at(request.len() - 1);
    let refused = |found: &Whole| {
        assert_eq!((found.status, found.header("retry-after")), (503, Some("1")), "{found:?}");
        assert_eq!(found.json()["code"], "overloaded");
        common::contains(found.json()["error"].as_str().unwrap(), &["too many bodies are in memory"]);
    };
    let both = async || {
        let mut first = Raw::open(server.http).await.unwrap();
        first.send(most).await;
        server.until(|series| series.of("blockdrop_inflight_requests") == 1.0).await;
        let second = ask(server.http, &request).await.whole();
        first.send(last).await;
        (first.answer().await.whole(), second)
    };
    let mut refusals = 0.0;
    for attempt in 0.. {
        assert!(attempt < 100, "a body in memory is served, and another one refused");
        let (first, second) = both().await;
        let statuses = (first.status, second.status);
        for found in [first, second] {
            if found.status == 200 {
                bench.check(&found.json());
            } else {
                refused(&found);
                refusals += 1.0;
            }
        }
        assert_eq!(server.metrics().await.rejected("memory"), refusals);
        if statuses == (200, 503) {
            break;
        }
    }
    // Its memory came back.
    bench.check(&answered(server.post("?path=full", body).await).await);
}

#[tokio::test]
async fn time_runs_out() {
    let bench = Bench::slow(&["--request-timeout", "1ms"]);
    let found = ask(bench.server.http, post("?path=full", "", &bench.image)).await.whole();
    assert_eq!(found.status, 504, "{found:?}");
    assert_eq!(found.json()["code"], "deadline_exceeded");
    common::contains(found.json()["error"].as_str().unwrap(), &["time ran out before it was answered"]);
    let metrics = bench.server.metrics().await;
    assert_eq!((metrics.code(504), metrics.rejected("deadline")), (1.0, 1.0));

    // A request of which no image was answered in time has not been answered in time.
    let found = bench.send(3).await.unwrap();
    assert_eq!(found.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(found.json::<Value>().await.unwrap()["code"], "deadline_exceeded");
    let metrics = bench.server.metrics().await;
    assert_eq!((metrics.code(504), metrics.rejected("deadline")), (2.0, 4.0));
}

/// A full disk, or a reader of the log that is gone, costs the log and nothing else.
#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let models = models("net", &Net::tiny(5));
    let mut command = Server::command(models.path(), &[]);
    let mut child = command.env("RUST_LOG", "debug").stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = log.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let ready = ready.into_iter().find(|line| line["message"] == "ready").unwrap();
    let url = format!("http://{}/v1/classify", ready["address"].as_str().unwrap());
    drop(log);
    let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    for _ in 0..3 {
        let found = client.post(&url).body(png(1)).send().await.unwrap();
        assert_eq!(found.status(), StatusCode::OK);
        let found = client.post(&url).body("junk").send().await.unwrap();
        assert_eq!(found.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
