//! Execution providers: what the graphs run on.

use std::fmt;
use std::str::FromStr;

use ort::ep;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::Value;
use prost::Message;

use super::error::EngineError;
use super::runtime::Runtime;
use super::sizes::Sizes;
use crate::bundle::onnx::tensor_proto::DataType;
use crate::bundle::onnx::tensor_shape_proto::dimension;
use crate::bundle::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};

/// What the graphs run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    #[default]
    Cpu,
    /// NVIDIA GPU by its CUDA device number.
    Cuda(u16),
}

impl fmt::Display for Provider {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => out.write_str("cpu"),
            Self::Cuda(device) => write!(out, "cuda:{device}"),
        }
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A number as it is printed: neither `+1` nor `01`.
        let number = |device: &str| device.parse().ok().filter(|number: &u16| number.to_string() == device);
        let known = match text.split_once(':') {
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "cuda" => Some(Self::Cuda(0)),
            Some(("cuda", device)) => number(device).map(Self::Cuda),
            _ => None,
        };
        known.ok_or_else(|| format!("unknown provider '{text}', expected cpu, cuda or cuda:N, N a device's number"))
    }
}

/// How graphs are run, where a provider leaves a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tactics {
    /// Whether each session runs batches of one size alone.
    pub fixed_sizes: bool,
    /// Whether a mask without a compiled path runs by a session for each block, or by the graph for mixed masks.
    pub block_by_block: bool,
    /// Whether compiled paths are captured as CUDA graphs, by each thread that runs them, the first times that it does. Not
    /// beside engines on the same device that have none, nor with `block_by_block`: those do not wait for it.
    pub cuda_graphs: bool,
}

impl Tactics {
    pub(super) fn sizes(self) -> Sizes {
        if self.fixed_sizes { Sizes::Powers } else { Sizes::Any }
    }
}

/// A provider, and how graphs are run on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub provider: Provider,
    pub tactics: Tactics,
}

impl From<Provider> for Target {
    fn from(provider: Provider) -> Self {
        Self { provider, tactics: provider.tactics() }
    }
}

impl Provider {
    /// What suits it.
    pub fn tactics(self) -> Tactics {
        match self {
            // The borders between sessions cost less than taking images out of a batch and putting them back.
            Self::Cpu => Tactics { fixed_sizes: false, block_by_block: true, cuda_graphs: false },
            // One session from stem to head keeps the activations on the device.
            Self::Cuda(_) => Tactics { fixed_sizes: true, block_by_block: false, cuda_graphs: false },
        }
    }

    /// Runs a convolution of one value on the provider, to know that it can be had with its device and all libraries: some are
    /// looked for only then.
    ///
    /// # Errors
    /// What it lacks.
    pub(super) fn check(self, runtime: &Runtime) -> Result<(), EngineError> {
        let run = || {
            let mut session = self.session(runtime, false)?.commit_from_memory(&smallest())?;
            session.run(ort::inputs![Value::from_array(([1_usize; 4], vec![1.0_f32]))?]).map(drop)
        };
        run().map_err(|error| EngineError::Provider { provider: self, reason: lacking(&error.to_string()) })
    }

    /// Options for a session on this provider: one thread, which is the caller's, and with `graph` a CUDA graph captured in its
    /// first runs.
    ///
    /// # Errors
    /// The provider cannot be registered. That is never hidden by running on the CPU instead.
    pub(super) fn session(self, runtime: &Runtime, graph: bool) -> ort::Result<SessionBuilder> {
        let builder = SessionBuilder::new(runtime.environment())?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            // A pattern is planned for one batch size; batches here vary.
            .with_memory_pattern(false)?
            .with_optimization_level(GraphOptimizationLevel::All)?;
        let builder = match self {
            // No arena: each session would keep one of its own for good, as large as its largest batch. The system's
            // allocator is as fast here.
            Self::Cpu => builder.with_execution_providers([ep::CPU::default().with_arena_allocator(false).build()])?,
            Self::Cuda(device) => {
                let cuda = ep::CUDA::default()
                    .with_device_id(i32::from(device))
                    .with_tf32(false)
                    .with_cuda_graph(graph)
                    // A session's memory on the device stays its own: as much as it needs, not the next power of two.
                    .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
                    .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic);
                // Nodes that CUDA does not take are an error too, instead of running on the CPU unnoticed.
                builder.with_execution_providers([cuda.build().error_on_failure()])?.with_disable_cpu_fallback()?
            }
        };
        Ok(builder)
    }
}

