//! What workers log.

use std::io::Write;

use serde_json::{Value, json};

use super::*;
use crate::telemetry::logs::{LogFormat, subscriber};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn name_the_requests_of_the_batch() {
    let lines = Lines::default();
    let writer = lines.clone();
    // Of all threads, a worker's being none of this test's: other tests log there too.
    let log = subscriber(LogFormat::Json, "blockdrop::scheduler=debug".into(), move || writer.clone());
    tracing::subscriber::set_global_default(log).unwrap();

    let mut bench = Bench::new(1, 8);
    let late = Instant::now() + Duration::from_secs(60);
    let first = bench.occupy();
    let images = [("a\"b", Path::Learned, 213.0), ("other", Path::Learned, 300.0), ("alone", Path::Full, 13.0)];
    let answers = images.map(|(id, path, pixel)| bench.submit_by(id, &bench.flow, path, pixel, late));
    bench.release();
    assert!(bench.scheduler.finish(Duration::from_secs(60)));
    drop((first, answers));

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let panics = |key: &str, value: Value| {
        let of = |line: &&Value| line["level"] == "ERROR" && line[key] == value;
        let found: Vec<&Value> = lines.iter().filter(of).collect();
        assert!(
            matches!(found.as_slice(), [line] if line["message"].as_str().unwrap().contains("a panic")),
            "{found:?}"
        );
        found[0].clone()
    };
    assert_eq!(panics("request_id", json!("alone"))["trace_id"].as_str().unwrap().len(), 32);
    assert_eq!(panics("request_ids", json!(["a\"b", "other"]))["trace_ids"].as_array().unwrap().len(), 2);
    for id in ["a\"b", "other", "alone"] {
        let waited = lines.iter().find(|line| line["span"]["name"] == "queue" && line["span"]["request_id"] == id);
        assert_eq!(waited.unwrap()["request_id"], id);
    }
}
