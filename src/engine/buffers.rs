//! Where the host writes a batch's images and reads its results, and how both get to the graph's device and back.

use std::borrow::Cow;
use std::sync::Once;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{HasSelectedOutputs, IoBinding, OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::Tensor;

use super::provider::Provider;

/// What a session needs for batches of one size.
pub(super) struct Buffers {
    /// `[N, ...]`, in pinned memory where the graph runs on a GPU.
    images: Tensor<f32>,
    input: String,
    way: Way,
}

/// How a batch runs.
enum Way {
    /// ONNX Runtime brings the images to the device and the results to a tensor of the host as part of the run, by its stream.
    Carried(RunOptions<HasSelectedOutputs>),
    Placed(Box<Placed>),
}

/// The graph reads and writes tensors on the device that stay where they are, as a CUDA graph has to. `ort` copies by a session
/// of its own, one tensor at a time for the whole process.
struct Placed {
    images: Tensor<f32>,
    results: Tensor<f32>,
    /// The results, with the host.
    fetched: Tensor<f32>,
    binding: IoBinding,
}

impl Buffers {
    /// For images of `shape` at the first input of `session`, and `results` at its first output. Both are `placed` on the GPU
    /// where a CUDA graph needs that.
    pub(super) fn new(
        session: &Session,
        provider: Provider,
        shape: &[i64],
        results: &[i64],
        placed: bool,
    ) -> ort::Result<Self> {
        let name = |outlets: &[ort::value::Outlet]| outlets.first().map(|outlet| outlet.name().to_owned());
        let (Some(input), Some(output)) = (name(session.inputs()), name(session.outputs())) else {
            unreachable!("a checked graph has an input and an output")
        };
        let images = host(session, provider, shape)?;
        let fetched = host(session, provider, results)?;
        let way = match provider {
            Provider::Cuda(device) if placed => {
                let images = on_gpu(session, device, shape)?;
                let mut results = on_gpu(session, device, results)?;
                let mut binding = session.create_binding()?;
                binding.bind_input(&*input, &images)?;
                binding.bind_output(&*output, &mut results)?;
                Way::Placed(Box::new(Placed { images, results, fetched, binding }))
            }
            _ => Way::Carried(RunOptions::new()?.with_outputs(OutputSelector::default().preallocate(output, fetched))),
        };
        Ok(Self { images, input, way })
    }

    /// Where the images go, row by row.
    pub(super) fn images(&mut self) -> &mut [f32] {
        self.images.extract_tensor_mut().1
    }

    /// Runs the session that the buffers are of, with `more` inputs beside the images, and has the results `read`.
    pub(super) fn run<R>(
        &mut self,
        session: &mut Session,
        more: &[(&str, Tensor<i64>)],
        read: impl FnOnce(&[f32]) -> R,
    ) -> ort::Result<R> {
        match &mut self.way {
            Way::Carried(options) => {
                let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> =
                    vec![((&*self.input).into(), (&self.images).into())];
                inputs.extend(more.iter().map(|(name, value)| (Cow::from(*name), value.into())));
                let results = session.run_with_options(inputs, options)?;
                Ok(read(results[0].try_extract_tensor()?.1))
            }
            Way::Placed(placed) => {
                let Placed { images, results, fetched, binding } = &mut **placed;
                assert!(more.is_empty(), "what else a graph takes has no place on the device");
                self.images.copy_into(images)?;
                drop(session.run_binding(binding)?);
                results.copy_into(&mut *fetched)?;
                Ok(read(fetched.extract_tensor().1))
            }
        }
    }
}

/// A tensor of the host, in pinned memory where the graph runs on a GPU.
fn host(session: &Session, provider: Provider, shape: &[i64]) -> ort::Result<Tensor<f32>> {
    let Provider::Cuda(device) = provider else { return Tensor::new(session.allocator(), shape.to_vec()) };
    let pinned = |device: u16| -> ort::Result<Tensor<f32>> {
        let info = MemoryInfo::new(
            AllocationDevice::CUDA_PINNED,
            i32::from(device),
            AllocatorType::Device,
            MemoryType::CPUInput,
        )?;
        Tensor::new(&Allocator::new(session, info)?, shape.to_vec())
    };
    // Pinned memory is the host's; some versions of ONNX Runtime have it as the first device's whatever device that is for.
    pinned(device).or_else(|_| pinned(0)).or_else(|error| {
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::warn!(%error, "no pinned memory: images take longer to the device"));
        Tensor::new(session.allocator(), shape.to_vec())
    })
}

fn on_gpu(session: &Session, device: u16, shape: &[i64]) -> ort::Result<Tensor<f32>> {
    let info = MemoryInfo::new(AllocationDevice::CUDA, i32::from(device), AllocatorType::Device, MemoryType::Default)?;
    Tensor::new(&Allocator::new(session, info)?, shape.to_vec())
}
