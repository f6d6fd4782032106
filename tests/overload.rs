//! More than can be served: clients that flood, connections without end, deadlines that cannot be met, answers that nobody
//! takes. Others are served as if they were alone, and what is refused is refused at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use blockdrop::proto::v1::ClassifyRequest;
use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop_testkit::Net;
use common::raw::{Came, Raw, ask, post};
use common::server::{Server, answered};
use common::{PATIENCE, contains, heavy, models, picture, png};
use futures_util::future::join_all;
use image::ImageFormat;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// Runs one image at a time, each for a while; and an image for it.
fn slow(flags: &[&str]) -> (Server, Vec<u8>) {
    let net = heavy(3);
    let server = Server::start(models("net", &net).path(), &[&["--workers", "1", "--max-batch", "1"], flags].concat());
    (server, picture(1, net.side as u32, ImageFormat::Png))
}

/// A client over a connection of its own.
fn grpc(server: &Server) -> ClassifierClient<Channel> {
    ClassifierClient::new(Endpoint::new(format!("http://{}", server.grpc)).unwrap().connect_lazy())
}

fn connections(listener: &str) -> String {
    format!("blockdrop_connections{{listener=\"{listener}\"}}")
}

fn closed(listener: &str, reason: &str) -> String {
    format!("blockdrop_connections_closed_total{{listener=\"{listener}\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn one_connection_that_floods_does_not_delay_others() {
    let (server, image) = slow(&["--max-queue", "24"]);
    let url = server.url("/v1/classify?path=full");
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flood = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let floods: Vec<_> = (0..40)
        .map(|_| {
            let (flood, url, image) = (flood.clone(), url.clone(), image.clone());
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut said = None;
                while !stop.load(Ordering::Relaxed) {
                    let found = flood.post(&url).body(image.clone()).send().await.unwrap();
                    if found.status() == StatusCode::OK {
                        served.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(found.status(), StatusCode::SERVICE_UNAVAILABLE);
                        said = Some(found.json::<Value>().await.unwrap());
                        tokio::time::sleep(Duration::from_millis(20)).await; // it wants the places, not the processor
                    }
                }
                said
            })
        })
        .collect();
    let full = |series: &common::server::Series| series.of("blockdrop_queue_depth") >= 12.0;
    let before = server.until(full).await;
    assert_eq!(before.of(&connections("http")), 1.0, "the flood is one connection");
    assert_eq!(before.of("blockdrop_queue_limit"), 24.0);

    let mut typed = grpc(&server);
    for round in 0..6 {
        let had = served.load(Ordering::Relaxed);
        if round % 2 == 0 {
            server.classify("?path=full", image.clone()).await;
        } else {
            let request = ClassifyRequest { image: image.clone().into(), path: "full".into(), ..Default::default() };
            typed.classify(request).await.unwrap();
        }
        // The image that ran, one that went before this one, and what the flood's client has not seen yet.
        let more = served.load(Ordering::Relaxed) - had;
        assert!(more <= 4, "{more} images of the flood were answered before this one");
    }
    assert!(server.metrics().await.of("blockdrop_queue_depth") >= 8.0, "it floods all the time");
    stop.store(true, Ordering::Relaxed);
    let said: Vec<Value> = join_all(floods).await.into_iter().filter_map(Result::unwrap).collect();
    assert!(!said.is_empty());
    for refused in said {
        assert_eq!(refused["code"], "overloaded");
        contains(refused["error"].as_str().unwrap(), &["images of this connection wait"]);
    }
    let after = server.metrics().await;
    assert!(after.rejected("connection_full") > 0.0);
    assert_eq!((after.rejected("queue_full"), after.rejected("too_late")), (0.0, 0.0));
}

