//! What the server adds to the engine's time: one client, one request after another, over loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde_json::Value;

use super::super::options::Running;
use super::statistics::{Estimate, estimate};

/// Milliseconds of a request, medians with their intervals.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) requests: usize,
    /// From the first byte sent to the last byte received, as the client sees it.
    pub(super) request: Estimate,
    /// Policy and path.
    pub(super) engine: Estimate,
    /// The request without the engine.
    pub(super) added: Estimate,
    pub(super) decode: Estimate,
    pub(super) preprocess: Estimate,
    /// From thread to thread.
    pub(super) queue: Estimate,
}

/// `blockdrop serve`, ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Sends `files` to a server of `bundle` alone, for about `time`.
pub(super) fn measure(bundle: &Path, running: &Running, files: &[Vec<u8>], time: Duration) -> anyhow::Result<Latency> {
    let repository = tempfile::tempdir()?;
    std::fs::create_dir(repository.path().join("bench"))?;
    std::os::unix::fs::symlink(bundle.canonicalize()?, repository.path().join("bench/1"))?;
    let Started { _server, http, admin } = start(repository.path(), running)?;
    let connect = |address| -> anyhow::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(BufReader::new(stream))
    };
    let (mut http, mut admin) = (connect(http)?, connect(admin)?);

    // Passes until every path is compiled, or it gets no better.
    const MOST: usize = 12;
    let mut misses = f64::NAN;
    for _ in 0..MOST {
        files.iter().try_for_each(|file| classify(&mut http, file).map(drop))?;
        let metrics = String::from_utf8(ask(&mut admin, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", &[])?)?;
        let found =
            metrics.lines().find_map(|line| line.strip_prefix("blockdrop_path_cache_misses_total{model=\"bench\"} "));
        let found = found.and_then(|count| count.parse().ok()).context("the server's count of paths not compiled")?;
        if std::mem::replace(&mut misses, found) == found {
            break;
        }
    }

    let mut columns: [Vec<f64>; 6] = Default::default();
    let started = Instant::now();
    for file in files.iter().cycle() {
        if !columns[0].is_empty() && started.elapsed() >= time {
            break;
        }
        let asked = Instant::now();
        let answer = classify(&mut http, file)?;
        let request = 1e3 * asked.elapsed().as_secs_f64();
        let timing = &answer["results"][0]["timing_ms"];
        let stage = |name: &str| timing[name].as_f64().ok_or_else(|| anyhow!("the server answered {answer}"));
        let engine = stage("policy")? + stage("backbone")?;
        let row = [request, engine, request - engine, stage("decode")?, stage("preprocess")?, stage("queue")?];
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let requests = columns[0].len();
    let [request, engine, added, decode, preprocess, queue] = columns.map(|column| estimate(&column));
    Ok(Latency { requests, request, engine, added, decode, preprocess, queue })
}

struct Started {
    _server: Server,
    http: SocketAddr,
    admin: SocketAddr,
}

fn start(models: &Path, running: &Running) -> anyhow::Result<Started> {
    let mut command = Command::new(std::env::current_exe()?);
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
    command.args(["--provider", &running.target.provider.to_string(), "--workers", &running.workers.to_string()]);
    command.args(["--path-cache-bytes", &running.path_cache.to_string()]);
    if running.target.tactics.cuda_graphs {
        command.arg("--cuda-graphs");
    }
    command.args(["--warm-up", "60s"]).arg("--models").arg(models);
    if let Some(library) = &running.onnxruntime {
        command.arg("--onnxruntime").arg(library);
    }
    let mut server = Server(command.env("RUST_LOG", "info").stderr(Stdio::piped()).spawn()?);
    let log = BufReader::new(server.0.stderr.take().context("the server's log")?);
    let (mut admin, mut said) = (None, Vec::new());
    for line in log.lines() {
        let line = line?;
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        let address = || entry["address"].as_str().and_then(|address| address.parse().ok());
        match entry["message"].as_str() {
            Some("ready") => {
                let (http, admin) = (address(), admin);
                return Ok(Started {
                    _server: server,
                    http: http.context("its address")?,
                    admin: admin.context("its address")?,
                });
            }
            Some(message) if message.starts_with("admin listener") => admin = address(),
            _ => {}
        }
        said.push(line);
    }
    bail!("the server did not start: {}", said.join("\n"))
}

fn classify(stream: &mut BufReader<TcpStream>, file: &[u8]) -> anyhow::Result<Value> {
    let head = format!(
        "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        file.len()
    );
    Ok(serde_json::from_slice(&ask(stream, head.as_bytes(), file)?)?)
}

/// Sends a request and gives the body of its answer.
fn ask(stream: &mut BufReader<TcpStream>, head: &[u8], body: &[u8]) -> anyhow::Result<Vec<u8>> {
    stream.get_mut().write_all(&[head, body].concat())?;
    let (mut status, mut length, mut line) = (String::new(), 0, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            bail!("the server closed the connection");
        }
        let text = line.trim_end().to_ascii_lowercase();
        if status.is_empty() {
            status = text;
        } else if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        } else if text.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    if !status.contains(" 200") {
        bail!("the server answered {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}
