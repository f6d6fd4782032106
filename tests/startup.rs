//! What may be wrong with the system when a server starts, or may go wrong while it runs: permissions, files that are no
//! files, libraries, addresses, and limits on threads, open files and the size of files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockdrop_testkit::Net;
use common::raw::{Raw, post};
use common::server::Server;
use common::{Ended, contains, png, text, write_paths};
use rustix::process::{Signal, getuid};
use serde_json::Value;

/// Nobody, of whom nothing else runs: where the tests run as root, who may do anything.
const NOBODY: u32 = 61_234;

/// What a server is started with, all of it for everybody to read.
struct Place {
    dir: tempfile::TempDir,
    command: PathBuf,
    library: PathBuf,
    models: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        allow(dir.path(), 0o755);
        let [command, library, models] = ["blockdrop", "libonnxruntime.so", "models"].map(|name| dir.path().join(name));
        fs::copy(env!("CARGO_BIN_EXE_blockdrop"), &command).unwrap();
        fs::copy(std::env::var_os("ORT_DYLIB_PATH").unwrap(), &library).unwrap();
        Net::tiny(5).write(&models.join("net/1")).unwrap();
        Self { dir, command, library, models }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server that is not to start, by a user who may not do everything, within limits of `prlimit`.
    fn serve(&self, limits: &[&str], flags: &[&str]) -> Ended {
        let mut command = Command::new(if limits.is_empty() { self.command.as_os_str() } else { "prlimit".as_ref() });
        if !limits.is_empty() {
            command.args(limits).arg(&self.command);
        }
        command.env_clear().env("ORT_DYLIB_PATH", &self.library).env("PATH", std::env::var_os("PATH").unwrap());
        command.current_dir("/").env("RUST_LOG", "off").args(["serve", "--workers", "1"]);
        let given = |flag: &str| flags.contains(&flag);
        for flag in ["--http-addr", "--grpc-addr", "--admin-addr"] {
            if !given(flag) {
                command.args([flag, "127.0.0.1:0"]);
            }
        }
        if !given("--models") {
            command.args(["--models", text(&self.models)]);
        }
        if getuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Ended::of(command.args(flags).output().unwrap())
    }
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_may_not_be_read_or_written_is_said_in_one_sentence() {
    let place = Place::new();
    let (keys, models) = (place.path("keys"), &place.models);
    fs::write(&keys, "a-key-0123456789abcdef\n").unwrap();
    let (bundle, closed) = (models.join("net/1"), place.path("closed"));
    fs::create_dir(&closed).unwrap();
    let denied = "Permission denied";
    let cases: [(&Path, &[&str], i32, [&str; 2]); 9] = [
        (models, &[], 1, [text(models), denied]),
        (&models.join("net"), &[], 1, ["models/net: cannot be read", denied]),
        (&bundle, &[], 1, ["net/1/bundle.json: cannot be read", denied]),
        (&bundle.join("bundle.json"), &[], 1, ["net/1/bundle.json: cannot be read", denied]),
        (&bundle.join("blocks/003.onnx"), &[], 1, ["blocks/003.onnx: cannot be read", denied]),
        (&bundle.join("labels.txt"), &[], 1, ["labels.txt: cannot be read", denied]),
        (&place.library, &[], 1, ["libonnxruntime.so: cannot be read", denied]),
        (&keys, &["--api-keys-file", text(&keys)], 2, ["keys: cannot be read", denied]),
        (&closed, &["--profile-dir", text(&closed)], 1, ["--profile-dir: ", "cannot be written to: Permission denied"]),
    ];
    for (path, flags, code, parts) in cases {
        let before = fs::metadata(path).unwrap().permissions();
        allow(path, 0);
        place.serve(&[], flags).failed(code, &parts);
        fs::set_permissions(path, before).unwrap();
    }
}

#[test]
fn what_is_of_the_wrong_kind_is_said_in_one_sentence() {
    let place = Place::new();
    let file = place.path("file");
    fs::write(&file, "a file").unwrap();
    let (below, astray) = (file.join("below"), place.path("astray"));
    symlink("/nowhere", &astray).unwrap();
    let dir = place.path("");
    for (path, part) in [(&file, "Not a directory"), (&below, "Not a directory"), (&astray, "No such file")] {
        place.serve(&[], &["--models", text(path)]).failed(1, &[text(path), "cannot be read: ", part]);
    }
    for (path, part) in [(&below, "Not a directory"), (&astray, "No such file"), (&dir, "Is a directory")] {
        place.serve(&[], &["--api-keys-file", text(path)]).failed(2, &[text(path), "cannot be read: ", part]);
    }
    let pipe = place.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    place
        .serve(&[], &["--api-keys-file", text(&pipe)])
        .failed(2, &[text(&pipe), "cannot be read: found no regular file"]);
    let head = place.models.join("net/1/head.onnx");
    fs::remove_file(&head).unwrap();
    place.serve(&[], &[]).failed(1, &["net/1/head.onnx: cannot be read: No such file"]);
    symlink("/nowhere", &head).unwrap();
    place.serve(&[], &[]).failed(1, &["net/1/head.onnx: cannot be read: No such file"]);
    fs::remove_file(&head).unwrap();
    fs::create_dir(&head).unwrap();
    place.serve(&[], &[]).failed(1, &["net/1/head.onnx: kind: found no regular file, expected a regular file"]);
}

#[test]
fn a_library_that_is_no_onnxruntime_is_said_in_one_sentence() {
    let place = Place::new();
    let whole = fs::read(&place.library).unwrap();
    let serve = |bytes: &[u8]| {
        fs::write(&place.library, bytes).unwrap();
        place.serve(&[], &[])
    };
    serve(b"").failed(1, &["libonnxruntime.so: ", "expected version 1.24 or newer"]);
    serve(b"no library at all").failed(1, &["libonnxruntime.so: ", "expected version 1.24 or newer"]);
    fs::remove_file(&place.library).unwrap();
    place.serve(&[], &[]).failed(1, &["libonnxruntime.so: no such file (--onnxruntime or ORT_DYLIB_PATH)"]);
    symlink("/nowhere", &place.library).unwrap();
    place.serve(&[], &[]).failed(1, &["libonnxruntime.so: no such file (--onnxruntime or ORT_DYLIB_PATH)"]);
    fs::remove_file(&place.library).unwrap();
    fs::create_dir(&place.library).unwrap();
    place.serve(&[], &[]).failed(1, &["libonnxruntime.so: it is a directory"]);
    fs::remove_dir(&place.library).unwrap();
    if cfg!(target_os = "linux") {
        // Another library, that of the tests; and one that a download left half done, which would end the process.
        let maths = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
        let maths = maths.into_iter().find(|path| Path::new(path).exists()).unwrap();
        serve(&fs::read(maths).unwrap()).failed(1, &["libonnxruntime.so: ", "does not export `OrtGetApiBase`"]);
        for length in [100, whole.len() / 3, whole.len() / 2] {
            let expected = format!("libonnxruntime.so: found {length} bytes, expected at least ");
            serve(&whole[..length]).failed(1, &[&expected, "it is not whole"]);
        }
    }
}

#[test]
fn an_address_that_cannot_be_had_is_said_in_one_sentence() {
    let place = Place::new();
    // A network for documentation: no machine has an address of it.
    place.serve(&[], &["--http-addr", "192.0.2.1:8080"]).failed(1, &["--http-addr: cannot listen on 192.0.2.1:8080"]);
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    match first.trim().parse::<u16>() {
        Ok(first) if first > 80 => {
            let found = place.serve(&[], &["--admin-addr", "127.0.0.1:80"]);
            found.failed(1, &["--admin-addr: cannot listen on 127.0.0.1:80: Permission denied"]);
        }
        _ => eprintln!("NOT CHECKED: anybody may listen on port 80 here"),
    }
}

#[test]
#[cfg(target_os = "linux")]
fn too_few_threads_or_files_are_said_in_one_sentence() {
    let place = Place::new();
    // Of a user who runs nothing else; of one who does, any limit is reached that is as low.
    for most in [1, 2, 3, 5, 8] {
        let found = place.serve(&[&format!("--nproc={most}:{most}")], &[]);
        found.failed(1, &["found room for ", " threads, expected ", "Resource temporarily unavailable"]);
    }
    for most in [5, 7, 10, 30] {
        let found = place.serve(&[&format!("--nofile={most}:{most}")], &[]);
        found.failed(1, &["found room for ", " open files, expected ", "Too many open files"]);
    }
}

/// As many connections as there may be open files and more: the server says so, waits, and serves on.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_server_out_of_files_goes_on_when_there_are_some_again() {
    let dir = common::models("net", &Net::tiny(5));
    let mut server = Server::start(dir.path(), &[]);
    // Later than at the start, where connections would be bounded by what files there are.
    server.limit_files(64);
    let mut known = Raw::open(server.http).await.unwrap();
    known.send(post("", "", &png(1))).await;
    assert_eq!(known.answer().await.whole().status, 200);
    let watched = server.client.clone();
    assert_eq!(watched.get(server.admin_url("/livez")).send().await.unwrap().status(), 200);

