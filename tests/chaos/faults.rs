//! Clients that do what no client should, each kind by its name.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use blockdrop::proto::v1::ClassifyRequest;
use flate2::write::GzEncoder;
use prost::Message;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;

use crate::common::raw::{head, post};
use crate::common::{blank, picture, png};
use crate::wire::{self, Wire, frame};

/// What goes wrong.
pub(crate) const KINDS: [&str; 29] = [
    "a request that breaks off",
    "a request that is reset",
    "a request that is half closed",
    "a request whose client leaves",
    "junk",
    "a damaged request",
    "a giant header",
    "a thousand headers",
    "a slow body",
    "a slow head",
    "answers that nobody reads",
    "a damaged image",
    "an image that claims to be huge",
    "an image that ONNX Runtime fails on",
    "an image that the policy fails on",
    "a body that is too large",
    "a body that swells",
    "an idle connection",
    "h2: streams that are reset at once",
    "h2: requests that are cancelled",
    "h2: junk frames",
    "h2: a frame that breaks off",
    "h2: no window for answers",
    "h2: floods of settings and pings",
    "h2: headers without end",
    "grpc: a broken message",
    "grpc: a call that is cancelled",
    "grpc: a stream that is left",
    "grpc: a client that resets",
];

/// How often each kind was done.
#[derive(Default)]
pub(crate) struct Counts([AtomicUsize; KINDS.len()]);

impl Counts {
    pub(crate) fn by_kind(&self) -> BTreeMap<&'static str, usize> {
        KINDS.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed))).collect()
    }
}

const CLASSIFY: &str = "/blockdrop.v1.Classifier/Classify";
const STREAM: &str = "/blockdrop.v1.Classifier/ClassifyStream";
const GRPC: &str = "application/grpc";

pub(crate) struct Abuser {
    pub(crate) lots: ChaCha8Rng,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
}

impl Abuser {
    /// Does one thing after another until `stop`.
    pub(crate) async fn run(mut self, counts: &Counts, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let kind = self.lots.random_range(0..KINDS.len());
            if self.act(KINDS[kind]).await.is_some() {
                counts.0[kind].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A time of up to so many milliseconds.
    fn while_(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.lots.random_range(0..most))
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.lots.random_range(1..most)];
        self.lots.fill_bytes(&mut bytes);
        bytes
    }

    fn image(&mut self) -> Vec<u8> {
        let side = self.lots.random_range(8..64);
        let formats = crate::common::FORMATS;
        picture(self.lots.random_range(0..50), side, formats[self.lots.random_range(0..formats.len())])
    }

    /// A whole request of HTTP/1.1.
    fn request(&mut self) -> Vec<u8> {
        let image = self.image();
        match self.lots.random_range(0..4) {
            0 => post("?path=full", "", &image),
            1 => post("?max_blocks=3", "content-type: application/octet-stream\r\n", &image),
            2 => {
                let mut form = b"--b\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\n".to_vec();
                form.extend(image);
                form.extend(b"\r\n--b--\r\n");
                post("", "content-type: multipart/form-data; boundary=b\r\n", &form)
            }
            _ => {
                let mut chunked = head("", "transfer-encoding: chunked\r\n");
                for piece in image.chunks(100) {
                    chunked.extend(format!("{:x}\r\n", piece.len()).bytes());
                    chunked.extend(piece);
                    chunked.extend(b"\r\n");
                }
                chunked.extend(b"0\r\n\r\n");
                chunked
            }
        }
    }