/// A graph of one convolution, of a single value.
fn smallest() -> Vec<u8> {
    const SHAPE: [i64; 4] = [1; 4];
    let value = |name| ValueInfoProto::tensor(name, DataType::Float, SHAPE.map(dimension::Value::DimValue).to_vec());
    let filter = TensorProto {
        name: Some("filter".to_owned()),
        dims: SHAPE.to_vec(),
        data_type: Some(DataType::Float as i32),
        float_data: vec![1.0],
        ..TensorProto::default()
    };
    let convolution = NodeProto {
        input: vec!["x".to_owned(), "filter".to_owned()],
        output: vec!["y".to_owned()],
        op_type: Some("Conv".to_owned()),
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("smallest".to_owned()),
        node: vec![convolution],
        initializer: vec![filter],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let model =
        ModelProto { ir_version: Some(8), graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() };
    model.encode_to_vec()
}

/// What ONNX Runtime says of a provider that cannot be registered, as what is missing and where it is to be had.
fn lacking(reason: &str) -> String {
    let library = reason
        .split_once("cannot open shared object file")
        .and_then(|(before, _)| before.rsplit_once("error: ").map(|(_, name)| name.trim_end_matches([':', ' '])));
    if let Some(library) = library {
        if library.contains("libonnxruntime_providers") {
            return format!("{library} is not there, expected it beside ONNX Runtime's library, of the same build");
        }
        if library.starts_with("libcuda.so") {
            return format!("{library} is not there, expected NVIDIA's driver, which has it, and a GPU");
        }
        return format!(
            "{library} is not there, expected CUDA 13 and cuDNN 9 (their folders in LD_LIBRARY_PATH, where the system does not \
             know them)"
        );
    }
    if reason.contains("cuDNN is not available") {
        return "cuDNN is not there, expected cuDNN 9 (its folder in LD_LIBRARY_PATH, where the system does not know it)"
            .to_owned();
    }
    if reason.contains("not enabled in this build") {
        return "this library of ONNX Runtime has no CUDA, expected its build for GPUs in ORT_DYLIB_PATH: without that variable \
                `make serve PROVIDER=cuda` fetches it, and the image `cuda` has it"
            .to_owned();
    }
    // From its own sources' place on, up to its kind of error.
    let said = reason.split_once("[ONNXRuntimeError] : ").map_or(reason, |(_, said)| said);
    said.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_lacks_is_said() {
        // As ONNX Runtime 1.31.1 and ort say it.
        let missing = "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& \
                       onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library \
                       /opt/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No \
                       such file or directory";
        assert!(lacking(missing).starts_with("libcublasLt.so.13 is not there, expected CUDA 13 and cuDNN 9"));
        let driver = missing.replace("libcublasLt.so.13", "libcuda.so.1");
        assert_eq!(lacking(&driver), "libcuda.so.1 is not there, expected NVIDIA's driver, which has it, and a GPU");
        let late = "Non-zero status code returned while running Conv node: cuDNN is not available. Install cuDNN 9";
        assert!(lacking(late).starts_with("cuDNN is not there, expected cuDNN 9"));
        let none = "CUDA execution provider is not enabled in this build.";
        assert!(lacking(none).starts_with("this library of ONNX Runtime has no CUDA, expected its build for GPUs"));
        let other = "/onnxruntime_src/cuda_call.cc:1 f() [ONNXRuntimeError] : 1 : FAIL : CUDA failure 100: no CUDA-capable device";
        assert_eq!(lacking(other), "1 : FAIL : CUDA failure 100: no CUDA-capable device");
    }

    #[test]
    fn providers_print_as_they_parse() {
        for (text, provider) in [("cpu", Provider::Cpu), ("cuda", Provider::Cuda(0)), ("cuda:3", Provider::Cuda(3))] {
            assert_eq!(text.parse(), Ok(provider));
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "cuda:70000", "cuda:+1", "cuda:01"] {
            assert!(text.parse::<Provider>().is_err(), "{text}");
        }
    }
}