    let mut crowd = Vec::new();
    for number in 0..200 {
        crowd.push(Raw::open([server.http, server.grpc][number % 2]).await.unwrap()); // the system takes them
    }
    let said = server.logged(|line| line["message"] == "no connection can be taken; it is tried again");
    contains(said["error"].as_str().unwrap(), &["Too many open files"]);
    // Those who are in are served, operators too, and it does not spin.
    let (before, began) = (server.processor(), std::time::Instant::now());
    for seed in 0..20 {
        known.send(post("", "", &png(seed))).await;
        assert_eq!(known.answer().await.whole().status, 200);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(server.processor() - before < began.elapsed() / 2, "two listeners that spin take two cores");
    drop(crowd);
    for seed in 0..20 {
        server.classify("", png(seed)).await;
    }
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let said = |line: &&Value| line["message"] == "no connection can be taken; it is tried again";
    assert!(server.log().iter().filter(said).count() <= 4, "not a line for each");
}

/// A disk that takes nothing more: what would be kept is lost, and what is there stays.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_profile_for_which_there_is_no_room_is_lost_alone() {
    let dir = common::models("net", &Net::tiny(5));
    let profiles = tempfile::tempdir().unwrap();
    let file = profiles.path().join("net/1.json");
    write_paths(&file, &[("100110", 1.0)]);
    let before = fs::read(&file).unwrap();
    let command = Server::command(dir.path(), &["--profile-dir", text(profiles.path())]);
    let mut server = Server::spawn(&mut limited("--fsize=0:0", &command));
    for path in ["full", "mask:010101", "policy"] {
        server.classify(&format!("?path={path}"), png(1)).await;
    }
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let log = server.log();
    let warned = |message: &str, part: &str| {
        let line = log.iter().find(|line| line["level"] == "WARN" && line["message"] == message);
        let line = line.unwrap_or_else(|| panic!("'{message}' was not logged: {log:?}"));
        contains(line["error"].as_str().unwrap(), &[part]);
    };
    warned("the masks seen cannot be saved", "File too large");
    warned("sessions have weights of their own from now on, which takes memory", "");
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read_dir(profiles.path().join("net")).unwrap().count(), 1, "nothing is left beside it");
}

/// `command` within a limit of `prlimit`.
#[cfg(target_os = "linux")]
fn limited(limit: &str, command: &Command) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(limit).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}
