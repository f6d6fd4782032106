//! The scheduler with a made-up engine that answers when it is told to.

use std::sync::Mutex;
use std::sync::mpsc;

use prometheus::IntGauge;

use super::*;
use crate::policy::{BlockCost, Choice, Mask};
use crate::telemetry::Metrics;

/// Waits for a permit before each batch, then answers with each image's first pixel; panics on a pixel of 13 and fails
/// on one of 12.
struct Fake {
    permits: Mutex<mpsc::Receiver<()>>,
    batches: Mutex<Vec<Vec<f32>>>,
    costs: Costs,
    metrics: Arc<ModelMetrics>,
}

impl Backend for Fake {
    fn answer(&self, images: &[Image<'_>], replies: &mut dyn Replies) {
        let _ = self.permits.lock().unwrap().recv(); // without a sender it answers at once
        let wanted: Vec<usize> = (0..images.len()).filter(|&at| replies.wanted(at)).collect();
        let firsts: Vec<f32> = wanted.iter().map(|&at| images[at].pixels[0]).collect();
        self.batches.lock().unwrap().push(firsts.clone());
        assert!(!firsts.contains(&13.0), "unlucky");
        replies.running(wanted.len());
        for (at, first) in wanted.into_iter().zip(firsts) {
            let answer = Answer {
                logits: vec![first],
                mask: Mask::full(1),
                policy_ran: false,
                policy: Duration::ZERO,
                backbone: Duration::ZERO,
            };
            replies.answered(at, if first == 12.0 { Err(EngineError::NotFinite) } else { Ok(answer) });
        }
    }
}

impl Model for Fake {
    fn backend(&self) -> &dyn Backend {
        self
    }

    fn costs(&self) -> &Costs {
        &self.costs
    }

    fn metrics(&self) -> &ModelMetrics {
        &self.metrics
    }
}

struct Bench {
    model: Arc<Fake>,
    permits: Option<mpsc::Sender<()>>,
    admission: Admission,
    scheduler: Scheduler,
    metrics: Metrics,
}

impl Bench {
    fn new(workers: usize, max_batch: usize) -> Self {
        let (permits, waiting) = mpsc::channel();
        let metrics = Metrics::new("fake", "none");
        let model = Arc::new(Fake {
            permits: Mutex::new(waiting),
            batches: Mutex::default(),
            costs: Costs { policy: 1, stem: 1, blocks: vec![BlockCost { segment: 0, kept: 1, dropped: 0 }], head: 1 },
            metrics: metrics.model("fake", 1),
        });
        let admission = Admission::new(64, IntGauge::new("depth", "depth").unwrap());
        let scheduler = Scheduler::start(workers, max_batch).unwrap();
        Self { model, permits: Some(permits), admission, scheduler, metrics }
    }

    fn submit_until(&self, pixel: f32, deadline: Instant) -> oneshot::Receiver<Result<Answer, WorkError>> {
        let selection = Choice { path: crate::policy::Path::Full, ..Choice::default() };
        self.scheduler.submit(Work {
            model: Arc::clone(&self.model) as Arc<dyn Model>,
            pixels: vec![pixel],
            selection: selection.check(&self.model.costs, 0.5).unwrap(),
            index: 0,
            request_id: "test".into(),
            deadline,
            slot: self.admission.places(1).unwrap().remove(0),
        })
    }

    fn submit(&self, pixel: f32) -> oneshot::Receiver<Result<Answer, WorkError>> {
        self.submit_until(pixel, Instant::now() + Duration::from_secs(60))
    }

    /// Occupies the only worker with an image of 0 until the permits are let go.
    fn occupy(&self) -> oneshot::Receiver<Result<Answer, WorkError>> {
        let answer = self.submit(0.0);
        while self.admission.places(64).is_err() {
            std::thread::yield_now(); // the worker has not taken it up yet
        }
        answer
    }

    /// Lets every batch run from now on.
    fn release(&mut self) {
        self.permits = None;
    }

    fn batches(&self) -> Vec<Vec<f32>> {
        self.model.batches.lock().unwrap().clone()
    }

    fn counted(&self, series: &str) -> f64 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series}"));
        line.trim().parse().unwrap()
    }
}

fn pixel(answer: oneshot::Receiver<Result<Answer, WorkError>>) -> f32 {
    answer.blocking_recv().unwrap().unwrap().logits[0]
}

#[test]
fn images_that_wait_while_a_worker_is_busy_run_together() {
    let mut bench = Bench::new(1, 3);
    let first = bench.occupy();
    let answers: Vec<_> = (1..=5).map(|number| bench.submit(number as f32)).collect();
    bench.release();
    assert_eq!(pixel(first), 0.0);
    let found: Vec<f32> = answers.into_iter().map(pixel).collect();
    assert_eq!(found, [1.0, 2.0, 3.0, 4.0, 5.0], "each gets its own answer");
    assert_eq!(bench.batches(), [vec![0.0], vec![1.0, 2.0, 3.0], vec![4.0, 5.0]]);
    assert_eq!(bench.counted("blockdrop_batch_size_count{model=\"fake\"}"), 3.0);
    assert_eq!(bench.counted("blockdrop_images_total{model=\"fake\"}"), 6.0);
}

#[test]
fn expired_and_abandoned_images_cost_nothing() {
    let mut bench = Bench::new(1, 8);
    let first = bench.occupy();
    let expired = bench.submit_until(1.0, Instant::now());
    drop(bench.submit(2.0));
    let wanted = bench.submit(3.0);
    bench.release();
    assert!(matches!(expired.blocking_recv().unwrap(), Err(WorkError::Expired)));
    assert_eq!(pixel(wanted), 3.0);
    assert_eq!(pixel(first), 0.0);
    assert_eq!(bench.batches(), [vec![0.0], vec![3.0]]);
    assert_eq!(bench.admission.places(64).unwrap().len(), 64, "every place came back");
}

#[test]
fn a_panic_or_an_error_fails_its_own_images_only() {
    let mut bench = Bench::new(1, 2);
    let first = bench.occupy();
    let answers: Vec<_> = [13.0, 1.0, 12.0, 2.0].into_iter().map(|number| bench.submit(number)).collect();
    bench.release();
    assert_eq!(pixel(first), 0.0);
    let found: Vec<String> = answers
        .into_iter()
        .map(|answer| match answer.blocking_recv() {
            Ok(Ok(answer)) => answer.logits[0].to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "lost".to_owned(),
        })
        .collect();
    let not_finite = EngineError::NotFinite.to_string();
    assert_eq!(found, ["lost", "lost", not_finite.as_str(), "2"]);
    assert_eq!(pixel(bench.submit(5.0)), 5.0, "the worker goes on");
}

#[test]
fn what_is_queued_is_answered_before_the_workers_end() {
    let mut bench = Bench::new(2, 4);
    let answers: Vec<_> = (101..=120).map(|number| bench.submit(number as f32)).collect();
    bench.release();
    assert!(bench.scheduler.finish(Duration::from_secs(60)), "the workers end");
    let found: Vec<f32> = answers.into_iter().map(pixel).collect();
    assert_eq!(found, (101..=120).map(|number| number as f32).collect::<Vec<_>>());
}
