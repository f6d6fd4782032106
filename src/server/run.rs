//! Start, serve, and stop without losing what was accepted.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum_server::Handle;
use futures_util::Stream;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

use super::bodies::Bodies;
use super::classify::{Limits, Service};
use super::connection::{Acceptor, LINGER};
use super::decoders::Decoders;
use super::http::Origins;
use super::keys::Keys;
use super::pulse::Pulse;
use super::readiness::Readiness;
use super::{admin, again, grpc, http};
use crate::engine::{Paths, Runtime, RuntimeError, Target};
use crate::registry::{LoadOptions, ModelsLimits, Registry, RegistryError};
use crate::scheduler::{Admission, Bounds, Brownout, Scheduler};
use crate::telemetry::{Metrics, Otlp, Tracer};

/// What to serve and within which bounds.
#[derive(Debug, Clone)]
pub struct Settings {
    pub http_addr: SocketAddr,
    pub grpc_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    pub models: PathBuf,
    pub default_model: Option<String>,
    pub onnxruntime: Option<PathBuf>,
    pub target: Target,
    pub workers: usize,
    pub max_batch: usize,
    pub max_queue: usize,
    /// Images of one connection that may wait.
    pub max_queue_per_connection: usize,
    /// Connections to each of the public listeners.
    pub max_connections: usize,
    /// Time for a client to take each part of an answer.
    pub write_timeout: Duration,
    /// Of the threads that serve, for who starts them.
    pub serving_nice: u8,
    /// What each model may take of it, and of what else they share.
    pub models_limits: ModelsLimits,
    /// Share of the images that run by the full net too, after their answers.
    pub shadow_rate: f64,
    /// The highest keep threshold under brownout, where there is any.
    pub brownout: Option<f64>,
    /// Waiting for a worker that is too much.
    pub brownout_wait: Duration,
    /// Memory for compiled paths, in bytes.
    pub path_cache: u64,
    /// Time at the start in which frequent paths are compiled before the server is ready.
    pub warm_up: Duration,
    /// Where the masks seen are kept from run to run.
    pub profiles: Option<PathBuf>,
    pub limits: Limits,
    pub drain: Duration,
    /// Time that a worker may be at one batch before the server says that it is to be started again; `None` for ever.
    pub stuck: Option<Duration>,
    /// Who may use the public listeners.
    pub keys: Keys,
    /// Web pages that may use the HTTP listener.
    pub origins: Origins,
    /// Where traces go, if they go anywhere.
    pub otlp: Option<Otlp>,
}

