//! Everything that clients can do wrong, all at once and for minutes, while models come and go and ONNX Runtime fails on
//! some images: every honest client gets its right answer, and in the end nothing is left of all that.
//!
//! `BLOCKDROP_CHAOS_SECONDS` says for how long (60), `BLOCKDROP_CHAOS_SEED` with which lots: a run prints its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod honest;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockdrop_testkit::Net;
use common::reference::Reference;
use common::server::{Series, Server};
use common::{models, png};
use faults::{Abuser, Counts};
use honest::{Honest, Known, Tally};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use serde_json::Value;
use tonic::transport::Endpoint;
use wire::Wire;

/// The models of the server: `net`, which stays, and `swap`, which is replaced by another one again and again.
fn nets() -> (Net, [Net; 2]) {
    (Net { traps: true, ..Net::tiny(5) }, [Net::tiny(6), Net::tiny(7)])
}

const FLAGS: [&str; 14] = [
    "--default-model",
    "net",
    "--request-timeout",
    "3s",
    "--max-body-bytes",
    "262144",
    "--max-bodies-bytes",
    "16777216",
    "--path-cache-bytes",
    "16777216",
    "--shadow-rate",
    "0.1",
    "--stuck-after",
    "30s",
];

const HONEST: u64 = 6;
const ABUSERS: u64 = 24;

fn known(models: &Path) -> Known {
    let (_, swapped) = nets();
    let apart = tempfile::tempdir().unwrap();
    let load = |net: &Net| {
        let dir = apart.path().join(net.seed.to_string());
        net.write(&dir).unwrap();
        Reference::load(&dir)
    };
    Known { net: Reference::load(&models.join("net/1")), swapped: swapped.each_ref().map(load) }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}: found '{text}', expected a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_right_and_nothing_is_left_of_what_went_wrong() {
    let seed = number("BLOCKDROP_CHAOS_SEED").unwrap_or_else(|| rand::rng().random());
    let seconds = number("BLOCKDROP_CHAOS_SECONDS").unwrap_or(60);
    eprintln!("BLOCKDROP_CHAOS_SEED={seed} BLOCKDROP_CHAOS_SECONDS={seconds}");
    let (net, [swap, _]) = nets();
    let dir = models("net", &net);
    swap.write(&dir.path().join("swap/1")).unwrap();
    let server = Server::start_with(dir.path(), &FLAGS, &[("RUST_LOG", "warn,blockdrop::server=info")]);
    let mut chaos = Chaos {
        known: Arc::new(known(dir.path())),
        lots: ChaCha8Rng::seed_from_u64(seed),
        counts: Arc::default(),
        tally: Arc::default(),
        server,
        dir,
    };
    let start = chaos.server.metrics().await;
    chaos.hand_made_requests_are_understood().await;

    // What a server that has had clients of every kind holds; then what it holds after twice as many.
    let third = Duration::from_secs(seconds) / 3;
    chaos.round(third).await;
    let early = chaos.quiet(&start).await;
    chaos.round(2 * third).await;
    let late = chaos.quiet(&start).await;
    chaos.report(&early, &late);
    chaos.judge(&early, &late);
}

struct Chaos {
    known: Arc<Known>,
    lots: ChaCha8Rng,
    counts: Arc<Counts>,
    tally: Arc<Tally>,
    server: Server,
    dir: tempfile::TempDir,
}

impl Chaos {
    /// The faults are not those of the hand that wrote the frames.
    async fn hand_made_requests_are_understood(&self) {
        let most = Duration::from_secs(2);
        for (address, path, kind, body) in [
            (self.server.http, "/v1/classify", "image/png", png(1)),
            (self.server.grpc, "/blockdrop.v1.Classifier/Classify", "application/grpc", {
                let image = png(1).into();
                let request = blockdrop::proto::v1::ClassifyRequest { image, ..Default::default() };
                wire::message(&prost::Message::encode_to_vec(&request))
            }),
        ] {
            let mut wire = Wire::second(address).await.unwrap();
            wire.send(wire::request(1, path, kind, &body)).await;
            let answer = wire.read(most).await;
            let kinds = wire::kinds(&answer);
            assert!(kinds.contains(&wire::HEADERS) && kinds.contains(&wire::DATA), "{path}: {kinds:?}");
            assert!(!kinds.contains(&wire::RST_STREAM), "{path}: {kinds:?}");
        }
    }

