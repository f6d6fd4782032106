//! A blockdrop server of the run's own, started for it and stopped after it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::arms::Started;

/// A running server. It is killed when dropped.
pub struct Server {
    child: Child,
    log: Log,
    pub addresses: Started,
}

/// The last lines that the server logged.
type Log = Arc<Mutex<VecDeque<String>>>;

/// Lines of the log that are kept.
const LINES: usize = 20;
/// Until it has to be ready, and until it has to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server's binary beside this one.
///
/// # Errors
/// There is none.
pub fn beside() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let binary = own.with_file_name("blockdrop");
    if !binary.is_file() {
        bail!("--start: found no server at {}, expected one there (`make build`) or --server-binary", binary.display());
    }
    Ok(binary)
}

impl Server {
    /// Starts `binary serve` on free ports of loopback, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or ends before it is ready, with the end of what it logged.
    pub async fn start(binary: &Path, models: &Path, arguments: &str) -> anyhow::Result<Self> {
        let any = "127.0.0.1:0";
        let mut command = Command::new(binary);
        command
            .args(["serve", "--http-addr", any, "--grpc-addr", any, "--admin-addr", any, "--log-format", "json"])
            .arg("--models")
            .arg(models)
            .args(arguments.split_whitespace());
        Self::spawn(command).await
    }

    /// Runs `command`, which has to say on standard error that it is ready as the server does, in JSON, and waits for it.
    ///
    /// # Errors
    /// It cannot be started, or ends before it is ready, with the end of what it logged.
    pub async fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            // Ctrl-C is for the run, which stops the server itself.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.as_std().get_program().display()))?;
        let stderr = child.stderr.take().context("the server has no standard error")?;
        let (log, (sender, ready)) = (Log::default(), oneshot::channel());
        tokio::spawn(follow(BufReader::new(stderr), Arc::clone(&log), sender));
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(addresses)) => Ok(Self { child, log, addresses }),
            Ok(Err(_)) => {
                let status = child.wait().await?;
                Err(anyhow!("the server ended before it was ready ({status}); its log ends with:\n{}", tail(&log)))
            }
            Err(_) => Err(anyhow!("the server was not ready within a minute; its log ends with:\n{}", tail(&log))),
        }
    }

    /// Stops the server with SIGTERM.
    ///
    /// # Errors
    /// It had ended before, or does not end cleanly, with the end of what it logged.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server ended during the run ({status}); its log ends with:\n{}", tail(&self.log));
        }
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let id = id.context("the server has no process id")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.map_err(|_| anyhow!("the server did not stop within a minute of SIGTERM"))??;
        if !status.success() {
            bail!("the server stopped with {status}; its log ends with:\n{}", tail(&self.log));
        }
        Ok(())
    }
}

/// Reads the log to its end, so that the server is never held up by it, and tells the addresses once it is ready.
async fn follow(log: BufReader<tokio::process::ChildStderr>, kept: Log, ready: oneshot::Sender<Started>) {
    let mut ready = Some(ready);
    let mut lines = log.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if ready.is_some()
            && let Some(started) = addresses(&line)
            && let Some(ready) = ready.take()
        {
            // Nobody waits any more: the run is over.
            let _ = ready.send(started);
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

/// The addresses in the line that says that the server is ready.
fn addresses(line: &str) -> Option<Started> {
    let line: Value = serde_json::from_str(line).ok()?;
    let url = |name: &str| Some(format!("http://{}", line[name].as_str()?));
    if line["message"] != "ready" {
        return None;
    }
    Some(Started { url: url("address")?, grpc_url: url("grpc")? })
}

fn tail(log: &Log) -> String {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<&str> = log.iter().map(String::as_str).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in: a shell script in the place of the server.
    fn script(dir: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("server");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
        path
    }

    const READY: &str = r#"echo '{"message":"ready","address":"127.0.0.1:5","grpc":"127.0.0.1:6"}' >&2"#;

    async fn start(text: &str) -> anyhow::Result<Server> {
        let dir = tempfile::tempdir().expect("a directory");
        Server::start(&script(dir.path(), text), Path::new("models"), "--workers 1").await
    }

    #[tokio::test]
    async fn a_server_is_driven_where_it_says_that_it_listens() {
        let server = start(&format!("{READY}; exec sleep 100")).await.expect("started");
        let expected = Started { url: "http://127.0.0.1:5".to_owned(), grpc_url: "http://127.0.0.1:6".to_owned() };
        assert_eq!(server.addresses, expected);
        let error = server.stop().await.expect_err("killed by the signal").to_string();
        assert!(error.contains("signal"), "{error}");
    }

    #[tokio::test]
    async fn a_clean_stop_is_no_error() {
        start(&format!("trap 'exit 0' TERM; {READY}; while :; do sleep 0.01; done"))
            .await
            .expect("started")
            .stop()
            .await
            .expect("stopped");
    }

    #[tokio::test]
    async fn a_server_that_ends_is_told_with_its_last_words() {
        let error = start("echo 'no models here' >&2; exit 1").await.err().expect("not ready").to_string();
        assert!(error.contains("exit status: 1") && error.ends_with("no models here"), "{error}");
        let mut server = start(&format!("{READY}; echo 'out of luck' >&2; exit 3")).await.expect("started");
        server.child.wait().await.expect("a status");
        let error = server.stop().await.expect_err("gone").to_string();
        assert!(error.contains("ended during the run (exit status: 3)"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let error =
            Server::start(Path::new("/nowhere/blockdrop"), Path::new("models"), "").await.err().expect("nothing there");
        assert_eq!(error.to_string(), "/nowhere/blockdrop cannot be started");
    }
}
