//! `blockdrop serve`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blockdrop::registry::{MODEL_LIMIT, ModelLimit, ModelsLimits};
use blockdrop::server::http::{MOST_IMAGES, Origins};
use blockdrop::server::{KEYS_VARIABLE, Keys, Limits, ServeError, Settings, serve};
use clap::Args;
use futures_util::{Stream, stream};
use signal_hook::consts::SIGXFSZ;
use tokio::signal::unix::{SignalKind, signal};

use super::checked::{Checked, Problems};
use super::connections::Connections;
use super::options::RunOn;
use super::traces::Traces;
use super::{Failure, Usage, room};

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Options {
    /// Address of the HTTP listener.
    #[arg(long, env = "BLOCKDROP_HTTP_ADDR", default_value = "0.0.0.0:8080")]
    http_addr: Checked<SocketAddr>,

    /// Address of the gRPC listener.
    #[arg(long, env = "BLOCKDROP_GRPC_ADDR", default_value = "0.0.0.0:9000")]
    grpc_addr: Checked<SocketAddr>,

    /// Address of the admin listener: /metrics, /livez, /readyz, and /v2/repository to load and unload models. Keep it from
    /// applications.
    #[arg(long, env = "BLOCKDROP_ADMIN_ADDR", default_value = "127.0.0.1:8081")]
    admin_addr: Checked<SocketAddr>,

    /// File of the API keys that are taken as Authorization: Bearer KEY, one a line; # begins a comment. More may be in
    /// BLOCKDROP_API_KEYS, separated by commas [default: no key is needed].
    #[arg(long, env = "BLOCKDROP_API_KEYS_FILE")]
    api_keys_file: Option<PathBuf>,

    /// Origin of web pages that may use the HTTP listener from a browser, such as https://example.org; several times or
    /// separated by commas; * for all of them [default: none].
    #[arg(long, env = "BLOCKDROP_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,

    /// Directory of models, <name>/<version>/bundle.json. SIGHUP reads it anew, and the file of API keys.
    #[arg(long, env = "BLOCKDROP_MODELS", default_value = "models")]
    models: PathBuf,

    /// Model of requests that name none [default: the one that the file `default` in the directory of models names, else
    /// the only one, if there is only one].
    #[arg(long, env = "BLOCKDROP_DEFAULT_MODEL")]
    default_model: Option<String>,

    #[command(flatten)]
    run_on: RunOn,

    /// Images that a worker runs at a time, at most.
    #[arg(long, env = "BLOCKDROP_MAX_BATCH", default_value = "8")]
    max_batch: Checked<usize>,

    /// Images that may wait; beyond it requests are refused with 503 at once.
    #[arg(long, env = "BLOCKDROP_MAX_QUEUE", default_value = "256")]
    max_queue: Checked<usize>,

    #[command(flatten)]
    connections: Connections,

    /// How much nicer the threads that serve and decode are than the workers, from 0 to 19: with more requests than there are
    /// cores for, running what was accepted then goes before refusing the rest. On Linux.
    #[arg(long, env = "BLOCKDROP_SERVING_NICE", default_value = "0")]
    serving_nice: Checked<u8>,

    /// Images of one model that may wait, all its versions together; beyond it requests for that model are refused with 503
    /// at once [default: --max-queue].
    #[arg(long, env = "BLOCKDROP_MAX_QUEUE_PER_MODEL")]
    max_queue_per_model: Option<Checked<usize>>,

    /// Limits of one model, such as NAME:queue=64,batch=4,timeout=2s: images of it that may wait (in place of
    /// --max-queue-per-model), that a worker runs at a time (below --max-batch), and time for a request (below
    /// --request-timeout). For several models several times, or separated by spaces.
    #[arg(long, env = "BLOCKDROP_MODEL_LIMIT", value_name = "NAME:LIMITS", value_delimiter = ' ')]
    model_limit: Vec<Checked<ModelLimit>>,

    /// Share of the images that the policy chooses a path for, from 0 to 1, that run again after their answers: alone, by
    /// policy and path and by the full net, to measure what skipping saves by the clock (blockdrop_shadow_* in /metrics). A
    /// worker does so only when nothing waits, one at a time; a request that finds no other worker idle waits for
    /// one such run of one image. 0 for none.
    #[arg(long, env = "BLOCKDROP_SHADOW_RATE", default_value = "0.01")]
    shadow_rate: Checked<f64>,

    /// Highest keep threshold under brownout, above each model's own and below 1. While images wait too long
    /// (--brownout-wait), thresholds rise towards it in steps, so that fewer blocks run and answers are less accurate; they
    /// fall again, more slowly, once images hardly wait. Requests that name a path, a threshold or a budget get just that.
    /// Answers and blockdrop_brownout_* in /metrics tell; what accuracy such a threshold leaves, blockdrop evaluate does
    /// [default: thresholds stay as they are].
    #[arg(long, env = "BLOCKDROP_BROWNOUT", value_name = "MAX")]
    brownout: Option<Checked<f64>>,

    /// Waiting for a worker that is too much: thresholds rise a step for each 10 times this that images wait longer, and
    /// fall a step for each 60 times this that they wait at most half of it.
    #[arg(long, env = "BLOCKDROP_BROWNOUT_WAIT", default_value = "50ms")]
    brownout_wait: Checked<humantime::Duration>,

    /// Time at the start in which frequent paths are compiled before the server is ready; the rest follow after it.
    #[arg(long, env = "BLOCKDROP_WARM_UP", default_value = "500ms")]
    warm_up: Checked<humantime::Duration>,

    /// Directory that keeps, from run to run, which masks are frequent: written at the end, for one server alone
    /// [default: only what the bundles say].
    #[arg(long, env = "BLOCKDROP_PROFILE_DIR")]
    profile_dir: Option<PathBuf>,

    /// Images in one request, at most.
    #[arg(long, env = "BLOCKDROP_MAX_IMAGES", default_value = "64")]
    max_images: Checked<usize>,

    /// Bytes of a request's body, at most.
    #[arg(long, env = "BLOCKDROP_MAX_BODY_BYTES", default_value = "16777216")]
    max_body_bytes: Checked<usize>,

    /// Bytes of all bodies in memory at once, at most; beyond it requests are refused with 503.
    #[arg(long, env = "BLOCKDROP_MAX_BODIES_BYTES", default_value = "268435456")]
    max_bodies_bytes: Checked<usize>,

    /// Pixels of an image, at most; checked before anything is allocated for them.
    #[arg(long, env = "BLOCKDROP_MAX_PIXELS", default_value = "64000000")]
    max_pixels: Checked<u64>,

    /// Time for a request, from its head to its answer; beyond it 504 (or 408 while its body arrives).
    #[arg(long, env = "BLOCKDROP_REQUEST_TIMEOUT", default_value = "10s")]
    request_timeout: Checked<humantime::Duration>,

    /// Time for accepted requests to be answered after SIGTERM or SIGINT. The process ends within 5 s after that.
    #[arg(long, env = "BLOCKDROP_DRAIN_TIMEOUT", default_value = "25s")]
    drain_timeout: Checked<humantime::Duration>,

    /// Time that a worker may be at one batch before it is taken for stuck, and threads that serve may come to nothing new:
    /// /livez answers 503 then, for an orchestrator to start the server again. However long the queue is, it counts for
    /// nothing here. 0s for never [default: six times --request-timeout, at least 1min].
    #[arg(long, env = "BLOCKDROP_STUCK_AFTER")]
    stuck_after: Option<Checked<humantime::Duration>>,

    #[command(flatten)]
    traces: Traces,
}

