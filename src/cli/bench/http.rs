//! What the server adds to the engine's time: one client, one request after another, over loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde_json::Value;

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

/// Sends `files` to a server of `bundle`, which lies in a repository of models, for about `time`.
pub(super) fn measure(
    bundle: &Path,
    onnxruntime: Option<&Path>,
    files: &[Vec<u8>],
    time: Duration,
) -> anyhow::Result<Latency> {
    let (_server, address) = start(bundle, onnxruntime)?;
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_ref().set_nodelay(true)?;
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut columns: [Vec<f64>; 6] = Default::default();
    let (mut started, mut sent) = (Instant::now(), 0);
    for file in files.iter().cycle() {
        // The first pass lets the server compile its paths.
        if sent == 2 * files.len() {
            started = Instant::now();
            columns = Default::default();
        }
        if sent > 2 * files.len() && started.elapsed() >= time {
            break;
        }
        sent += 1;
        let asked = Instant::now();
        let answer = ask(&mut stream, file)?;
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

fn start(bundle: &Path, onnxruntime: Option<&Path>) -> anyhow::Result<(Server, SocketAddr)> {
    let bundle = bundle.canonicalize()?;
    let model = bundle.parent().filter(|_| bundle.file_name().is_some());
    let names = model.and_then(|model| Some((model.parent()?, model.file_name()?)));
    let Some((repository, name)) = names else {
        bail!("{}: found no repository of models around it, expected <models>/<name>/<version>", bundle.display());
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--log-format", "json"]);
    command.arg("--models").arg(repository).arg("--default-model").arg(name).args(["--warm-up", "60s"]);
    if let Some(library) = onnxruntime {
        command.arg("--onnxruntime").arg(library);
    }
    let mut server = Server(command.env("RUST_LOG", "info").stderr(Stdio::piped()).spawn()?);
    let log = BufReader::new(server.0.stderr.take().context("the server's log")?);
    let mut said = Vec::new();
    for line in log.lines() {
        let line = line?;
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        if entry["message"] == "ready" {
            let address = entry["address"].as_str().and_then(|address| address.parse().ok());
            return Ok((server, address.context("the server's address")?));
        }
        said.push(line);
    }
    bail!("the server did not start: {}", said.join("\n"))
}

fn ask(stream: &mut BufReader<TcpStream>, file: &[u8]) -> anyhow::Result<Value> {
    let head = format!(
        "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        file.len()
    );
    stream.get_mut().write_all(&[head.as_bytes(), file].concat())?;
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
    Ok(serde_json::from_slice(&body)?)
}
