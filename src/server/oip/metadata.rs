//! What the server and its models are.

use serde::Serialize;
use utoipa::ToSchema;

use super::INPUT;
use super::output::Output;
use crate::registry::{Model, Registry};
use crate::telemetry::{Statistics, Tally};

/// The server.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ServerMetadata {
    pub(in crate::server) name: &'static str,
    pub(in crate::server) version: &'static str,
    /// Of the protocol, those that it understands.
    pub(in crate::server) extensions: [&'static str; 6],
}

impl ServerMetadata {
    pub(in crate::server) const THIS: Self = Self {
        name: "blockdrop",
        version: env!("CARGO_PKG_VERSION"),
        extensions: [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "model_repository",
            "parameters",
            "statistics",
        ],
    };
}

/// A model's tensors.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ModelMetadata {
    pub(in crate::server) name: String,
    /// All that are loaded, oldest first.
    pub(in crate::server) versions: Vec<String>,
    pub(in crate::server) platform: &'static str,
    /// The only one, `image`. It takes BYTES `[N]`, encoded images, too.
    pub(in crate::server) inputs: Vec<TensorMetadata>,
    pub(in crate::server) outputs: Vec<TensorMetadata>,
}

/// A tensor of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct TensorMetadata {
    pub(in crate::server) name: &'static str,
    pub(in crate::server) datatype: &'static str,
    /// -1 for the batch.
    pub(in crate::server) shape: Vec<i64>,
}

const PLATFORM: &str = "blockdrop_onnxruntime";

impl ModelMetadata {
    pub(in crate::server) fn of(registry: &Registry, model: &Model) -> Self {
        let batch = |rest: &[i64]| std::iter::once(-1).chain(rest.iter().copied()).collect();
        let versions = registry.versions(&model.name).unwrap_or_default();
        let outputs = Output::ALL.map(|output| TensorMetadata {
            name: output.name(),
            datatype: output.datatype(),
            shape: batch(&width(output, model)),
        });
        Self {
            name: model.name.clone(),
            versions: versions.keys().map(u64::to_string).collect(),
            platform: PLATFORM,
            inputs: vec![TensorMetadata { name: INPUT, datatype: "FP32", shape: batch(&input(model)) }],
            outputs: outputs.into(),
        }
    }
}

/// Sizes of an image's tensor.
fn input(model: &Model) -> [i64; 3] {
    let input = &model.engine.bundle().manifest.input;
    [3, input.height as i64, input.width as i64]
}

/// Sizes of an output without its batch.
fn width(output: Output, model: &Model) -> Vec<i64> {
    output.width(model).map(|width| width as i64).into_iter().collect()
}

/// The part of Triton's model configuration that its clients read.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ModelConfig {
    pub(in crate::server) name: String,
    pub(in crate::server) platform: &'static str,
    pub(in crate::server) backend: &'static str,
    /// Images that a request may have.
    pub(in crate::server) max_batch_size: usize,
    pub(in crate::server) input: Vec<TensorConfig>,
    pub(in crate::server) output: Vec<TensorConfig>,
}

/// A tensor of a model's configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct TensorConfig {
    pub(in crate::server) name: &'static str,
    pub(in crate::server) data_type: &'static str,
    /// Without the batch.
    pub(in crate::server) dims: Vec<i64>,
}

impl ModelConfig {
    /// The configuration of `model`, whose requests may have `most_images`.
    pub(in crate::server) fn of(model: &Model, most_images: usize) -> Self {
        let typed = |output: Output| match output {
            Output::Logits | Output::Probabilities => "TYPE_FP32",
            Output::Class | Output::Blocks => "TYPE_INT32",
            Output::Mask => "TYPE_UINT8",
            Output::Flops => "TYPE_INT64",
        };
        let output =
            |output| TensorConfig { name: Output::name(output), data_type: typed(output), dims: width(output, model) };
        Self {
            name: model.name.clone(),
            platform: PLATFORM,
            backend: "blockdrop",
            max_batch_size: most_images,
            input: vec![TensorConfig { name: INPUT, data_type: "TYPE_FP32", dims: input(model).into() }],
            output: Output::ALL.map(output).into(),
        }
    }
}

/// What a model has done since it was loaded.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ModelStatistics {
    pub(in crate::server) name: String,
    pub(in crate::server) version: String,
    /// Milliseconds since the epoch; 0 where there was none.
    pub(in crate::server) last_inference: u64,
    /// Images answered.
    pub(in crate::server) inference_count: u64,
    /// Groups of images that ran a path together.
    pub(in crate::server) execution_count: u64,
    pub(in crate::server) inference_stats: InferenceStatistics,
    /// Not kept: the metrics' batch sizes say more.
    #[schema(value_type = Vec<Object>)]
    pub(in crate::server) batch_stats: [(); 0],
}

/// Of requests; of one with several images the longest time of any.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct InferenceStatistics {
    pub(in crate::server) success: Duration,
    pub(in crate::server) fail: Duration,
    pub(in crate::server) queue: Duration,
    /// Decoding and preprocessing.
    pub(in crate::server) compute_input: Duration,
    /// Policy and path.
    pub(in crate::server) compute_infer: Duration,
    pub(in crate::server) compute_output: Duration,
    pub(in crate::server) cache_hit: Duration,
    pub(in crate::server) cache_miss: Duration,
}

/// How often, and nanoseconds in all.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = StatisticDuration)]
pub(in crate::server) struct Duration {
    pub(in crate::server) count: u64,
    pub(in crate::server) ns: u64,
}

impl From<&Tally> for Duration {
    fn from(tally: &Tally) -> Self {
        let (count, ns) = tally.read();
        Self { count, ns }
    }
}

impl ModelStatistics {
    fn of(model: &Model) -> Self {
        let Statistics { success, fail, queue, input, infer, .. } = &*model.statistics;
        Self {
            name: model.name.clone(),
            version: model.version.to_string(),
            last_inference: model.statistics.last(),
            inference_count: model.statistics.images(),
            execution_count: model.statistics.executions(),
            inference_stats: InferenceStatistics {
                success: success.into(),
                fail: fail.into(),
                queue: queue.into(),
                compute_input: input.into(),
                compute_infer: infer.into(),
                // The outputs are copied while the answer is written: not timed, but counted as often.
                compute_output: Duration { count: success.read().0, ns: 0 },
                cache_hit: Duration::default(),
                cache_miss: Duration::default(),
            },
            batch_stats: [],
        }
    }
}

/// What the models called `name` (all, without a name) of this `version` (all, without one) have done.
///
/// # Errors
/// There is no such model or version.
pub(in crate::server) fn statistics(
    registry: &Registry,
    name: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<ModelStatistics>, crate::registry::Unknown> {
    match (name, version) {
        (Some(name), Some(version)) => {
            let model = registry.get(Some(name), Some(version))?;
            Ok(vec![ModelStatistics::of(&model)])
        }
        (Some(name), None) => {
            registry.get(Some(name), None)?;
            let versions = registry.versions(name).unwrap_or_default();
            Ok(versions.values().map(|model| ModelStatistics::of(model)).collect())
        }
        (None, _) => Ok(registry.all().iter().map(|model| ModelStatistics::of(model)).collect()),
    }
}
