//! `blockdrop serve` as a child process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use reqwest::{Client, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{PATIENCE, blockdrop, text};

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    log: Receiver<String>,
    /// Lines of its log so far.
    lines: Vec<String>,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) client: Client,
}

impl Server {
    /// Starts a server on `models` with ports of its own choice, and waits until it is ready.
    pub(crate) fn start(models: &Path, flags: &[&str]) -> Self {
        Self::start_with(models, flags, &[])
    }

    /// [`Server::start`] with more set in its environment.
    pub(crate) fn start_with(models: &Path, flags: &[&str], env: &[(&str, &str)]) -> Self {
        Self::spawn(Self::command(models, flags).envs(env.iter().copied()))
    }

    /// The command that [`Server::start`] starts.
    pub(crate) fn command(models: &Path, flags: &[&str]) -> std::process::Command {
        let mut command = blockdrop();
        command.args([
            "serve",
            "--http-addr",
            "127.0.0.1:0",
            "--grpc-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ]);
        command.args(["--models", text(models)]).args(flags);
        if !flags.contains(&"--workers") {
            command.args(["--workers", "2"]);
        }
        command
    }

    /// Starts `command`, which is to log as JSON, and waits until the server is ready.
    pub(crate) fn spawn(command: &mut std::process::Command) -> Self {
        let mut server = Self::launch(command);
        let ready = server.logged(|line| line["message"] == "ready");
        server.http = address(&ready);
        server.grpc = ready["grpc"].as_str().and_then(|address| address.parse().ok()).expect("an address");
        server
    }

    /// Starts `command` and waits for its admin listener.
    pub(crate) fn launch(command: &mut std::process::Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the command starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (sender, log) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        let nowhere = SocketAddr::from(([0; 4], 0));
        // Connections that are idle are the client's to close: the server keeps them for longer than tests wait.
        let idle = Duration::from_secs(5);
        let client = Client::builder().timeout(PATIENCE).pool_idle_timeout(idle).build().expect("a client");
        let mut server = Self { child, log, lines: Vec::new(), http: nowhere, grpc: nowhere, admin: nowhere, client };
        let said = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("admin listener"));
        server.admin = address(&server.logged(said));
        server
    }

    /// Waits for a line of the log.
    pub(crate) fn logged(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.lines.push(line);
                    let line = serde_json::from_str(&self.lines[self.lines.len() - 1]).unwrap_or(Value::Null);
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("the line was not logged in time"),
                Err(RecvTimeoutError::Disconnected) => panic!("the server ended before it logged the line"),
            }
        }
    }

    /// The whole log of a server that has ended.
    pub(crate) fn log(&mut self) -> Vec<Value> {
        self.lines.extend(self.log.iter());
        self.lines.iter().map(|line| serde_json::from_str(line).unwrap_or(Value::String(line.clone()))).collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the server runs");
    }

    /// Time that the processor spent on the server so far. The server itself does not know it where it may open no file.
    #[cfg(target_os = "linux")]
    pub(crate) fn processor(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the server runs");
        let (_, after) = stat.rsplit_once(')').expect("the name of the command");
        let ticks: Vec<u64> =
            after.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).collect();
        Duration::from_secs(ticks.iter().sum()) / rustix::param::clock_ticks_per_second() as u32
    }

    /// Lets the server have no more than `most` files open from now on.
    #[cfg(target_os = "linux")]
    pub(crate) fn limit_files(&self, most: u64) {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).expect("a limit may be lowered");
    }

    /// Waits for the server to end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().expect("the server is a child of this process") {
                Some(status) => return status,
                None if Instant::now() > until => panic!("the server did not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Ends the server by a signal: it has to stop cleanly.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().code(), Some(0), "a clean stop");
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.expect("an answer")
    }

    pub(crate) async fn get_admin(&self, path: &str) -> Response {
        self.client.get(self.admin_url(path)).send().await.expect("an answer")
    }

    /// Posts `body` to `/v1/classify` with `query` (empty, or from the `?` on).
    pub(crate) async fn post(&self, query: &str, body: impl Into<reqwest::Body>) -> Response {
        self.client.post(self.url(&format!("/v1/classify{query}"))).body(body).send().await.expect("an answer")
    }

    /// [`Server::post`], answered with 200.
    pub(crate) async fn classify(&self, query: &str, body: impl Into<reqwest::Body>) -> Value {
        answered(self.post(query, body).await).await
    }

    /// Several images in one request of several parts, answered with 200.
    pub(crate) async fn classify_all(&self, query: &str, images: &[Vec<u8>]) -> Value {
        let form = parts(images);
        let url = self.url(&format!("/v1/classify{query}"));
        answered(self.client.post(url).multipart(form).send().await.expect("an answer")).await
    }

    pub(crate) async fn metrics(&self) -> Series {
        Series::parse(&self.metrics_text().await)
    }

    pub(crate) async fn metrics_text(&self) -> String {
        let response = self.get_admin("/metrics").await;
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.expect("a text")
    }

    /// Waits until the metrics are such that `there`.
    pub(crate) async fn until(&self, there: impl Fn(&Series) -> bool) -> Series {
        let until = Instant::now() + PATIENCE;
        loop {
            let series = self.metrics().await;
            if there(&series) {
                return series;
            }
            assert!(Instant::now() < until, "the metrics did not get there: {series:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            self.lines.extend(self.log.iter());
            let last = self.lines.len().saturating_sub(40);
            eprintln!("the server's log ended with:\n{}", self.lines[last..].join("\n"));
        }
    }
}