pub(crate) fn run(options: Options, problems: Problems) -> Result<(), Failure> {
    let settings = options.check(problems)?;
    // A file that may not grow is an error of that file, and not the end.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    // Of threads: for connections and for decoding as many each as there are cores, the workers, one for operators, and some
    // to load. Of files: what a server without a client has open, about twice.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    room::for_threads(2 * cores + settings.workers + 5)?;
    room::for_files(40)?;
    let runtime = serving(settings.serving_nice).context("the operating system refuses what the server needs")?;
    let result = runtime.block_on(async {
        let (stop, again) = (stop_signal()?, hangups()?);
        serve(settings, stop, again).await
    });
    if let Err(error @ (ServeError::Unanswered(_) | ServeError::Running | ServeError::Lost)) = &result {
        super::report(&[error.to_string()], 1);
        exit_at_once(1);
    }
    // A decode that never returns must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result?)
}

/// The threads that serve. The workers are started by this thread, and stay as it is.
#[cfg_attr(not(target_os = "linux"), allow(unused_variables, reason = "elsewhere a thread has no niceness of its own"))]
fn serving(nice: u8) -> std::io::Result<tokio::runtime::Runtime> {
    // Looked for after so many turns of tasks: connections that always have more to read take long turns, and a new one, such as
    // a probe's, needs several looks.
    const EVENTS: u32 = 4;
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.event_interval(EVENTS).global_queue_interval(EVENTS);
    #[cfg(target_os = "linux")]
    if nice > 0 {
        use rustix::process::{getpriority_process, setpriority_process};
        // On Linux each thread has a niceness of its own. One that cannot be had leaves it as it is.
        let nice = getpriority_process(None)? + i32::from(nice);
        threads.on_thread_start(move || {
            let _ = setpriority_process(None, nice.min(19));
        });
    }
    threads.enable_all().build()
}