    /// Everybody at once, for a time.
    async fn round(&mut self, time: Duration) {
        let (until, stop) = (Instant::now() + time, Arc::new(AtomicBool::new(false)));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..HONEST {
            let honest = Honest {
                lots: ChaCha8Rng::seed_from_u64(self.lots.random()),
                url: self.server.url(""),
                calls: Endpoint::new(format!("http://{}", self.server.grpc)).unwrap().connect().await.unwrap(),
                known: Arc::clone(&self.known),
                tally: Arc::clone(&self.tally),
            };
            let stop = Arc::clone(&stop);
            clients.spawn(async move { honest.run(&stop).await });
        }
        for _ in 0..ABUSERS {
            let lots = ChaCha8Rng::seed_from_u64(self.lots.random());
            let abuser = Abuser { lots, http: self.server.http, grpc: self.server.grpc };
            let (counts, stop) = (Arc::clone(&self.counts), Arc::clone(&stop));
            clients.spawn(async move { abuser.run(&counts, &stop).await });
        }
        while Instant::now() < until {
            self.change().await;
            tokio::time::sleep(Duration::from_millis(self.lots.random_range(0..300))).await;
            assert_eq!(self.server.get_admin("/livez").await.status(), 200);
            if let Some(ended) = clients.try_join_next() {
                ended.unwrap(); // only by a wrong answer
            }
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }

    /// Something happens to the model that is not to stay, or to the process.
    async fn change(&mut self) {
        let (_, nets) = nets();
        let bundle = self.dir.path().join("swap/1");
        match self.lots.random_range(0..8) {
            0 => assert!([200, 404].contains(&self.ask("unload").await)),
            1 => {
                let file = bundle.join("blocks/003.onnx");
                let whole = std::fs::read(&file).unwrap();
                std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
                assert_eq!(self.ask("load").await, 400, "a bundle that is damaged");
                std::fs::write(&file, whole).unwrap();
            }
            2 => {
                self.server.signal(Signal::STOP);
                tokio::time::sleep(Duration::from_millis(self.lots.random_range(0..300))).await;
                self.server.signal(Signal::CONT);
            }
            which => {
                std::fs::remove_dir_all(&bundle).unwrap();
                nets[which % 2].write(&bundle).unwrap();
                assert_eq!(self.ask("load").await, 200);
            }
        }
    }

    async fn ask(&self, change: &str) -> u16 {
        let url = self.server.admin_url(&format!("/v2/repository/models/swap/{change}"));
        self.server.client.post(url).send().await.unwrap().status().as_u16()
    }

    /// What is held when all clients have gone: nothing waits or runs, and files and threads are as few as at the `start`.
    async fn quiet(&self, start: &Series) -> Series {
        self.ask("unload").await;
        self.ask("load").await; // gives memory back to the system
        let few = ["process_open_fds", "process_threads"];
        self.server.until(|series| idle(series) && few.iter().all(|name| series.of(name) <= start.of(name))).await
    }

    fn report(&self, early: &Series, late: &Series) {
        for (kind, times) in self.counts.by_kind() {
            eprintln!("{times:>7} times {kind}");
        }
        let Tally { right, failed, refused, unknown } = &*self.tally;
        eprintln!(
            "honest: {right:?} right, {failed:?} failed as they have to, {refused:?} refused or out of time, \
             {unknown:?} for a model that was not there"
        );
        for (series, value) in &late.values {
            let told = ["blockdrop_requests_total", "blockdrop_rejected_total", "blockdrop_worker_panics_total"];
            if told.iter().any(|name| series.starts_with(name)) && *value > 0.0 {
                eprintln!("{value:>7} {series}");
            }
        }
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads"] {
            eprintln!("{name}: {} after a third, {} at the end", early.of(name), late.of(name));
        }
    }