/// The address in a line of the log.
fn address(line: &Value) -> SocketAddr {
    line["address"].as_str().and_then(|address| address.parse().ok()).expect("an address")
}

/// The JSON of an answer with 200.
pub(crate) async fn answered(response: Response) -> Value {
    let status = response.status();
    let body = response.text().await.expect("a text");
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// A form of several parts, each named image.
pub(crate) fn parts(images: &[Vec<u8>]) -> reqwest::multipart::Form {
    images.iter().fold(reqwest::multipart::Form::new(), |form, image| {
        form.part("image", reqwest::multipart::Part::bytes(image.clone()))
    })
}

/// What the metrics say of a model's compiled paths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PathCounts {
    pub(crate) hits: f64,
    pub(crate) misses: f64,
    pub(crate) evictions: f64,
    pub(crate) failures: f64,
    pub(crate) bytes: f64,
    /// Images that ran together, and those batches of them that had different masks.
    pub(crate) batches: f64,
    pub(crate) mixed: f64,
    pub(crate) images: f64,
}

impl PathCounts {
    /// Checks what holds of every server that runs nothing at the moment: `images` were answered, each batch of one mask
    /// found its path compiled or did not, and nothing failed.
    pub(crate) fn check(&self, images: usize) {
        assert_eq!(self.images, images as f64, "{self:?}");
        assert_eq!(self.hits + self.misses + self.mixed, self.batches, "{self:?}");
        assert_eq!(self.failures, 0.0, "{self:?}");
    }
}

/// The text format of Prometheus: a value for each series.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Series {
    pub(crate) values: BTreeMap<String, f64>,
    pub(crate) helps: BTreeMap<String, String>,
    pub(crate) kinds: BTreeMap<String, String>,
}

impl Series {
    pub(crate) fn parse(text: &str) -> Self {
        let mut series = Self::default();
        let owned = |(name, rest): (&str, &str)| (name.to_owned(), rest.to_owned());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                series.helps.extend(help.split_once(' ').map(owned));
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                series.kinds.extend(kind.split_once(' ').map(owned));
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no series: {line}"));
                let before = series.values.insert(name.to_owned(), value.parse().expect("a number"));
                assert_eq!(before, None, "twice: {name}");
            }
        }
        series
    }

    /// The value of `name{labels}`, as it is written there.
    pub(crate) fn of(&self, name: &str) -> f64 {
        *self.values.get(name).unwrap_or_else(|| panic!("{name} is not among: {:#?}", self.values.keys()))
    }

    /// What became of the paths of `model`.
    pub(crate) fn paths(&self, model: &str) -> PathCounts {
        let of = |metric: &str| self.of(&format!("blockdrop_{metric}{{model=\"{model}\"}}"));
        PathCounts {
            hits: of("path_cache_hits_total"),
            misses: of("path_cache_misses_total"),
            evictions: of("path_cache_evictions_total"),
            failures: of("path_cache_failures_total"),
            bytes: of("path_cache_bytes"),
            batches: of("batch_size_count"),
            mixed: of("mixed_batches_total"),
            images: of("images_total"),
        }
    }

    /// Requests answered with `code`.
    pub(crate) fn code(&self, code: u16) -> f64 {
        self.of(&format!("blockdrop_requests_total{{code=\"{code}\",protocol=\"http\"}}"))
    }

    /// Requests and images given up for `reason`.
    pub(crate) fn rejected(&self, reason: &str) -> f64 {
        self.of(&format!("blockdrop_rejected_total{{reason=\"{reason}\"}}"))
    }

    /// Images that have been through `stage`.
    pub(crate) fn stage(&self, stage: &str) -> f64 {
        self.of(&format!("blockdrop_stage_duration_seconds_count{{stage=\"{stage}\"}}"))
    }
}
