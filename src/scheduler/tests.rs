//! The scheduler with a made-up engine that answers when it is told to.

mod lines;

use std::sync::Mutex;
use std::sync::mpsc;

use prometheus::IntGauge;

use super::*;
use crate::engine::{Each, Ran};
use crate::policy::{BlockCost, Choice, Path};
use crate::telemetry::{Metrics, RequestContext};

/// Waits for a permit before each path, then answers with each image's first pixel; panics on a pixel of 13 and fails
/// on one of 12. Its policy keeps the block where the pixel is 100 or more, panics on 213 and fails on 212. An image that
/// is run again waits for a permit of another kind; of the full net then there is no graph for 14, a panic for 15, an error for 16, and
/// another class for 17.
struct Fake {
    permits: Mutex<mpsc::Receiver<()>>,
    shadow_permits: Mutex<mpsc::Receiver<()>>,
    /// First pixels of each policy batch and of each path's batch.
    looked: Mutex<Vec<Vec<f32>>>,
    batches: Mutex<Vec<Vec<f32>>>,
    /// Whether it was the full net's, and the pixel, of each run again.
    reran: Mutex<Vec<(bool, f32)>>,
    mixes: bool,
    costs: Costs,
    metrics: Arc<ModelMetrics>,
    statistics: Statistics,
    pace: Pace,
}

impl Backend for Fake {
    fn look(&self, images: &[&[f32]]) -> Each<Vec<f32>> {
        let firsts: Vec<f32> = images.iter().map(|pixels| pixels[0]).collect();
        self.looked.lock().unwrap().push(firsts.clone());
        assert!(!firsts.contains(&213.0), "unlucky");
        let logits = |first| if first == 212.0 { Err(EngineError::NotFinite) } else { Ok(vec![first - 100.0]) };
        firsts.into_iter().map(logits).collect()
    }

    fn run(&self, mask: &Mask, images: &[&[f32]]) -> Ran {
        let _ = self.permits.lock().unwrap().recv(); // without a sender it answers at once
        let firsts: Vec<f32> = images.iter().map(|pixels| pixels[0]).collect();
        self.batches.lock().unwrap().push(firsts.clone());
        assert!(!firsts.contains(&13.0), "unlucky");
        assert!(firsts.iter().all(|first| mask.is_full() || *first < 100.0), "{mask} is not the mask of {firsts:?}");
        let logits = |first| if first == 12.0 { Err(EngineError::NotFinite) } else { Ok(vec![first]) };
        Ran { logits: firsts.into_iter().map(logits).collect(), compiled: false }
    }

    fn mixes(&self) -> bool {
        self.mixes
    }

    /// Rare masks run together.
    fn together(&self, groups: &[(&Mask, usize)]) -> Vec<usize> {
        std::iter::once(0).chain((1..groups.len()).filter(|&at| groups[at].1 <= 2)).collect()
    }

    fn run_mixed(&self, images: &[(&Mask, &[f32])]) -> Each<Vec<f32>> {
        let _ = self.permits.lock().unwrap().recv();
        let firsts: Vec<f32> = images.iter().map(|(_, pixels)| pixels[0]).collect();
        self.batches.lock().unwrap().push(firsts.clone());
        assert!(!firsts.contains(&13.0), "unlucky");
        let logits = |&(mask, pixels): &(&Mask, &[f32])| match pixels[0] {
            12.0 => Err(EngineError::NotFinite),
            first => Ok(vec![first, mask.kept() as f32]),
        };
        images.iter().map(logits).collect()
    }

