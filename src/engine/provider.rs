//! Execution providers: what the graphs run on.

use std::fmt;
use std::str::FromStr;

use ort::ep;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::runtime::Runtime;

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
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", device)) if device.parse::<u16>().is_ok() => Ok(Self::Cuda(device.parse().unwrap_or(0))),
            _ => Err(format!("unknown provider '{text}', expected cpu, cuda or cuda:N")),
        }
    }
}

impl Provider {
    /// Options for a session on this provider: one thread, which is the caller's.
    ///
    /// # Errors
    /// The provider cannot be registered. That is never hidden by running on the CPU instead.
    pub(super) fn session(self, runtime: &Runtime) -> ort::Result<SessionBuilder> {
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
                    .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic);
                // Nodes that CUDA does not take are an error too, instead of running on the CPU unnoticed.
                builder.with_execution_providers([cuda.build().error_on_failure()])?.with_disable_cpu_fallback()?
            }
        };
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_print_as_they_parse() {
        for (text, provider) in [("cpu", Provider::Cpu), ("cuda", Provider::Cuda(0)), ("cuda:3", Provider::Cuda(3))] {
            assert_eq!(text.parse(), Ok(provider));
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "cuda:70000"] {
            assert!(text.parse::<Provider>().is_err(), "{text}");
        }
    }
}
