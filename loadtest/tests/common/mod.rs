//! What tests of the wire share: a real blockdrop server, plans and pools.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use blockdrop_loadtest::images::Pool;
use blockdrop_loadtest::plan::{Arm, Datatype, Faults, Format, Images, Load, Plan, Protocol, Request};
use blockdrop_loadtest::record::{Item, Payload, Reply};
use blockdrop_loadtest::target::Caller;
use blockdrop_testkit::{Net, encoded};
use serde_json::Value;

/// Guards against hanging; never a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pixels as the networks of the testkit take them.
pub fn fp32(side: u32) -> Datatype {
    Datatype::Fp32 { height: side, width: side, mean: [0.5, 0.45, 0.4], std: [0.25, 0.25, 0.3] }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub http: String,
    pub grpc: String,
    _models: Option<tempfile::TempDir>,
}

/// The server of this workspace, which cargo builds beside the tests.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let binary = profile.join(format!("blockdrop{}", std::env::consts::EXE_SUFFIX));
    assert!(
        binary.is_file(),
        "{} is not there: cargo test --workspace builds it, else cargo build -p blockdrop --bin blockdrop",
        binary.display()
    );
    binary
}

impl Server {
    /// Serves `net` under the name `net`.
    pub fn start(net: &Net, flags: &[&str]) -> Self {
        Self::start_with(net, flags, &[])
    }

    pub fn start_with(net: &Net, flags: &[&str], env: &[(&str, &str)]) -> Self {
        let models = tempfile::tempdir().expect("a directory");
        net.write(&models.path().join("net").join("1")).expect("the bundle can be written");
        let mut command = Command::new(binary());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BLOCKDROP_")) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").envs(env.iter().copied()).arg("serve").arg("--models").arg(models.path());
        for listener in ["--http-addr", "--grpc-addr", "--admin-addr"] {
            command.args([listener, "127.0.0.1:0"]);
        }
        command.args(["--log-format", "json"]).args(flags);
        if !flags.contains(&"--workers") {
            command.args(["--workers", "2"]);
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (sender, log) = channel();
        // To its end: a server must not wait for someone to read its log.
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let (until, mut lines) = (Instant::now() + PATIENCE, Vec::new());
        let ready = loop {
            let line = log.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("the server did not get ready: {lines:#?}"));
            match serde_json::from_str::<Value>(&line) {
                Ok(line) if line["message"] == "ready" => break line,
                _ => lines.push(line),
            }
        };
        let at = |name: &str| format!("http://{}", ready[name].as_str().expect("an address"));
        Self { child, http: at("address"), grpc: at("grpc"), _models: Some(models) }
    }

    /// Where the protocol is spoken.
    pub fn url(&self, protocol: Protocol) -> &str {
        if !protocol.is_grpc() { &self.http } else { &self.grpc }
    }

    /// An arm of this server's model.
    pub fn arm(&self, protocol: Protocol, parameters: &[(&str, &str)]) -> Arm {
        arm(self.url(protocol), parameters)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn arm(url: &str, parameters: &[(&str, &str)]) -> Arm {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Arm {
        name: "arm".to_owned(),
        url: url.to_owned(),
        model: Some("net".to_owned()),
        version: None,
        parameters: parameters.iter().map(owned).collect(),
    }
}

/// A plan of one arm.
pub fn plan(protocol: Protocol, arm: Arm) -> Plan {
    Plan {
        title: String::new(),
        seed: 1,
        arms: vec![arm],
        baseline: 0,
        request: Request {
            protocol,
            images: 1,
            timeout: PATIENCE,
            new_connections: false,
            api_key: None,
            input: "image".to_owned(),
            datatype: Datatype::Bytes,
            output: None,
        },
        images: Images { from: PathBuf::new(), limit: 100, sizes: Vec::new(), format: Format::Png, bad: 0.0 },
        load: Load::Closed { clients: 1, think: Duration::ZERO },
        warm_up: Duration::ZERO,
        measure: Duration::ZERO,
        slice: Duration::ZERO,
        slo: None,
        faults: Faults::default(),
        fail_if: Vec::new(),
    }
}

/// Made-up pictures of `side` x `side` pixels.
pub fn pool(count: u64, side: u32) -> Pool {
    let dir = tempfile::tempdir().expect("a directory");
    for seed in 0..count {
        let picture = image::RgbImage::from_raw(side, side, encoded(seed, side, side)).expect("three bytes a pixel");
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).expect("the picture can be encoded");
        std::fs::write(dir.path().join(format!("{seed:03}.png")), file.into_inner()).expect("a file");
    }
    let from = dir.path().to_path_buf();
    let images = Images { from, limit: 1000, sizes: Vec::new(), format: Format::Png, bad: 0.0 };
    Pool::load(&images, 1, None).expect("a pool")
}

pub fn images(first: usize) -> Item {
    Item { arm: 0, load: Payload::Images { first } }
}

/// Sends, and waits with patience.
pub async fn call(caller: &mut impl Caller, load: Payload) -> Reply {
    tokio::time::timeout(PATIENCE, caller.call(Item { arm: 0, load })).await.expect("a reply")
}