#[tokio::test]
async fn a_connection_has_at_most_its_share_of_the_queue() {
    let (server, image) = slow(&["--max-queue", "24", "--max-queue-per-connection", "2"]);
    let flood = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let posts = (0..10).map(|_| flood.post(server.url("/v1/classify?path=full")).body(image.clone()).send());
    let answers = join_all(posts).await.into_iter().map(|found| found.unwrap().status());
    let served = answers.filter(|status| *status == StatusCode::OK).count();
    assert!((2..8).contains(&served), "one runs and two wait, a few get in later: {served} of 10");
    let refused = server.metrics().await.rejected("connection_full");
    assert_eq!(refused, (10 - served) as f64);
    // A request that would never fit is the client's mistake.
    let form = common::server::parts(&vec![image.clone(); 3]);
    let found = server.client.post(server.url("/v1/classify")).multipart(form).send().await.unwrap();
    assert_eq!(found.status(), StatusCode::PAYLOAD_TOO_LARGE);
    contains(&found.text().await.unwrap(), &["expected at most 2"]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn threads_that_serve_stand_behind_the_workers() {
    let server = Server::start(models("net", &Net::tiny(5)).path(), &["--serving-nice", "7"]);
    server.classify("", png(1)).await;
    let mut found = std::collections::BTreeMap::<String, Vec<i32>>::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
        found.entry(name.to_owned()).or_default().push(rest.split(' ').nth(16).unwrap().parse().unwrap());
    }
    let of = |start: &str| -> Vec<i32> {
        found.iter().filter(|(name, _)| name.starts_with(start)).flat_map(|(_, each)| each.clone()).collect()
    };
    // The tests themselves may be nice.
    let own = of("blockdrop")[0];
    assert_eq!(of("worker-"), [own, own], "{found:?}");
    let serving = of("tokio");
    assert!(!serving.is_empty() && serving.iter().all(|nice| *nice == (own + 7).min(19)), "{found:?}");
}

#[tokio::test]
async fn connections_are_bounded_and_operators_have_their_own() {
    let server = Server::start(models("net", &Net::tiny(5)).path(), &["--max-connections", "2"]);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::open(server.http).await.unwrap();
        raw.send(post("", "", &png(1))).await;
        assert_eq!(raw.answer().await.whole().status, 200);
        kept.push(raw);
    }
    let found = ask(server.http, post("", "", &vec![0; 1 << 20])).await.whole();
    assert_eq!(
        (found.status, found.header("retry-after"), found.header("connection")),
        (503, Some("1"), Some("close"))
    );
    assert_eq!(found.json()["code"], "overloaded");
    contains(found.json()["error"].as_str().unwrap(), &["--max-connections"]);
    let refused = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    refused.get(server.url("/")).send().await.unwrap_err();

    // The other listeners are not affected, and have bounds of their own.
    let request = || ClassifyRequest { image: png(1).into(), ..Default::default() };
    let mut typed = [grpc(&server), grpc(&server)];
    for client in &mut typed {
        client.classify(request()).await.unwrap();
    }
    let status = grpc(&server).classify(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let metrics = server.metrics().await;
    assert_eq!((metrics.of(&connections("http")), metrics.of(&connections("grpc"))), (2.0, 2.0));
    assert_eq!(metrics.of(&closed("http", "limit")), 2.0);
    assert!(metrics.of(&closed("grpc", "limit")) >= 1.0, "its library may try again");
    assert!(metrics.of(&connections("admin")) >= 1.0);

    // One that is closed makes room.
    kept[0].send(post("", "", &png(2))).await;
    assert_eq!(kept[0].answer().await.whole().status, 200);
    drop(kept.pop());
    server.until(|series| series.of(&connections("http")) < 2.0).await;
    server.classify("", png(1)).await;
}

#[tokio::test]
async fn what_would_be_answered_too_late_is_refused_at_once() {
    let (server, image) = slow(&["--max-queue", "256"]);
    // Nothing is known of the net's pace, so that nobody is refused for it.
    let mut slowest = 0f64;
    for _ in 0..20 {
        let answer = server.classify("?path=full", image.clone()).await;
        slowest = slowest.max(answer["results"][0]["timing_ms"]["backbone"].as_f64().unwrap());
    }
    assert_eq!(server.metrics().await.rejected("too_late"), 0.0);
    let query = format!("?path=full&timeout={}", (8.0 * slowest * 1000.0) as u64);
    let posts = (0..40).map(|_| server.post(&query, image.clone()));
    let (mut served, mut refused, mut expired) = (0, 0, 0);
    for found in join_all(posts).await {
        match found.status() {
            StatusCode::OK => served += 1,
            StatusCode::SERVICE_UNAVAILABLE => {
                let after: u64 = found.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!((1..=60).contains(&after));
                let error = found.json::<Value>().await.unwrap();
                assert_eq!(error["code"], "overloaded");
                contains(error["error"].as_str().unwrap(), &["would be too late"]);
                refused += 1;
            }
            StatusCode::GATEWAY_TIMEOUT => expired += 1,
            other => panic!("{other}"),
        }
    }
    println!("{served} served, {refused} refused, {expired} expired");
    assert!(served > 0 && refused >= 20, "{served} served, {refused} refused, {expired} expired");
    let metrics = server.metrics().await;
    assert_eq!((metrics.rejected("too_late"), metrics.rejected("queue_full")), (f64::from(refused), 0.0));
    // With time enough, or alone, nobody is too late.
    answered(server.post(&query, image.clone()).await).await;
    let posts = (0..12).map(|_| server.classify("?path=full", image.clone()));
    join_all(posts).await;
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_hung_up_on() {
    let server = Server::start(models("net", &Net::tiny(5)).path(), &["--write-timeout", "300ms"]);
    // More than the system's buffers take.
    let mut deaf = Raw::open(server.http).await.unwrap();
    let request = "GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n";
    let sent = tokio::spawn(async move {
        for _ in 0..2000 {
            deaf.send(request).await;
        }
        deaf
    });
    server.until(|series| series.of(&closed("http", "untaken")) == 1.0).await;
    server.until(|series| series.of(&connections("http")) == 0.0).await;
    drop(sent.await.unwrap());

    // Over HTTP/2 with no window for any answer: what is sent are its preface, a setting and a GET.
    let mut deaf = Raw::open(server.http).await.unwrap();
    deaf.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    deaf.send([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]).await;
    let head = [&[0x82, 0x86, 0x04, 13], b"/openapi.json".as_slice(), &[0x01, 4], b"test"].concat();
    deaf.send([&[0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1], head.as_slice()].concat()).await;
    server.until(|series| series.of(&closed("http", "untaken")) == 2.0).await;
    assert!(matches!(deaf.answer().await, Came::Part(_)), "its settings, and then the end");

    // One that has nothing to take is left alone: a stream that has been answered, and a connection that is kept.
    let (messages, sent) = mpsc::channel(1);
    let mut typed = grpc(&server);
    let mut kept = Raw::open(server.http).await.unwrap();
    let sent = stream_of(sent);
    let first = ClassifyRequest { image: png(1).into(), ..Default::default() };
    messages.send(first.clone()).await.unwrap();
    let mut answers = typed.classify_stream(sent).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(answers.message().await.unwrap().is_some());
        kept.send(post("", "", &png(1))).await;
        assert_eq!(kept.answer().await.whole().status, 200);
        tokio::time::sleep(Duration::from_millis(700)).await;
        messages.send(first.clone()).await.unwrap();
    }
    assert!(answers.message().await.unwrap().is_some());
    let metrics = server.metrics().await;
    assert_eq!((metrics.of(&closed("http", "untaken")), metrics.of(&closed("grpc", "untaken"))), (2.0, 0.0));
}

fn stream_of<T>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
}
