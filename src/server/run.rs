//! Start, serve, and stop without losing what was accepted.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

use super::classify::{Limits, Service};
use super::http::Origins;
use super::keys::Keys;
use super::readiness::Readiness;
use super::{admin, grpc, http};
use crate::engine::{Paths, Provider, Runtime, RuntimeError};
use crate::registry::{LoadOptions, Registry, RegistryError};
use crate::scheduler::{Admission, Brownout, Scheduler};
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
    pub provider: Provider,
    pub workers: usize,
    pub max_batch: usize,
    pub max_queue: usize,
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
    #[error("{0}")]
    System(#[from] std::io::Error),
    #[error("stopped with {0} requests unanswered: the time to drain was over")]
    Unanswered(i64),
    #[error("stopped with a worker still running")]
    Running,
}

/// Time in which a client has to send a request's head, the first one's start included.
const HEAD: Duration = Duration::from_secs(15);

/// Time for the last answers to get out once they are made.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Time for the last spans to be exported.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Serves until `stop` resolves, then drains: not ready any more, new requests refused with 503, accepted ones answered
/// for at most `settings.drain`, metrics shown to the end.
///
/// # Errors
/// An address that cannot be listened on, ONNX Runtime or models that cannot be loaded, or accepted requests that were
/// still unanswered, or a worker still running, when the time to drain was over.
pub async fn serve(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
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
    let metrics = Arc::new(Metrics::new(&settings.provider.to_string(), runtime.version()));
    let readiness = Arc::new(Readiness::default());
    // Filled once there are models.
    let repository = Arc::new(OnceLock::new());
    let routes = admin::router(Arc::clone(&metrics), Arc::clone(&readiness), Arc::clone(&repository));
    let admin = Listener::start(operators, routes)?;
    tracing::info!(address = %admin.address, "admin listener: /metrics, /livez, /readyz, /v2/repository");

    let paths = Arc::new(Paths::start(settings.path_cache)?);
    let give_up = Arc::new(AtomicBool::new(false));
    let mut registry = tokio::task::spawn_blocking({
        let (settings, metrics, paths) = (settings.clone(), Arc::clone(&metrics), Arc::clone(&paths));
        let options = LoadOptions {
            provider: settings.provider,
            workers: settings.workers,
            paths,
            warm_up: settings.warm_up,
            profiles: settings.profiles,
            brownout: settings.brownout,
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
    let brownout = settings.brownout.map(|most| Brownout::new(most, settings.brownout_wait, metrics.brownout_level()));
    let service = Arc::new(Service::new(
        Arc::clone(&registry),
        Scheduler::start(settings.workers, settings.max_batch, settings.shadow_rate, brownout)?,
        Admission::new(settings.max_queue, metrics.queue_depth.clone()),
        Arc::clone(&metrics),
        settings.limits,
        tracer.clone(),
        std::thread::available_parallelism().map_or(1, NonZero::get),
    ));
    let http = Listener::start(
        public.listen()?,
        http::router(Arc::clone(&service), settings.keys.clone(), settings.origins.clone()),
    )?;
    let (calls, health) = grpc::router(Arc::clone(&service), settings.keys.clone()).await;
    let grpc = Listener::start(services.listen()?, calls)?;
    let upkeep = tokio::spawn({
        let service = Arc::clone(&service);
        async move { tokio::join!(service.trim(), service.scheduler.watch()) }
    });
    readiness.ready();
    tracing::info!(
        address = %http.address,
        grpc = %grpc.address,
        provider = %settings.provider,
        onnxruntime = runtime.version(),
        workers = settings.workers,
        path_cache_bytes = settings.path_cache,
        api_keys = settings.keys.count(),
        "ready"
    );

    stop.await;
    readiness.stopping();
    service.admission.stop();
    service.scheduler.end_shadows();
    upkeep.abort();
    grpc::stopping(&health).await;
    give_up.store(true, Ordering::Relaxed);
    let started = Instant::now();
    tracing::info!(requests = metrics.inflight.get(), "stopping: accepted requests are answered, new ones refused");
    while metrics.inflight.get() > 0 && started.elapsed() < settings.drain {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Counted before the connections are closed: that drops what is still being answered on them.
    let unanswered = metrics.inflight.get();
    tokio::join!(http.stop(LAST_BYTES), grpc.stop(LAST_BYTES));
    let left = || settings.drain.saturating_sub(started.elapsed()).max(LAST_BYTES);
    let ended = service.scheduler.finish(left());
    paths.stop();
    let ended = registry.close(left()).await && ended;
    registry.save_profiles();
    if let Some(tracer) = tracer {
        drop(tokio::task::spawn_blocking(move || tracer.stop(LAST_SPANS)).await);
    }
    admin.stop(LAST_BYTES).await;
    if unanswered > 0 {
        return Err(ServeError::Unanswered(unanswered));
    }
    if !ended {
        return Err(ServeError::Running);
    }
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "stopped");
    Ok(())
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
    handle: Handle<SocketAddr>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Listener {
    fn start(listener: TcpListener, router: Router) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let handle = Handle::new();
        // Without TCP_NODELAY small answers wait for 40 ms.
        let mut server = axum_server::from_tcp(listener)?
            .acceptor(NoDelayAcceptor::new())
            .handle(handle.clone())
            .first_request_timeout(HEAD);
        let builder = server.http_builder();
        builder.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEAD);
        builder.http2().timer(hyper_util::rt::TokioTimer::new()).keep_alive_interval(HEAD).keep_alive_timeout(HEAD);
        let task = tokio::spawn(server.serve(router.into_make_service()));
        Ok(Self { address, handle, task })
    }

    /// Takes no more connections and gives those that are open `time` to finish.
    async fn stop(self, time: Duration) {
        self.handle.graceful_shutdown(Some(time));
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a listener failed"),
            Err(error) => tracing::error!(%error, "a listener's task failed"),
        }
    }
}