    fn part<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        &bytes[..self.lots.random_range(1..bytes.len())]
    }

    /// A message that asks for an image's classes.
    fn call(&mut self) -> Vec<u8> {
        let image = self.image().into();
        wire::message(&ClassifyRequest { image, ..ClassifyRequest::default() }.encode_to_vec())
    }

    /// `None` where the server takes no connection.
    async fn act(&mut self, kind: &str) -> Option<()> {
        const SOON: Duration = Duration::from_millis(300);
        let either = if self.lots.random() { self.http } else { self.grpc };
        match kind {
            "a request that breaks off" => {
                let (mut wire, whole) = (Wire::open(self.http).await?, self.request());
                wire.send(self.part(&whole)).await;
            }
            "a request that is reset" => {
                let (mut wire, whole) = (Wire::open(self.http).await?, self.request());
                wire.send(self.part(&whole)).await;
                sleep(self.while_(20)).await;
                wire.reset();
            }
            "a request that is half closed" => {
                let (mut wire, whole) = (Wire::open(self.http).await?, self.request());
                let part = if self.lots.random() { &whole[..] } else { self.part(&whole) };
                wire.send(part).await;
                wire.finish().await;
                wire.read(SOON).await;
            }
            "a request whose client leaves" => {
                let (mut wire, whole) = (Wire::open(self.http).await?, self.request());
                wire.send(whole).await;
                sleep(self.while_(4)).await;
            }
            "junk" => {
                let (mut wire, mut junk) = (Wire::open(either).await?, self.bytes(4096));
                if self.lots.random() {
                    junk.splice(..0, *b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"); // TLS
                }
                wire.send(junk).await;
                wire.read(SOON).await;
            }
            "a damaged request" => {
                let (mut wire, mut whole) = (Wire::open(self.http).await?, self.request());
                for _ in 0..self.lots.random_range(1..5) {
                    let at = self.lots.random_range(0..whole.len());
                    whole[at] = self.lots.random();
                }
                wire.send(whole).await;
                wire.finish().await;
                wire.read(SOON).await;
            }
            "a giant header" => {
                let mut wire = Wire::open(either).await?;
                wire.send(head("", &format!("x-giant: {}\r\n", "x".repeat(1 << 20)))).await;
                wire.read(SOON).await;
            }
            "a thousand headers" => {
                let many: String = (0..1000).map(|number| format!("x-{number}: 1\r\n")).collect();
                let mut wire = Wire::open(either).await?;
                wire.send(head("", &many)).await;
                wire.read(SOON).await;
            }
            "a slow body" => {
                let mut wire = Wire::open(self.http).await?;
                wire.send(head("", "content-length: 1000\r\n")).await;
                for _ in 0..self.lots.random_range(1..100) {
                    if !wire.send([0x89]).await {
                        break;
                    }
                    sleep(self.while_(100)).await;
                }
            }
            "a slow head" => {
                let (mut wire, whole) = (Wire::open(either).await?, self.request());
                for byte in whole.into_iter().take(40) {
                    if !wire.send([byte]).await {
                        break;
                    }
                    sleep(self.while_(20)).await;
                }
            }
            "answers that nobody reads" => {
                let mut wire = Wire::open(self.http).await?;
                for _ in 0..40 {
                    let whole = self.request();
                    if !wire.send(whole).await {
                        break;
                    }
                }
                for _ in 0..40 {
                    // The largest answer that there is, far more than the system's buffers take.
                    if !wire.send(b"GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n".repeat(10)).await {
                        break;
                    }
                }
                sleep(self.while_(1000)).await;
            }
            "a damaged image" => {
                let (mut wire, mut image) = (Wire::open(self.http).await?, self.image());
                match self.lots.random() {
                    true => image.truncate(self.lots.random_range(8..image.len())),
                    false => image[..4].fill(b'?'),
                }
                wire.send(post("", "", &image)).await;
                wire.read(SOON).await;
            }
            "an image that claims to be huge" => {
                let (mut wire, mut image) = (Wire::open(self.http).await?, png(1));
                image[16..24].fill(0x7f); // the width and the height
                wire.send(post("", "", &image)).await;
                wire.read(SOON).await;
            }
            "an image that ONNX Runtime fails on" | "an image that the policy fails on" => {
                let mut wire = Wire::open(self.http).await?;
                wire.send(post("", "connection: close\r\n", &blank(if kind.contains("policy") { 0 } else { 255 })))
                    .await;
                wire.read(SOON).await;
            }
            "a body that is too large" => {
                let mut wire = Wire::open(self.http).await?;
                let chunked: bool = self.lots.random();
                wire.send(head(
                    "",
                    if chunked { "transfer-encoding: chunked\r\n" } else { "content-length: 600000\r\n" },
                ))
                .await;
                wire.send(if chunked { b"fffff\r\n".to_vec() } else { Vec::new() }).await;
                wire.send(vec![0x89; 600_000]).await;
                wire.read(SOON).await;
            }
            "a body that swells" => {
                let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
                gzip.write_all(&vec![0; 8 << 20]).expect("memory takes it");
                let mut wire = Wire::open(self.http).await?;
                wire.send(post("", "content-encoding: gzip\r\n", &gzip.finish().expect("memory takes it"))).await;
                wire.read(SOON).await;
            }
            "an idle connection" => {
                let _wire = Wire::open(either).await?;
                sleep(self.while_(2000)).await;
            }
            "h2: streams that are reset at once" => {
                let mut wire = Wire::second(either).await?;
                let image = self.image();
                for stream in 0..500 {
                    let stream = 2 * stream + 1;
                    let mut both = wire::head(stream, "/v1/classify", "application/octet-stream");
                    if image.len() < 16_000 && stream % 4 == 1 {
                        both.extend(frame(wire::DATA, wire::END_STREAM, stream, &image));
                    }
                    both.extend(wire::cancel(stream));
                    if !wire.send(both).await {
                        break;
                    }
                }
                wire.read(SOON).await;
            }
            "h2: requests that are cancelled" => {
                let mut wire = Wire::second(self.http).await?;
                for stream in [1, 3, 5, 7, 9] {
                    let image = self.image();
                    wire.send(wire::request(
                        stream,
                        "/v1/classify?path=full",
                        "image/png",
                        &image[..image.len().min(16_000)],
                    ))
                    .await;
                }
                sleep(self.while_(5)).await;
                wire.send([1, 3, 5, 7, 9].map(wire::cancel).concat()).await;
                wire.read(self.while_(50)).await;
            }
            "h2: junk frames" => {
                let mut wire = Wire::second(either).await?;
                for _ in 0..self.lots.random_range(1..20) {
                    let (payload, flags) = (self.bytes(200), self.lots.random());
                    let (kind, stream) = (self.lots.random_range(0..12), self.lots.random_range(0..10));
                    wire.send(frame(kind, flags, stream, &payload)).await;
                }
                wire.read(SOON).await;
            }
            "h2: a frame that breaks off" => {
                let (mut wire, image) = (Wire::second(either).await?, self.image());
                let whole = wire::request(1, "/v1/classify", "image/png", &image[..image.len().min(16_000)]);
                wire.send(self.part(&whole)).await;
                sleep(self.while_(20)).await;
            }
            "h2: no window for answers" => {
                let mut wire = Wire::second(self.http).await?;
                // SETTINGS_INITIAL_WINDOW_SIZE of 0.
                wire.send(frame(wire::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
                let image = self.image();
                for stream in 0..20 {
                    let body = &image[..image.len().min(16_000)];
                    if !wire.send(wire::request(2 * stream + 1, "/v1/classify", "image/png", body)).await {
                        break;
                    }
                }
                sleep(self.while_(1500)).await;
            }
            "h2: floods of settings and pings" => {
                let mut wire = Wire::second(either).await?;
                let both = [frame(wire::SETTINGS, 0, 0, &[]), frame(wire::PING, 0, 0, &[7; 8])].concat();
                for _ in 0..200 {
                    if !wire.send(both.repeat(20)).await {
                        break;
                    }
                }
                if self.lots.random() {
                    wire.read(SOON).await;
                }
            }
            "h2: headers without end" => {
                let mut wire = Wire::second(either).await?;
                wire.send(frame(wire::HEADERS, 0, 1, &wire::block("/v1/classify", "image/png"))).await;
                for number in 0..2000 {
                    let field = [&[0, 6][..], format!("x-{number:04}").as_bytes(), &[100], &[b'x'; 100]].concat();
                    if !wire.send(frame(wire::CONTINUATION, 0, 1, &field)).await {
                        break;
                    }
                }
                wire.read(SOON).await;
            }
            "grpc: a broken message" => {
                let (mut wire, mut call) = (Wire::second(self.grpc).await?, self.call());
                match self.lots.random_range(0..5) {
                    0 => call[0] = 1,                            // compressed, it says
                    1 => call[1..5].copy_from_slice(&[0xff; 4]), // of four gigabytes
                    2 => call[5..].iter_mut().for_each(|byte| *byte ^= 0x5a),
                    3 => call.truncate(call.len() / 2),
                    _ => {
                        let image = b"no image".to_vec().into();
                        let request = ClassifyRequest { image, ..ClassifyRequest::default() };
                        call = wire::message(&request.encode_to_vec());
                    }
                }
                call.truncate(16_000);
                wire.send(wire::request(
                    1,
                    [CLASSIFY, STREAM, "/no.Such/Call"][self.lots.random_range(0..3)],
                    GRPC,
                    &call,
                ))
                .await;
                wire.read(SOON).await;
            }
            "grpc: a call that is cancelled" => {
                let (mut wire, call) = (Wire::second(self.grpc).await?, self.call());
                wire.send(wire::request(1, CLASSIFY, GRPC, &call[..call.len().min(16_000)])).await;
                sleep(self.while_(5)).await;
                wire.send(wire::cancel(1)).await;
                wire.read(self.while_(50)).await;
            }
            "grpc: a stream that is left" => {
                let mut wire = Wire::second(self.grpc).await?;
                wire.send(wire::head(1, STREAM, GRPC)).await;
                for _ in 0..self.lots.random_range(1..6) {
                    let call = self.call();
                    wire.send(frame(wire::DATA, 0, 1, &call[..call.len().min(16_000)])).await;
                }
                wire.read(self.while_(100)).await;
            }
            "grpc: a client that resets" => {
                let (mut wire, call) = (Wire::second(self.grpc).await?, self.call());
                let whole = wire::request(1, CLASSIFY, GRPC, &call[..call.len().min(16_000)]);
                wire.send(self.part(&whole)).await;
                sleep(self.while_(10)).await;
                wire.reset();
            }
            other => unreachable!("no kind of fault: {other}"),
        }
        Some(())
    }
}
