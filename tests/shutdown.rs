//! SIGTERM and SIGINT: what was accepted is answered, what comes later is told to go elsewhere, and the drain ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockdrop_testkit::Net;
use common::raw::{Came, Raw, ask, post};
use common::reference::Reference;
use common::server::{Series, Server, answered, parts};
use common::{heavy, models, picture, png, run};
use image::ImageFormat;
use rustix::process::Signal;
use serde_json::Value;

/// What a client saw of its requests: those that were answered, by id, and how many were not.
#[derive(Default)]
struct Seen {
    answers: BTreeMap<String, u16>,
    /// The connection was refused, or ended before an answer began.
    turned_away: usize,
}

/// Sends request after request, over connections that it keeps or over a new one for each, until it is turned away.
async fn client(address: SocketAddr, number: usize, keep: bool, served: Arc<AtomicUsize>) -> Seen {
    let mut seen = Seen::default();
    let mut kept = None;
    for sent in 0.. {
        let id = format!("{number}-{sent}");
        let mut raw = match kept.take() {
            Some(raw) => raw,
            None => match Raw::open(address).await {
                Ok(raw) => raw,
                Err(_) => break,
            },
        };
        let query = ["", "?path=full", "?path=first_k:3"][sent % 3];
        raw.send(post(query, &format!("x-request-id: {id}\r\n"), &png(sent as u64))).await;
        let whole = match raw.answer().await {
            Came::Whole(whole) => whole,
            Came::Nothing => break,
            Came::Part(part) => panic!("{id} has part of an answer: {}", String::from_utf8_lossy(&part)),
        };
        assert_eq!(whole.header("x-request-id"), Some(id.as_str()), "an answer to what was asked");
        seen.answers.insert(id, whole.status);
        match whole.status {
            200 => {
                assert_eq!(whole.json()["results"].as_array().unwrap().len(), 1);
                served.fetch_add(1, Ordering::Relaxed);
            }
            503 => {
                assert_eq!(whole.json()["code"], "shutting_down");
                assert_eq!((whole.header("retry-after"), whole.header("connection")), (Some("1"), Some("close")));
                return seen;
            }
            status => panic!("{status}: {whole:?}"),
        }
        if keep && whole.header("connection") != Some("close") {
            kept = Some(raw);
        }
    }
    seen.turned_away = 1;
    seen
}

/// A dozen times, with twelve clients each: every request that the server took has its whole answer. Those it took are
/// known from its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_request_is_lost() {
    let models = models("net", &Net::tiny(5));
    let (mut served, mut refused, mut turned_away) = (0, 0, 0);
    for round in 0..12 {
        let env = [("RUST_LOG", "blockdrop=debug")];
        let mut server = Server::start_with(models.path(), &[], &env);
        let answered = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..12)
            .map(|number| tokio::spawn(client(server.http, number, number % 2 == 0, Arc::clone(&answered))))
            .collect();
        while answered.load(Ordering::Relaxed) < 20 + 7 * round {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        server.signal(if round % 2 == 0 { Signal::TERM } else { Signal::INT });
        let mut answers = BTreeMap::new();
        for client in clients {
            let seen = client.await.unwrap();
            turned_away += seen.turned_away;
            answers.extend(seen.answers);
        }
        let status = tokio::task::block_in_place(|| server.ended());
        assert_eq!(status.code(), Some(0), "round {round}");

        let taken = taken(&server.log());
        assert_eq!(taken, answers, "round {round}: requests taken, and requests answered");
        served += answers.values().filter(|status| **status == 200).count();
        refused += answers.values().filter(|status| **status == 503).count();
    }
    assert!(served >= 12 * 20 && turned_away + refused == 12 * 12, "{served}, {refused}, {turned_away}");
}

/// The requests that the server logged, with the status that it answered.
fn taken(log: &[Value]) -> BTreeMap<String, u16> {
    let requests = log.iter().filter(|line| line["message"] == "close" && line["span"]["name"] == "request");
    let taken = requests.map(|line| {
        let span = &line["span"];
        (span["request_id"].as_str().unwrap().to_owned(), span["status"].as_u64().unwrap_or(0) as u16)
    });
    taken.collect()
}

/// A server that one request of several images keeps busy.
struct Draining {
    server: Server,
    reference: Reference,
    image: Vec<u8>,
    request: tokio::task::JoinHandle<reqwest::Result<reqwest::Response>>,
}