    fn judge(mut self, early: &Series, late: &Series) {
        for (kind, times) in self.counts.by_kind() {
            assert!(times > 0, "nobody did: {kind}");
        }
        let least = [&self.tally.right, &self.tally.failed, &self.tally.unknown];
        assert!(least.iter().all(|count| count.load(Ordering::Relaxed) > 0), "honest clients had every kind of answer");
        for code in [200, 400, 408, 413, 415, 499, 500] {
            assert!(late.code(code) > 0.0, "no request had {code}");
        }
        for code in ["OK", "CANCELLED", "INVALID_ARGUMENT", "INTERNAL"] {
            let calls = late.of(&format!("blockdrop_requests_total{{code=\"{code}\",protocol=\"grpc\"}}"));
            assert!(calls > 0.0, "no call had {code}");
        }
        assert_eq!(late.of("blockdrop_worker_panics_total"), 0.0);
        let resident = |series: &Series| series.of("process_resident_memory_bytes");
        assert!(
            resident(late) <= resident(early) + SPREAD,
            "memory grew from {} to {} while twice as much went wrong as before",
            resident(early),
            resident(late)
        );
        self.server.signal(Signal::TERM);
        assert_eq!(self.server.ended().code(), Some(0));
        // Images that ONNX Runtime fails on and bundles that are damaged are the only errors.
        for line in self.server.log().iter().filter(|line| line["level"] == "ERROR") {
            let said = line["message"].as_str().unwrap_or_default();
            let expected =
                ["an image failed", "a request failed inside", "model not loaded; what was served is served on"];
            let of_runtime = line["target"].as_str().is_some_and(|target| target.starts_with("ort"));
            assert!(expected.contains(&said) || of_runtime, "{line}");
        }
    }
}

/// How far the memory of a server that does nothing may lie apart, in bytes: what the allocator keeps in its arenas, of
/// which each thread may have one, grows by some megabytes with the time tripled, and ever more slowly. In a minute a leak
/// of some kilobytes for each fault is more than that; in longer runs smaller ones are.
const SPREAD: f64 = (16 << 20) as f64;

/// Nobody is being answered.
fn idle(series: &Series) -> bool {
    let none = ["blockdrop_inflight_requests", "blockdrop_queue_depth", "blockdrop_worker_busy_seconds"];
    none.iter().all(|name| series.of(name) == 0.0)
}

/// A process that is killed in the middle of its work leaves nothing that keeps the next one from it.
#[tokio::test]
async fn a_server_that_is_killed_starts_again() {
    let (net, _) = nets();
    let dir = models("net", &net);
    let profiles = tempfile::tempdir().unwrap();
    let known = Reference::load(&dir.path().join("net/1"));
    let mut address = None;
    for round in 0..4 {
        // On the ports of the one before, whose connections are still closing.
        let address_flag =
            address.map_or("127.0.0.1:0".to_owned(), |address: std::net::SocketAddr| address.to_string());
        let mut command = common::blockdrop();
        command.args(["serve", "--log-format", "json", "--workers", "2", "--models", common::text(dir.path())]);
        command.args(["--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--http-addr", &address_flag]);
        command.args(["--profile-dir", common::text(profiles.path())]);
        let mut server = Server::spawn(&mut command);
        address = Some(server.http);
        let answer = server.classify("?path=full", png(round)).await;
        known.check(&answer["results"][0], &png(round), &known.selection("full"), 0);
        let url = server.url("/v1/classify");
        let press = (0..8).map(|number| {
            let (client, url) = (server.client.clone(), url.clone());
            tokio::spawn(async move {
                while let Ok(response) = client.post(&url).body(png(number)).send().await {
                    let _: Option<Value> = response.json().await.ok();
                }
            })
        });
        let press: Vec<_> = press.collect();
        server.until(|series| series.code(200) > 50.0).await;
        server.signal(Signal::KILL);
        assert_eq!(server.ended().code(), None, "by the signal");
        for client in press {
            client.await.unwrap();
        }
    }
}