/// Resolves at SIGTERM or SIGINT. A second one ends the process at once.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let mut either = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        either().await;
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::warn!("stopped at once by a second signal");
            exit_at_once(130);
        });
    })
}

/// An item for each SIGHUP; for several that come while one is worked on, one.
fn hangups() -> std::io::Result<impl Stream<Item = ()> + Send + 'static> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(stream::poll_fn(move |context| hangup.poll_recv(context)))
}

/// Ends the process without its exit handlers: they would take ONNX Runtime away from workers that still run.
fn exit_at_once(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

/// Whether a model's own limit is more than the server's.
fn above<T: PartialOrd>(own: Option<T>, most: Option<T>) -> bool {
    own.zip(most).is_some_and(|(own, most)| own > most)
}

impl Options {
    /// The settings, or everything that is wrong with the options.
    fn check(self, mut problems: Problems) -> Result<Settings, Usage> {
        const ADDRESS: &str = "an IP address and a port such as 0.0.0.0:8080";
        let some = |value: &usize| *value > 0;
        let http_addr = problems.take("--http-addr", ADDRESS, self.http_addr, |_| true);
        let grpc_addr = problems.take("--grpc-addr", ADDRESS, self.grpc_addr, |_| true);
        let admin_addr = problems.take("--admin-addr", ADDRESS, self.admin_addr, |_| true);
        let listeners = [("--http-addr", http_addr), ("--grpc-addr", grpc_addr), ("--admin-addr", admin_addr)];
        for (at, (flag, address)) in listeners.iter().enumerate() {
            let taken = listeners[..at].iter().find(|(_, other)| other == address);
            if let (Some(address), Some((other, _))) = (address, taken)
                && address.port() != 0
            {
                problems.note(&format!("{flag}: found the address of {other}, expected one of its own"));
            }
        }
        let listed = std::env::var_os(KEYS_VARIABLE);
        let forgotten = listed.as_ref().is_some_and(|listed| listed.is_empty()) && self.api_keys_file.is_none();
        if forgotten {
            tracing::warn!("{KEYS_VARIABLE} is set to nothing: no key is asked for");
        }
        let keys = Keys::read(self.api_keys_file.as_deref(), listed.as_ref().map(|listed| listed.as_bytes()));
        let keys = keys.map_err(|wrong| wrong.iter().for_each(|wrong| problems.note(&format!("API keys: {wrong}"))));
        let origins = Origins::read(&self.cors_origin);
        let origins =
            origins.map_err(|wrong| wrong.iter().for_each(|wrong| problems.note(&format!("--cors-origin: {wrong}"))));
        let running = self.run_on.check(&mut problems);
        let max_batch =
            problems.take("--max-batch", "1 to 512 images", self.max_batch, |images| (1..=512).contains(images));
        let max_queue = problems
            .take("--max-queue", "1 to 1000000 images", self.max_queue, |images| (1..=1_000_000).contains(images));
        let per_model = match self.max_queue_per_model {
            None => Some(None),
            Some(images) => problems
                .take("--max-queue-per-model", "1 to --max-queue images", images, |images| {
                    *images > 0 && max_queue.is_none_or(|most| *images <= most)
                })
                .map(Some),
        };
        let mut named = BTreeMap::new();
        for limit in self.model_limit {
            let Some(ModelLimit { name, limits }) = problems.take("--model-limit", MODEL_LIMIT, limit, |_| true) else {
                continue;
            };
            if named.contains_key(&name) {
                problems.note(&format!("--model-limit: found model '{name}' twice, expected each model once"));
            }
            named.insert(name, limits);
        }
        let connections = self.connections.check(max_queue, &mut problems);
        let nice = problems.take("--serving-nice", "0 to 19", self.serving_nice, |nice| *nice <= 19);
        let shadow_rate =
            problems.take("--shadow-rate", "a share from 0 to 1", self.shadow_rate, |rate| (0.0..=1.0).contains(rate));
        let brownout = self.brownout.map(|most| {
            let expected = "a threshold above each model's own and below 1 such as 0.6";
            problems.take("--brownout", expected, most, |most| *most > 0.0 && *most < 1.0)
        });
        let brownout_wait =
            problems.take("--brownout-wait", "a time from 1ms to 1min such as 50ms", self.brownout_wait, |wait| {
                (Duration::from_millis(1)..=Duration::from_secs(60)).contains(&**wait)
            });
        let max_images =
            problems.take("--max-images", &format!("1 to {MOST_IMAGES} images"), self.max_images, |images| {
                (1..=MOST_IMAGES).contains(images)
            });
        let body = problems.take("--max-body-bytes", "a number of bytes from 1", self.max_body_bytes, some);
        let bodies =
            problems.take("--max-bodies-bytes", "at least --max-body-bytes", self.max_bodies_bytes, |bodies| {
                body.is_none_or(|body| *bodies >= body.max(1024))
            });
        let pixels = problems.take("--max-pixels", "a number of pixels from 1", self.max_pixels, |pixels| *pixels > 0);
        const TIME: &str = "a time from 1ms to 1day such as 10s";
        let fits =
            |time: &humantime::Duration| (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&**time);
        let time = problems.take("--request-timeout", TIME, self.request_timeout, fits);
        for (name, limits) in &named {
            let own = [
                ("queue", "--max-queue", above(limits.queue, max_queue)),
                ("batch", "--max-batch", above(limits.batch, max_batch)),
                ("timeout", "--request-timeout", above(limits.time, time.map(|time| *time))),
            ];
            for (limit, flag, _) in own.into_iter().filter(|(_, _, above)| *above) {
                tracing::warn!(model = name, "--model-limit: its {limit} is above {flag}, which holds for it too");
            }
        }
        let at_most_a_day = |time: &humantime::Duration| **time <= Duration::from_secs(86_400);
        let warm_up = problems.take("--warm-up", "a time from 0s to 1day such as 500ms", self.warm_up, at_most_a_day);
        let drain = problems.take("--drain-timeout", TIME, self.drain_timeout, fits);
        let stuck = match self.stuck_after {
            None => time.map(|time| 6 * (*time).max(Duration::from_secs(10))),
            Some(after) => problems
                .take("--stuck-after", "a time from 0s to 1day such as 5min", after, at_most_a_day)
                .map(|after| *after),
        };
        let otlp = self.traces.check(&mut problems);

        let settings = || {
            let (running, connections) = (running?, connections?);
            Some(Settings {
                http_addr: http_addr?,
                grpc_addr: grpc_addr?,
                admin_addr: admin_addr?,
                models: self.models,
                default_model: self.default_model,
                onnxruntime: running.onnxruntime,
                target: running.target,
                workers: running.workers,
                max_batch: max_batch?,
                max_queue: max_queue?,
                max_queue_per_connection: connections.queue_each,
                max_connections: connections.connections,
                write_timeout: connections.write_timeout,
                serving_nice: nice?,
                models_limits: ModelsLimits { named, queue: per_model? },
                shadow_rate: shadow_rate?,
                brownout: brownout.flatten(),
                brownout_wait: *brownout_wait?,
                path_cache: running.path_cache,
                warm_up: *warm_up?,
                profiles: self.profile_dir,
                limits: Limits { body: body?, bodies: bodies?, pixels: pixels?, images: max_images?, time: *time? },
                drain: *drain?,
                stuck: Some(stuck?).filter(|after| !after.is_zero()),
                keys: keys.ok()?,
                origins: origins.ok()?,
                otlp,
            })
        };
        let settings = settings();
        problems.or(settings)
    }
}
