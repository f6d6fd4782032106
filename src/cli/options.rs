//! Options that several subcommands share.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockdrop::bundle::Bundle;
use blockdrop::engine::{Engine, PathMetrics, Paths, Provider, Runtime, Tactics, Target};
use blockdrop::policy::{Choice, PATHS};
use blockdrop::registry;
use clap::Args;
use clap::builder::BoolishValueParser;

use super::Failure;
use super::checked::{Checked, Problems};
use super::memory;

/// What the graphs run on.
#[derive(Debug, Args)]
pub(crate) struct RunOn {
    /// What the graphs run on: cpu, cuda or cuda:N. A provider that cannot be had is an error, never a run on another.
    #[arg(long, env = "BLOCKDROP_PROVIDER", default_value = "cpu")]
    provider: Checked<Provider>,

    /// Worker threads, each with one thread of ONNX Runtime [default: the cores this process may use; on a GPU 2, one to run
    /// there while the other is prepared].
    #[arg(long, env = "BLOCKDROP_WORKERS")]
    workers: Option<Checked<usize>>,

    /// ONNX Runtime's library, libonnxruntime.so or .dylib [default: what ORT_DYLIB_PATH names].
    #[arg(long, env = "BLOCKDROP_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,

    /// On a GPU: run compiled paths, the full net's among them, as CUDA graphs. Each worker captures its own of each session of
    /// a path, while all others wait; and it waits for paths and models that are being made. bench has one worker then.
    #[arg(long, env = "BLOCKDROP_CUDA_GRAPHS", value_parser = BoolishValueParser::new())]
    cuda_graphs: bool,

    /// Memory for compiled paths of all models, in bytes; paths beyond it run without being compiled [default: a quarter of
    /// what is free; on a GPU 8 GiB of its memory].
    #[arg(long, env = "BLOCKDROP_PATH_CACHE_BYTES")]
    path_cache_bytes: Option<Checked<u64>>,
}

/// [`RunOn`], checked.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) target: Target,
    pub(crate) workers: usize,
    pub(crate) onnxruntime: Option<PathBuf>,
    /// Bytes for compiled paths.
    pub(crate) path_cache: u64,
}

impl RunOn {
    pub(crate) fn check(self, problems: &mut Problems) -> Option<Running> {
        let provider = problems.take("--provider", "cpu, cuda or cuda:N", self.provider, |_| true);
        let target = provider.map(|provider| {
            let tactics = Tactics { cuda_graphs: self.cuda_graphs, ..provider.tactics() };
            Target { provider, tactics }
        });
        if self.cuda_graphs && provider == Some(Provider::Cpu) {
            problems.note("--cuda-graphs: found --provider cpu, expected cuda or cuda:N");
        }
        let workers = match self.workers {
            None if matches!(provider, Some(Provider::Cuda(_))) => Some(2),
            // Follows the cgroup's quota and the CPU affinity.
            None => Some(std::thread::available_parallelism().map_or(1, NonZero::get)),
            Some(workers) => {
                problems.take("--workers", "1 to 1024 threads", workers, |workers| (1..=1024).contains(workers))
            }
        };
        let onnxruntime = self.onnxruntime.or_else(|| std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from));
        let path_cache = match self.path_cache_bytes {
            None => provider.map(memory::for_paths),
            Some(bytes) => problems.take("--path-cache-bytes", "a number of bytes from 0", bytes, |_| true),
        };
        Some(Running { target: target?, workers: workers?, onnxruntime, path_cache: path_cache? })
    }
}

impl Running {
    /// An engine for `bundle` and the workers' threads.
    pub(crate) fn engine(&self, bundle: Bundle, metrics: PathMetrics) -> Result<Engine, Failure> {
        let runtime = Runtime::load(self.onnxruntime.as_deref())?;
        let paths = Arc::new(Paths::start(self.path_cache)?);
        Ok(Engine::new(Arc::new(bundle), runtime, self.target, self.workers, paths, metrics)?)
    }
}

/// How masks are chosen.
#[derive(Debug, Args)]
pub(crate) struct Masks {
    #[arg(long, env = "BLOCKDROP_PATH", default_value = "policy", help = format!("Which blocks run: {PATHS}"))]
    path: Checked<blockdrop::policy::Path>,

    /// Keep a block from this probability on [default: the model's own].
    #[arg(long, env = "BLOCKDROP_THRESHOLD")]
    threshold: Option<Checked<f64>>,

    /// Drop the least wanted blocks until at most this many are kept.
    #[arg(long, env = "BLOCKDROP_MAX_BLOCKS")]
    max_blocks: Option<Checked<usize>>,

    /// Drop the least wanted blocks until policy and path cost at most this many FLOPs.
    #[arg(long, env = "BLOCKDROP_MAX_FLOPS")]
    max_flops: Option<Checked<u64>>,
}

impl Masks {
    pub(crate) fn check(self, problems: &mut Problems) -> Option<Choice> {
        let path = problems.take("--path", PATHS, self.path, |_| true);
        let threshold = self.threshold.map(|value| {
            problems.take("--threshold", "a probability from 0 to 1", value, |value| (0.0..=1.0).contains(value))
        });
        let max_blocks =
            self.max_blocks.map(|value| problems.take("--max-blocks", "a number of blocks", value, |_| true));
        let max_flops = self.max_flops.map(|value| problems.take("--max-flops", "a number of FLOPs", value, |_| true));
        Some(Choice {
            path: path?,
            threshold: threshold.flatten(),
            max_blocks: max_blocks.flatten(),
            max_flops: max_flops.flatten(),
        })
    }
}

/// Which bundle: a directory, or the default model of a repository.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Directory of the bundle [default: the default model of --models, its newest version].
    #[arg(long, env = "BLOCKDROP_BUNDLE")]
    bundle: Option<PathBuf>,

    /// Directory of models, <name>/<version>/bundle.json.
    #[arg(long, env = "BLOCKDROP_MODELS", default_value = "models")]
    models: PathBuf,

    /// Name of the default model [default: what the file `default` in the directory of models says, else the only one].
    #[arg(long, env = "BLOCKDROP_DEFAULT_MODEL")]
    default_model: Option<String>,
}

impl Which {
    pub(crate) fn load(self) -> Result<Bundle, Failure> {
        let dir = match self.bundle {
            Some(dir) => dir,
            None => registry::default_bundle(&self.models, self.default_model.as_deref())?,
        };
        Ok(Bundle::load(&dir)?)
    }
}

/// `models/<name>/<version>` as `<name> version <version>`; any other directory as it is.
pub(crate) fn title(dir: &Path) -> String {
    let part = |path: Option<&Path>| path?.file_name()?.to_str().map(str::to_owned);
    match (part(dir.parent()), part(Some(dir))) {
        (Some(name), Some(version)) if version.parse::<u64>().is_ok() => format!("{name} version {version}"),
        _ => dir.display().to_string(),
    }
}
