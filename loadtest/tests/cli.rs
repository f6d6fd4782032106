//! The command as people and scripts use it: exit codes, reports, errors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use blockdrop_testkit::{Net, encoded};
use common::Server;
use serde_json::Value;

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blockdrop-loadtest")).args(arguments).output().unwrap()
}

/// Exit code, standard output and standard error.
fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A folder of small images.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..4 {
        let picture = image::RgbImage::from_raw(16, 16, encoded(index, 16, 16)).unwrap();
        picture.save(folder.path().join(format!("{index}.png"))).unwrap();
    }
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_run_compares_its_arms_and_writes_its_reports() {
    let (server, images, out) = (Server::start(&Net::tiny(3), &[]), images(), tempfile::tempdir().unwrap());
    let scenario = out.path().join("two.toml");
    std::fs::write(
        &scenario,
        r#"
        title = "Two arms"
        arm = ["policy", "full"]
        clients = 2
        warm-up = "100ms"
        measure = "600ms"
        slice = "50ms"
        bad = "20%"
        fail-if = ["failed>0", "changed>0", "timed_out>0"]
        "#,
    )
    .unwrap();
    let output = loadtest(&[
        "run",
        text(&scenario),
        "--url",
        &server.http,
        "--images",
        text(images.path()),
        "--out",
        text(out.path()),
    ]);
    let (code, told, errors) = said(&output);
    assert_eq!(code, 0, "{told}{errors}");
    assert!(told.contains("policy against full: ") && told.contains("passed: fails if failed>0"), "{told}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(out.path().join("two.json")).unwrap()).unwrap();
    let [policy, full] = [&report["arms"][0], &report["arms"][1]];
    for arm in [policy, full] {
        let count = |name: &str| arm["counts"][name].as_u64().unwrap();
        assert!(count("answered") > 0 && count("refused") > 0, "{}", arm["counts"]);
        assert_eq!(count("sent"), count("answered") + count("refused"), "{}", arm["counts"]);
        assert!(arm["server"].as_str().unwrap().starts_with("blockdrop "), "{}", arm["server"]);
    }
    assert_eq!(full["blocks"], serde_json::json!({"6": full["images"]}));
    assert!(report["ratios"][0]["flops"].as_f64().unwrap() < 1.2);
    let page = std::fs::read_to_string(out.path().join("two.html")).unwrap();
    assert!(page.contains("Two arms"));

    let json = out.path().join("two.json");
    let (code, told, errors) = said(&loadtest(&["compare", text(&json), text(&json), "--fail-if", "p99_ratio>1"]));
    assert_eq!(code, 0, "{told}{errors}");
    let same = ["compare", text(&json), text(&json), "--fail-if", "throughput_ratio<2"];
    assert_eq!(said(&loadtest(&same)).0, 3);
    let again = out.path().join("again.html");
    assert_eq!(said(&loadtest(&["html", text(&json), "--out", text(&again)])).0, 0);
    assert!(std::fs::read_to_string(again).unwrap().contains("Two arms"));
}

#[test]
fn a_run_starts_a_server_and_stops_it() {
    let (images, models) = (images(), tempfile::tempdir().unwrap());
    Net::tiny(3).write(&models.path().join("net").join("1")).unwrap();
    let started = |more: &[&str]| {
        let mut arguments = vec![
            "run",
            "--start",
            "--models",
            text(models.path()),
            "--images",
            text(images.path()),
            "--warm-up",
            "100ms",
            "--measure",
            "300ms",
            "--protocol",
            "grpc",
        ];
        arguments.extend(more);
        said(&loadtest(&arguments))
    };
    let (code, told, errors) = started(&["--fail-if", "failed>0", "--server-args", "--workers 1"]);
    assert_eq!(code, 0, "{told}{errors}");
    let (code, told, errors) = started(&["--fail-if", "throughput>0"]);
    assert_eq!(code, 3, "{told}{errors}");
    assert!(told.contains("FAILED"), "{told}");
    let (code, told, errors) = started(&["--server-args", "--workers none"]);
    assert_eq!(code, 1, "{told}{errors}");
    assert!(errors.contains("the server ended before it was ready") && errors.contains("--workers"), "{errors}");
}

#[test]
fn the_ceiling_is_told_for_every_protocol() {
    let images = images();
    let (code, told, errors) = said(&loadtest(&["ceiling", "--measure", "200ms", "--images", text(images.path())]));
    assert_eq!(code, 0, "{told}{errors}");
    let protocols =
        ["classify-multipart", "oip-json", "oip-binary", "grpc-oip", "grpc-oip-stream", "grpc", "grpc-stream"];
    for protocol in protocols {
        assert!(told.contains(protocol), "{told}");
    }
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let images = images();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{nobody}");
    let here = text(images.path());
    for (arguments, code, words) in [
        (&["run", "--load", "open"][..], 2, "--rate: is missing"),
        (&["run", "--colour", "red"], 2, "unexpected argument"),
        (&["run", "--arm", "fastest"], 2, "expected words such as"),
        (&["run", "nowhere.toml"], 2, "nowhere.toml: cannot be read"),
        (&["run", here], 2, "cannot be read"),
        (&["run", "--fail-if", "speed>1"], 2, "speed"),
        (&["run", "--url", &nobody, "--images", here], 1, "does not answer"),
        (&["compare", here, here], 1, "cannot be read"),
        (&["html", "nowhere.json", "--out", "x"], 1, "nowhere.json cannot be read"),
    ] {
        let (found, told, errors) = said(&loadtest(arguments));
        assert_eq!(found, code, "{arguments:?}: {told}{errors}");
        assert!(errors.contains(words), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}