    fn rerun(&self, mask: &Mask, image: &[f32]) -> Result<Option<Vec<f32>>, EngineError> {
        self.reran.lock().unwrap().push((mask.is_full(), image[0]));
        let _ = self.shadow_permits.lock().unwrap().recv();
        assert!(!mask.is_full() || image[0] != 15.0, "unlucky");
        match image[0] {
            14.0 if mask.is_full() => Ok(None),
            16.0 if mask.is_full() => Err(EngineError::NotFinite),
            17.0 if mask.is_full() => Ok(Some(vec![0.0, 1.0])),
            first => Ok(Some(vec![first])),
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

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn pace(&self) -> &Pace {
        &self.pace
    }
}

struct Bench {
    model: Arc<Fake>,
    permits: Option<mpsc::Sender<()>>,
    /// For each side of a shadow.
    shadow_permits: Option<mpsc::Sender<()>>,
    admission: Admission,
    flow: Arc<Flow>,
    scheduler: Scheduler,
    metrics: Metrics,
}

impl Bench {
    fn new(workers: usize, max_batch: usize) -> Self {
        Self::with_shadows(workers, max_batch, 0.0)
    }

    fn with_shadows(workers: usize, max_batch: usize, rate: f64) -> Self {
        Self::with(workers, max_batch, rate, false)
    }

    fn with(workers: usize, max_batch: usize, rate: f64, mixes: bool) -> Self {
        let (permits, waiting) = mpsc::channel();
        let (shadow_permits, shadows_waiting) = mpsc::channel();
        let metrics = Metrics::new("fake", "none");
        let model = Arc::new(Fake {
            permits: Mutex::new(waiting),
            shadow_permits: Mutex::new(shadows_waiting),
            looked: Mutex::default(),
            batches: Mutex::default(),
            reran: Mutex::default(),
            mixes,
            costs: Costs { policy: 1, stem: 1, blocks: vec![BlockCost { segment: 0, kept: 1, dropped: 0 }], head: 1 },
            metrics: metrics.model("fake", 1),
            statistics: Statistics::default(),
            pace: Pace::default(),
        });
        let admission = Admission::new(
            Bounds { images: 64, of_flow: 64, workers, decoders: 1 },
            IntGauge::new("depth", "depth").unwrap(),
        );
        let scheduler = Scheduler::start(workers, max_batch, rate, None, &metrics.workers).unwrap();
        let (permits, shadow_permits) = (Some(permits), Some(shadow_permits));
        Self { model, permits, shadow_permits, admission, flow: Flow::new(), scheduler, metrics }
    }

    fn submit_for(&self, path: Path, pixel: f32, deadline: Instant) -> oneshot::Receiver<Result<Answer, WorkError>> {
        self.submit_by("test", &self.flow, path, pixel, deadline)
    }

    fn submit_of(
        &self,
        flow: &Arc<Flow>,
        path: Path,
        pixel: f32,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<Answer, WorkError>> {
        self.submit_by("test", flow, path, pixel, deadline)
    }

    /// An image of the request called `id`, which came over the connection of `flow`.
    fn submit_by(
        &self,
        id: &str,
        flow: &Arc<Flow>,
        path: Path,
        pixel: f32,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<Answer, WorkError>> {
        let selection = Choice { path, ..Choice::default() };
        self.scheduler.submit(Work {
            model: Arc::clone(&self.model) as Arc<dyn Model>,
            pixels: vec![pixel],
            selection: selection.check(&self.model.costs, 0.5).unwrap(),
            index: 0,
            context: RequestContext::new(id.to_owned(), None, Default::default(), None),
            deadline,
            slot: self.admission.places(flow, 1, Cost::default(), Duration::MAX).unwrap().remove(0),
        })
    }

    /// By the full path.
    fn submit(&self, pixel: f32) -> oneshot::Receiver<Result<Answer, WorkError>> {
        self.submit_for(Path::Full, pixel, Instant::now() + Duration::from_secs(60))
    }

    /// By the path that the policy chooses.
    fn submit_learned(&self, pixel: f32) -> oneshot::Receiver<Result<Answer, WorkError>> {
        self.submit_for(Path::Learned, pixel, Instant::now() + Duration::from_secs(60))
    }

    /// Places for so many images more.
    fn places(&self, count: usize) -> Result<usize, Refused> {
        self.admission.places(&self.flow, count, Cost::default(), Duration::MAX).map(|slots| slots.len())
    }

    /// Occupies the only worker with an image of 0 until the permits are let go.
    fn occupy(&self) -> oneshot::Receiver<Result<Answer, WorkError>> {
        let answer = self.submit(0.0);
        while self.places(64).is_err() {
            std::thread::yield_now(); // the worker has not taken it up yet
        }
        answer
    }

    /// Lets every batch run from now on.
    fn release(&mut self) {
        self.permits = None;
    }

    fn looked(&self) -> Vec<Vec<f32>> {
        self.model.looked.lock().unwrap().clone()
    }

    fn batches(&self) -> Vec<Vec<f32>> {
        self.model.batches.lock().unwrap().clone()
    }

    fn reran(&self) -> Vec<(bool, f32)> {
        self.model.reran.lock().unwrap().clone()
    }

    /// Lets every shadow run from now on.
    fn release_shadows(&mut self) {
        self.shadow_permits = None;
    }

    /// Waits until so many sides of shadows have begun.
    fn until_reran(&self, sides: usize) {
        while self.reran().len() < sides {
            std::thread::yield_now();
        }
    }

    fn shadows(&self, what: &str) -> f64 {
        self.counted(&format!("blockdrop_shadow_{what}_total{{model=\"fake\"}}"))
    }

    fn shadows_dropped(&self, reason: &str) -> f64 {
        self.counted(&format!("blockdrop_shadow_dropped_total{{model=\"fake\",reason=\"{reason}\"}}"))
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
fn images_of_different_masks_run_together_where_the_engine_says_so() {
    let mut bench = Bench::with(1, 8, 1.0, true);
    let first = bench.occupy();
    // Three of the full path, two without the block, whose masks are known.
    let none = Path::Fixed("0".parse().unwrap());
    let until = Instant::now() + Duration::from_secs(60);
    let asked = [(Path::Full, 1.0), (none.clone(), 2.0), (Path::Full, 3.0), (none, 4.0), (Path::Full, 12.0)];
    let answers: Vec<_> = asked.into_iter().map(|(path, pixel)| bench.submit_for(path, pixel, until)).collect();
    bench.release();
    bench.release_shadows();
    assert_eq!(pixel(first), 0.0);
    let found: Vec<Option<(Vec<f32>, usize)>> = answers
        .into_iter()
        .map(|answer| answer.blocking_recv().unwrap().ok().map(|answer| (answer.logits, answer.mask.kept())))
        .collect();
    let of = |pixel: f32, kept: usize| Some((vec![pixel, kept as f32], kept));
    assert_eq!(found, [of(1.0, 1), of(2.0, 0), of(3.0, 1), of(4.0, 0), None], "each by its own mask");
    assert_eq!(bench.batches(), [vec![0.0], vec![1.0, 3.0, 12.0, 2.0, 4.0]]);
    assert_eq!(bench.counted("blockdrop_mixed_batches_total{model=\"fake\"}"), 1.0);
    assert_eq!(bench.counted("blockdrop_batch_size_count{model=\"fake\"}"), 2.0);
    assert_eq!(bench.places(64), Ok(64), "every place came back");
}

#[test]
fn a_panic_among_mixed_masks_fails_its_batch_only() {
    let mut bench = Bench::with(1, 3, 0.0, true);
    let first = bench.occupy();
    let until = Instant::now() + Duration::from_secs(60);
    let none = || Path::Fixed("0".parse().unwrap());
    let lost = [bench.submit_for(none(), 13.0, until), bench.submit(1.0), bench.submit(2.0)];
    bench.release();
    assert_eq!(pixel(first), 0.0);
    assert!(lost.into_iter().all(|answer| answer.blocking_recv().is_err()));
    let next = [bench.submit_for(none(), 3.0, until), bench.submit(4.0)];
    assert_eq!(next.map(pixel), [3.0, 4.0], "the worker goes on");
    assert_eq!(bench.counted("blockdrop_worker_panics_total"), 1.0);
    assert_eq!(bench.places(64), Ok(64), "every place came back");
}

#[test]
fn expired_and_abandoned_images_cost_nothing() {
    let mut bench = Bench::new(1, 8);
    let first = bench.occupy();
    let expired = bench.submit_for(Path::Full, 1.0, Instant::now());
    drop(bench.submit(2.0));
    let wanted = bench.submit(3.0);
    bench.release();
    assert!(matches!(expired.blocking_recv().unwrap(), Err(WorkError::Expired)));
    assert_eq!(pixel(wanted), 3.0);
    assert_eq!(pixel(first), 0.0);
    assert_eq!(bench.batches(), [vec![0.0], vec![3.0]]);
    assert_eq!(bench.places(64), Ok(64), "every place came back");
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
    assert_eq!((bench.counted("blockdrop_worker_panics_total"), bench.counted("blockdrop_workers")), (1.0, 1.0));
}

#[test]
fn a_worker_that_is_stuck_is_seen() {
    let mut bench = Bench::new(2, 2);
    assert_eq!(bench.counted("blockdrop_worker_busy_seconds"), 0.0);
    let stuck = bench.occupy();
    let long = Duration::from_millis(2);
    while bench.metrics.workers.longest() < long {
        std::thread::yield_now();
    }
    assert!(bench.counted("blockdrop_worker_busy_seconds") >= long.as_secs_f64());
    bench.release();
    assert_eq!(pixel(stuck), 0.0);
    while !bench.metrics.workers.longest().is_zero() {
        std::thread::yield_now(); // the worker that answered asks for more
    }
    assert_eq!(bench.counted("blockdrop_worker_busy_seconds"), 0.0);
}

#[tokio::test]
async fn a_worker_that_ends_is_told_of_and_the_others_go_on() {
    let mut bench = Bench::new(2, 2);
    bench.release();
    let lost = bench.scheduler.lost();
    bench.scheduler.queue.corrupt(Alike { model: Arc::clone(&bench.model) as Arc<dyn Model>, mask: None });
    lost.await;
    while bench.counted("blockdrop_workers") > 1.0 {
        std::thread::yield_now();
    }
    assert_eq!(bench.submit(5.0).await.unwrap().unwrap().logits, [5.0]);
    assert!(bench.scheduler.finish(Duration::from_secs(60)), "the other one ends");
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

#[test]
fn images_of_one_mask_run_together_and_the_oldest_goes_first() {
    let mut bench = Bench::new(1, 8);
    let first = bench.occupy();
    let answers: Vec<_> =
        [101.0, 2.0, 103.0, 4.0, 105.0].into_iter().map(|number| bench.submit_learned(number)).collect();
    let full = bench.submit(6.0);
    bench.release();
    assert_eq!(pixel(first), 0.0);
    assert_eq!(pixel(full), 6.0);
    let found: Vec<Answer> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap().unwrap()).collect();
    let masks: Vec<(f32, String)> = found.iter().map(|answer| (answer.logits[0], answer.mask.to_string())).collect();
    let expected = [(101.0, "1"), (2.0, "0"), (103.0, "1"), (4.0, "0"), (105.0, "1")];
    assert_eq!(masks, expected.map(|(first, mask)| (first, mask.to_owned())));
    assert!(found.iter().all(|answer| answer.policy_ran));
    assert_eq!(bench.looked(), [vec![101.0, 2.0, 103.0, 4.0, 105.0]], "the policy sees all of them at once");
    assert_eq!(bench.batches(), [vec![0.0], vec![101.0, 103.0, 105.0, 6.0], vec![2.0, 4.0]]);
}

#[test]
fn one_that_floods_lets_another_in_between() {
    let mut bench = Bench::new(1, 2);
    let first = bench.occupy();
    let later = Instant::now() + Duration::from_secs(60);
    let flood: Vec<_> =
        (1..=20).map(|number| bench.submit_learned(if number % 2 == 0 { 200.0 } else { 2.0 })).collect();
    let other = bench.submit_of(&Flow::new(), Path::Learned, 3.0, later);
    bench.release();
    assert_eq!(pixel(first), 0.0);
    assert_eq!(pixel(other), 3.0);
    assert!(flood.into_iter().map(pixel).all(|first| first != 3.0));
    let batches = bench.batches();
    let at = batches.iter().position(|batch| batch.contains(&3.0)).unwrap();
    assert!(at <= 2, "one batch of the flood goes before it: {batches:?}");
}

#[test]
fn a_model_has_a_pace_once_its_images_have_run() {
    let mut bench = Bench::new(1, 2);
    bench.release();
    assert_eq!(bench.model.pace.image(), None);
    for _ in 0..20 {
        pixel(bench.submit_learned(1.0));
    }
    assert!(bench.model.pace.image().is_some_and(|time| !time.is_zero()));
}

#[test]
fn groups_fill_while_workers_are_busy_and_a_place_is_held_until_the_path_runs() {
    let mut bench = Bench::new(1, 4);
    let first = bench.occupy();
    let answers: Vec<_> =
        (1..=12).map(|number| bench.submit_learned(if number % 3 == 0 { 200.0 } else { 1.0 })).collect();
    assert_eq!(bench.places(64 - 11), Err(Refused::Full), "12 of 64 places are taken");
    bench.release();
    assert_eq!(pixel(first), 0.0);
    assert_eq!(answers.into_iter().map(pixel).filter(|&first| first == 200.0).count(), 4);
    assert_eq!(bench.looked().iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4]);
    assert_eq!(bench.batches()[1..], [vec![1.0; 4], vec![200.0; 4], vec![1.0; 4]], "full batches, though masks mix");
    assert_eq!(bench.places(64), Ok(64));
}

#[test]
fn a_policy_that_panics_or_fails_costs_its_own_images_only() {
    let mut bench = Bench::new(1, 2);
    let first = bench.occupy();
    let answers: Vec<_> =
        [213.0, 101.0, 212.0, 102.0, 3.0].into_iter().map(|number| bench.submit_learned(number)).collect();
    bench.release();
    assert_eq!(pixel(first), 0.0);
    let found: Vec<Option<f32>> = answers
        .into_iter()
        .map(|answer| answer.blocking_recv().ok().and_then(Result::ok).map(|answer| answer.logits[0]))
        .collect();
    assert_eq!(found, [None, None, None, Some(102.0), Some(3.0)]);
    assert!(bench.scheduler.finish(Duration::from_secs(60)), "no worker waits for what was lost");
}

#[test]
fn a_shadow_runs_both_sides_when_nothing_waits_and_lets_others_in_between() {
    let mut bench = Bench::with_shadows(1, 8, 1.0);
    bench.release();
    assert_eq!(pixel(bench.submit_learned(1.0)), 1.0, "the answer does not wait for the shadow");
    bench.until_reran(1);
    let (second, third) = (bench.submit_learned(2.0), bench.submit_learned(103.0));
    bench.shadow_permits.as_ref().unwrap().send(()).unwrap();
    assert_eq!((pixel(second), pixel(third)), (2.0, 103.0), "they wait for one side alone");
    assert_eq!(bench.shadows("runs"), 0.0);
    bench.release_shadows();
    while bench.shadows("agree") < 3.0 {
        std::thread::yield_now();
    }
    let reran = bench.reran();
    let [(one, 1.0), (other, 1.0), (third, 2.0), (fourth, 2.0), (true, 103.0), (true, 103.0)] = reran[..] else {
        panic!("{reran:?}")
    };
    assert!(one != other && third != fourth, "a side each, of 103 the full net twice: {reran:?}");
    assert_eq!(bench.shadows("runs"), 3.0);
    assert!(bench.shadows("path_seconds") > 0.0 && bench.shadows("full_seconds") > 0.0);
    assert_eq!(bench.counted("blockdrop_images_total{model=\"fake\"}"), 3.0);
    assert_eq!(bench.counted("blockdrop_batch_size_sum{model=\"fake\"}"), 3.0);
    assert_eq!(bench.model.statistics.images(), 3);
}

#[test]
fn one_worker_at_a_time_runs_a_shadow_and_only_so_many_wait() {
    let mut bench = Bench::with_shadows(2, 8, 1.0);
    bench.release();
    for _ in 0..2 * shadow::MOST {
        // One of the two workers is stuck in a shadow; the other one answers.
        assert_eq!(pixel(bench.submit(0.0)), 0.0, "the full net is no shadow's");
        assert_eq!(pixel(bench.submit_learned(1.0)), 1.0);
    }
    bench.until_reran(1);
    while bench.shadows_dropped("full") < shadow::MOST as f64 {
        std::thread::yield_now(); // the worker counts it after the answer
    }
    assert_eq!(bench.reran().len(), 1);
    bench.release_shadows();
    while bench.shadows("runs") < shadow::MOST as f64 {
        std::thread::yield_now();
    }
    assert_eq!(bench.shadows_dropped("full"), shadow::MOST as f64);
    assert_eq!(bench.reran().len(), 2 * shadow::MOST);
}

#[test]
fn a_shadow_that_fails_hurts_nobody() {
    let mut bench = Bench::with_shadows(1, 8, 1.0);
    bench.release();
    bench.release_shadows();
    for number in [14.0, 15.0, 16.0, 17.0, 1.0] {
        assert_eq!(pixel(bench.submit_learned(number)), number);
    }
    while bench.shadows("agree") < 1.0 {
        std::thread::yield_now();
    }
    assert_eq!((bench.shadows("runs"), bench.shadows("agree")), (2.0, 1.0), "17 gets another class");
    assert_eq!((bench.shadows_dropped("no_graph"), bench.shadows_dropped("failed")), (1.0, 2.0));
    assert_eq!(pixel(bench.submit(5.0)), 5.0, "the worker goes on");
}

#[test]
fn a_server_that_stops_runs_no_shadow_any_more() {
    let mut bench = Bench::with_shadows(2, 8, 1.0);
    bench.release();
    for number in [1.0, 2.0, 3.0] {
        assert_eq!(pixel(bench.submit_learned(number)), number);
    }
    bench.until_reran(1);
    bench.scheduler.end_shadows();
    assert_eq!(pixel(bench.submit_learned(4.0)), 4.0, "what is accepted is answered all the same");
    bench.release_shadows();
    assert!(bench.scheduler.finish(Duration::from_secs(60)), "the workers end");
    assert_eq!((bench.reran().len(), bench.shadows("runs")), (1, 0.0), "the side that ran is the last");
}

#[test]
fn a_shadow_that_waits_keeps_no_model() {
    let mut bench = Bench::with_shadows(2, 8, 1.0);
    bench.release();
    for number in [1.0, 2.0, 3.0] {
        assert_eq!(pixel(bench.submit_learned(number)), number);
    }
    bench.until_reran(1);
    while Arc::strong_count(&bench.model) > 2 {
        std::thread::yield_now(); // the worker that answered lets it go
    }
    let model = Arc::downgrade(&bench.model);
    drop(bench);
    while model.strong_count() > 0 {
        std::thread::yield_now();
    }
}
