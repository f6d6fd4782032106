//! What the tests across the border share: the real server as a child process, its clients, and the engine in this
//! process to compare with.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod collector;
pub(crate) mod raw;
pub(crate) mod reference;
pub(crate) mod server;

use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use blockdrop_testkit::{Net, encoded};
use image::{ImageFormat, RgbImage};

/// Guards against hanging; never a measure of speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The five types that the server reads.
pub(crate) const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];

/// A made-up picture of `side` x `side` pixels as the bytes of a file.
pub(crate) fn picture(seed: u64, side: u32, format: ImageFormat) -> Vec<u8> {
    let pixels = RgbImage::from_raw(side, side, encoded(seed, side, side)).expect("three bytes a pixel");
    let mut bytes = Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, format).expect("the picture can be encoded");
    bytes.into_inner()
}

/// A made-up picture of the size that [`Net::tiny`] takes, as PNG.
pub(crate) fn png(seed: u64) -> Vec<u8> {
    picture(seed, 16, ImageFormat::Png)
}

/// A picture of the size that [`Net::tiny`] takes of one shade of grey, as PNG.
pub(crate) fn blank(shade: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(16, 16, image::Rgb([shade; 3])).write_to(&mut bytes, ImageFormat::Png).expect("it is encoded");
    bytes.into_inner()
}

/// A net that a worker is busy with for a while: 16 gigaflops an image.
pub(crate) fn heavy(seed: u64) -> Net {
    Net { segments: vec![4, 4, 4], width: 48, side: 128, ..Net::tiny(seed) }
}

/// A directory of models with one of them, `<name>/1`.
pub(crate) fn models(name: &str, net: &Net) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    net.write(&dir.path().join(name).join("1")).expect("the bundle can be written");
    dir
}

/// Puts a bundle of `net` at `<name>/<version>`, in place of what is there.
pub(crate) fn put(models: &Path, name: &str, version: u64, net: &Net) {
    let dir = models.join(name).join(version.to_string());
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("the directory can be removed");
    }
    net.write(&dir).expect("the bundle can be written");
}

/// Writes a file of frequent masks (a bundle's `paths.json`, or a server's profile).
pub(crate) fn write_paths(file: &Path, paths: &[(&str, f64)]) {
    let paths: Vec<_> = paths.iter().map(|(mask, share)| serde_json::json!({"mask": mask, "share": share})).collect();
    let text = serde_json::json!({"schema": 1, "paths": paths}).to_string();
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("the directory can be made");
    std::fs::write(file, text).expect("the file can be written");
}

/// The command under test. Nothing in this process's environment sets its options.
pub(crate) fn blockdrop() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockdrop"));
    for (name, _) in std::env::vars_os() {
        if ["BLOCKDROP_", "OTEL_"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs `blockdrop` with `args` to its end.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    Ended::of(blockdrop().args(args).output().expect("the command starts"))
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its standard output as JSON, where it went well.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it failed with `code` and one line on standard error, which has every one of `parts` in it.
    pub(crate) fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.trim_end().lines().count(), 1, "one clear sentence: {self:?}");
        assert!(self.err.starts_with("error: "), "{self:?}");
        contains(&self.err, parts);
    }
}

/// Checks that every one of `parts` is in `text`.
pub(crate) fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}