impl Draining {
    /// Sends a request of `images` images and, once all of them wait for the only worker, `signal`; returns when the
    /// server says that it is stopping.
    async fn start(images: usize, signal: Signal, flags: &[&str]) -> Self {
        let net = heavy(4);
        let models = models("net", &net);
        let server = Server::start(models.path(), &[&["--workers", "1", "--max-batch", "1"], flags].concat());
        let reference = Reference::load(&models.path().join("net/1"));
        let image = picture(2, net.side as u32, ImageFormat::Png);
        let form = parts(&vec![image.clone(); images]);
        let request = tokio::spawn(server.client.post(server.url("/v1/classify?path=full")).multipart(form).send());
        server.until(|series| series.stage("decode") == images as f64).await;
        server.signal(signal);
        while server.get_admin("/readyz").await.status() == 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { server, reference, image, request }
    }
}

#[tokio::test]
async fn a_draining_server_says_so_and_serves_what_it_accepted() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut drain = Draining::start(6, signal, &[]).await;
        let server = &drain.server;
        let ready = server.get_admin("/readyz").await;
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.json::<Value>().await.unwrap(), serde_json::json!({"ready": false, "state": "stopping"}));
        assert_eq!(server.get_admin("/livez").await.status(), 200, "it is not to be killed");
        let admin = server.admin.to_string();
        run(["healthcheck", "--admin-addr", &admin]).failed(1, &["/readyz: not ready: it is stopping"]);
        assert_eq!(run(["healthcheck", "--live", "--admin-addr", &admin]).code, Some(0));
        let found = ask(server.http, post("?path=full", "", &drain.image)).await.whole();
        assert_eq!((found.status, found.header("retry-after")), (503, Some("1")), "{found:?}");
        assert_eq!(found.json()["code"], "shutting_down");
        let metrics = server.metrics().await;
        assert_eq!(metrics.rejected("shutting_down"), 1.0);
        assert_eq!(metrics.of("blockdrop_inflight_requests"), 1.0, "the accepted one is not answered yet");
        assert!(!drain.request.is_finished());

        let answer = answered(drain.request.await.unwrap().unwrap()).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), 6);
        for result in results {
            drain.reference.check(result, &drain.image, &drain.reference.selection("full"), 0);
        }
        assert_eq!(drain.server.ended().code(), Some(0));
        assert!(drain.server.log().iter().any(|line| line["message"] == "stopped"));
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)] {
        // More work than is done before the second signal.
        let mut drain = Draining::start(64, first, &["--request-timeout", "1h", "--drain-timeout", "1h"]).await;
        drain.server.signal(second);
        assert_eq!(drain.server.ended().code(), Some(130));
        if let Ok(response) = drain.request.await.unwrap() {
            panic!("an answer, though nothing was finished: {}", response.text().await.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn a_drain_ends_when_its_time_is_over() {
    let mut drain = Draining::start(64, Signal::TERM, &["--drain-timeout", "1ms"]).await;
    assert_eq!(drain.server.ended().code(), Some(1));
    assert!(drain.request.await.unwrap().is_err(), "nothing was answered");
    let log = drain.server.log();
    let said = log.iter().filter_map(Value::as_str).find(|line| line.starts_with("error: "));
    assert_eq!(said, Some("error: stopped with 1 requests unanswered: the time to drain was over"), "{log:?}");
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let models = models("net", &Net::tiny(5));
    let mut server = Server::start(models.path(), &["--drain-timeout", "1h"]);
    let mut used = Raw::open(server.http).await.unwrap();
    used.send(post("", "", &png(1))).await;
    assert_eq!(used.answer().await.whole().status, 200);
    let unused = Raw::open(server.http).await.unwrap();
    assert_eq!(server.get("/v1/models").await.status(), 200);
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    drop((used, unused));
}

#[tokio::test]
async fn a_signal_while_models_load_is_not_lost() {
    let models = models("net", &heavy(4));
    let mut server = Server::launch(&mut Server::command(models.path(), &[]));
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
}

/// More shadows wait than are run within a time to drain: they hold nothing up.
#[tokio::test]
async fn shadows_do_not_hold_up_the_end() {
    let net = heavy(4);
    let models = models("net", &net);
    let mut server =
        Server::start(models.path(), &["--shadow-rate", "1", "--drain-timeout", "1h", "--warm-up", "1day"]);
    let images: Vec<Vec<u8>> = (0..30).map(|seed| picture(seed, net.side as u32, ImageFormat::Png)).collect();
    server.classify_all("?max_blocks=1", &images).await;
    let ran = |series: &Series| series.of("blockdrop_shadow_runs_total{model=\"net\"}");
    assert!(ran(&server.metrics().await) < 15.0, "most of them wait");
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let log = server.log();
    let stopped = log.iter().find(|line| line["message"] == "stopped").unwrap();
    assert!(stopped["seconds"].as_f64().unwrap() < 20.0, "at most one side was waited for: {stopped}");
}