/// Why the server could not start, or stopped badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{flag}: cannot listen on {address}: {reason}")]
    Listen { flag: &'static str, address: SocketAddr, reason: std::io::Error },
    #[error("--profile-dir: {}: cannot be written to: {reason}", dir.display())]
    Profiles { dir: PathBuf, reason: std::io::Error },
    #[error("--otlp-endpoint: {0}")]
    Tracing(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Models(Vec<RegistryError>),
    #[error("the operating system refuses what the server needs")]
    System(#[from] std::io::Error),
    #[error("stopped with {0} requests unanswered: the time to drain was over")]
    Unanswered(i64),
    #[error("stopped with a worker still running")]
    Running,
    #[error("stopped since a worker ended in a panic")]
    Lost,
}

/// Time in which a client has to send the head of a connection's first request, its start included.
const HEAD: Duration = Duration::from_secs(15);

/// Time in which a client has to send the next one's: for as long may a connection of HTTP/1.1 be idle. Longer than the
/// minute for which proxies keep theirs, who would send a request into one that is just being closed.
const IDLE: Duration = Duration::from_secs(75);

/// What a connection may hold beside bodies that were read: the help of `--max-connections` tells their sum.
mod cost {
    pub(super) const HTTP1_BYTES: usize = 400 << 10;
    /// Of all its streams.
    pub(super) const HTTP2_UNREAD_BYTES: u32 = 1 << 20;
    pub(super) const HTTP2_STREAMS: u32 = 100;
    /// Streams that end before their body was read, over a connection's life: requests that are refused, which an honest
    /// client may have many of. A client that provokes them has no more at work at once for that.
    pub(super) const HTTP2_REFUSED: usize = 1 << 20;
    /// Of each stream.
    pub(super) const HTTP2_HEAD_BYTES: u32 = 16 << 10;
}

/// Connections to the admin listener: its own, so that applications do not keep operators out.
const OPERATORS: usize = 64;

/// Time for the last answers to get out once they are made, at least, and for connections to be closed by both sides.
const LAST_BYTES: Duration = LINGER.saturating_mul(2);

/// Time for workers that have nothing to do to end, and for models that nobody uses, at least.
const MOMENT: Duration = Duration::from_millis(500);

/// Time for the last spans to be exported.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Serves until `stop` resolves, and reads models and API keys anew each time that `again` says so; then drains: not ready any more, new requests refused with 503, accepted ones answered
/// for at most `settings.drain`, metrics shown to the end.
///
/// # Errors
/// An address that cannot be listened on, ONNX Runtime or models that cannot be loaded, a worker that ended in a panic, or
/// accepted requests that were still unanswered, or a worker still running, when the time to drain was over.
pub async fn serve(
    settings: Settings,
    stop: impl Future<Output = ()>,
    again: impl Stream<Item = ()> + Send + 'static,
) -> Result<(), ServeError> {
    // Both ports are taken before anything slow, so that a taken one is said at once. The public one accepts no
    // connection until there is a model to serve.
    let public = Port::take("--http-addr", settings.http_addr)?;
    let services = Port::take("--grpc-addr", settings.grpc_addr)?;
    let operators = Port::take("--admin-addr", settings.admin_addr)?.listen()?;
    if let Some(dir) = &settings.profiles {
        let writable = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
        writable.map_err(|reason| ServeError::Profiles { dir: dir.clone(), reason })?;
    }
    let tracer = settings.otlp.as_ref().map(Tracer::start).transpose()?;
    let mut stop = pin!(stop);

    let runtime = Runtime::load(settings.onnxruntime.as_deref())?;
    let metrics = Arc::new(Metrics::new(&settings.target.provider.to_string(), runtime.version()));
    let readiness = Arc::new(Readiness::default());
    // Filled once there are models.
    let repository = Arc::new(OnceLock::new());
    let routes = admin::router(
        Arc::clone(&metrics),
        Arc::clone(&readiness),
        Arc::clone(&repository),
        settings.stuck,
        Pulse::start(),
    );
    let acceptor = |name: &str, most: usize| Acceptor::new(most, settings.write_timeout, metrics.listener(name));
    let apart = Apart::start()?;
    let admin = apart.within(|| Listener::start(operators, acceptor("admin", OPERATORS), routes))?;
    metrics.queue_limit.set(settings.max_queue.try_into().unwrap_or(i64::MAX));
    tracing::info!(address = %admin.address, "admin listener: /metrics, /livez, /readyz, /v2/repository");

    let paths = Arc::new(Paths::start(settings.path_cache)?);
    let give_up = Arc::new(AtomicBool::new(false));
    let mut registry = tokio::task::spawn_blocking({
        let (settings, metrics, paths) = (settings.clone(), Arc::clone(&metrics), Arc::clone(&paths));
        let options = LoadOptions {
            target: settings.target,
            workers: settings.workers,
            max_batch: settings.max_batch,
            paths,
            warm_up: settings.warm_up,
            profiles: settings.profiles,
            brownout: settings.brownout,
            limits: settings.models_limits,
            give_up: Arc::clone(&give_up),
        };
        move || Registry::load(&settings.models, settings.default_model.as_deref(), runtime, &options, &metrics)
    });
    let registry = tokio::select! {
        registry = &mut registry => registry.map_err(std::io::Error::other)?.map_err(ServeError::Models)?,
        () = &mut stop => {
            tracing::info!("stopping while models are loaded");
            give_up.store(true, Ordering::Relaxed);
            paths.stop();
            // Waited for: ONNX Runtime must not be used while the process ends.
            drop(registry.await);
            return Ok(());
        }
    };
    let registry = Arc::clone(repository.get_or_init(|| Arc::new(registry)));
    let decoders = std::thread::available_parallelism().map_or(1, NonZero::get);
    let brownout = settings.brownout.map(|most| Brownout::new(most, settings.brownout_wait, metrics.brownout_level()));
    let service = Arc::new(Service {
        registry: Arc::clone(&registry),
        readiness: Arc::clone(&readiness),
        scheduler: Scheduler::start(
            settings.workers,
            settings.max_batch,
            settings.shadow_rate,
            brownout,
            &metrics.workers,
        )?,
        admission: Admission::new(
            Bounds {
                images: settings.max_queue,
                of_flow: settings.max_queue_per_connection,
                workers: settings.workers,
                decoders,
            },
            metrics.queue_depth.clone(),
        ),
        metrics: Arc::clone(&metrics),
        limits: settings.limits,
        tracer: tracer.clone(),
        decoders: Decoders::new(decoders, settings.limits.pixels, Arc::clone(&metrics)),
        bodies: Bodies::new(settings.limits.bodies, settings.limits.body, Arc::clone(&metrics)),
    });
    let http = Listener::start(
        public.listen()?,
        acceptor("http", settings.max_connections),
        http::router(Arc::clone(&service), settings.keys.clone(), settings.origins.clone()),
    )?;
    let (calls, health) = grpc::router(Arc::clone(&service), settings.keys.clone());
    let services = services.listen()?;
    let upkeep = tokio::spawn({
        let service = Arc::clone(&service);
        async move { tokio::join!(service.bodies.trim(), service.scheduler.watch()) }
    });
    let models = registry.any();
    readiness.ready({
        let models = models.clone();
        move || *models.borrow()
    });
    let health = health.follow(models).await;
    let mut grpc = Listener::start(services, acceptor("grpc", settings.max_connections), calls)?;
    tracing::info!(
        address = %http.address,
        grpc = %grpc.address,
        provider = %settings.target.provider,
        onnxruntime = runtime.version(),
        workers = settings.workers,
        path_cache_bytes = settings.path_cache,
        api_keys = settings.keys.count(),
        "ready"
    );

    let reading = tokio::spawn(again::read_anew(again, Arc::clone(&registry), settings.keys.clone()));
    let lost = tokio::select! {
        () = &mut stop => false,
        () = service.scheduler.lost() => {
            tracing::error!("a worker ended in a panic: the server stops");
            true
        }
    };
    readiness.stopping();
    service.admission.stop();
    service.scheduler.end_shadows();
    upkeep.abort();
    reading.abort();
    let health = health.stopping().await;
    // Clients of gRPC keep their connections: they are told to make new ones, which a load balancer sends elsewhere. Over
    // HTTP/1.1 an answer says so; a connection that is closed unasked may have a request under way.
    if let Err(error) = grpc.turn_over() {
        tracing::warn!(%error, "gRPC connections are not told to end: there is no listener for those to come");
    }
    give_up.store(true, Ordering::Relaxed);
    let started = Instant::now();
    tracing::info!(requests = metrics.inflight.get(), "stopping: accepted requests are answered, new ones refused");
    while metrics.inflight.get() > 0 && started.elapsed() < settings.drain {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One for all that follows. Connections may take all of it: workers and models have a moment to end all the same.
    let until = Instant::now() + settings.drain.saturating_sub(started.elapsed()).max(LAST_BYTES);
    let left = || until.saturating_duration_since(Instant::now()).max(MOMENT);
    // Counted before connections are cut off: that drops what is still being answered on them.
    let unanswered = metrics.inflight.get();
    health.end().await;
    tokio::join!(http.stop(until), grpc.stop(until));
    let ended = service.scheduler.finish(left());
    paths.stop();
    let ended = registry.close(left()).await && ended;
    registry.save_profiles();
    let spans = async {
        if let Some(tracer) = tracer {
            drop(tokio::task::spawn_blocking(move || tracer.stop(LAST_SPANS)).await);
        }
    };
    tokio::join!(spans, admin.stop(Instant::now() + LAST_BYTES));
    drop(apart);
    if lost {
        return Err(ServeError::Lost);
    }
    if unanswered > 0 {
        return Err(ServeError::Unanswered(unanswered));
    }
    if !ended {
        return Err(ServeError::Running);
    }
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "stopped");
    Ok(())
}

/// A thread for the admin listener, so that operators are answered however much the threads that serve have to do.
struct Apart(Option<tokio::runtime::Runtime>);

impl Apart {
    fn start() -> std::io::Result<Self> {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(1).thread_name("admin").enable_all().build().map(Some).map(Self)
    }

    /// What `start` spawns runs there.
    fn within<T>(&self, start: impl FnOnce() -> T) -> T {
        let _inside = self.0.as_ref().map(tokio::runtime::Runtime::enter);
        start()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // Without waiting, which an asynchronous function may not.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port that is taken and not listened on yet.
struct Port {
    flag: &'static str,
    address: SocketAddr,
    socket: TcpSocket,
}

impl Port {
    fn take(flag: &'static str, address: SocketAddr) -> Result<Self, ServeError> {
        let bind = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // A server that starts again takes the port of connections that are still closing.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        };
        let socket = bind().map_err(|reason| ServeError::Listen { flag, address, reason })?;
        Ok(Self { flag, address, socket })
    }

    fn listen(self) -> Result<TcpListener, ServeError> {
        const BACKLOG: u32 = 1024;
        let Self { flag, address, socket } = self;
        let listener = socket.listen(BACKLOG).and_then(tokio::net::TcpListener::into_std);
        listener.map_err(|reason| ServeError::Listen { flag, address, reason })
    }
}

/// A listener being served.
struct Listener {
    address: SocketAddr,
    socket: TcpListener,
    acceptor: Acceptor,
    router: Router,
    /// Each with the connections that it took; the last one takes more.
    served: Vec<(Handle<SocketAddr>, JoinHandle<std::io::Result<()>>)>,
}

impl Listener {
    fn start(socket: TcpListener, acceptor: Acceptor, router: Router) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        let mut listener = Self { address, socket, acceptor, router, served: Vec::new() };
        listener.serve()?;
        Ok(listener)
    }

    fn serve(&mut self) -> std::io::Result<()> {
        let (socket, router) = (self.socket.try_clone()?, self.router.clone());
        let handle = Handle::new();
        let mut server = axum_server::from_tcp(socket)?
            .acceptor(self.acceptor.clone())
            .handle(handle.clone())
            .first_request_timeout(HEAD)
            .accept_error_handler(tell(self.address));
        let builder = server.http_builder();
        builder
            .http1()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(cost::HTTP1_BYTES);
        builder
            .http2()
            .timer(hyper_util::rt::TokioTimer::new())
            .keep_alive_interval(HEAD)
            .keep_alive_timeout(HEAD)
            .initial_connection_window_size(cost::HTTP2_UNREAD_BYTES)
            .max_concurrent_streams(cost::HTTP2_STREAMS)
            .max_local_error_reset_streams(cost::HTTP2_REFUSED)
            .max_header_list_size(cost::HTTP2_HEAD_BYTES);
        self.served.push((handle, tokio::spawn(server.serve(router.into_make_service()))));
        Ok(())
    }

    /// Has the connections that are open end once what was asked on them is answered, and goes on taking others. Over
    /// HTTP/2 their clients are told (GOAWAY), so that no request is lost on the way; over HTTP/1.1 they may be.
    fn turn_over(&mut self) -> std::io::Result<()> {
        let before = self.served.len();
        self.serve()?;
        self.served[..before].iter().for_each(|(handle, _)| handle.graceful_shutdown(None));
        Ok(())
    }

    /// Takes no more connections and gives those that are open until `until` to finish.
    async fn stop(self, until: Instant) {
        drop(self.socket);
        self.served.iter().for_each(|(handle, _)| handle.graceful_shutdown(None));
        for (handle, mut task) in self.served {
            let ended = match tokio::time::timeout_at(until.into(), &mut task).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::warn!(connections = handle.connection_count(), "connections are cut off");
                    handle.shutdown();
                    task.await
                }
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a listener failed"),
                Err(error) => tracing::error!(%error, "a listener's task failed"),
            }
        }
    }
}

/// Logs that a listener cannot take connections, as where no file may be opened any more; it tries again many times a
/// second, which is not all worth a line.
fn tell(address: SocketAddr) -> impl Fn(Option<&SocketAddr>, &std::io::Error) + Send + Sync + 'static {
    const PAUSE: Duration = Duration::from_secs(10);
    let last = Mutex::new(None::<Instant>);
    move |client, error| {
        if client.is_some() {
            return; // that one's own trouble
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= PAUSE) {
            *last = Some(Instant::now());
            tracing::warn!(%address, %error, "no connection can be taken; it is tried again");
        }
    }
}
