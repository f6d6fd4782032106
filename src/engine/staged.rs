//! A tensor that the host fills or reads, and where the graphs run on another device, its twin there.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::Tensor;

use super::provider::Provider;

/// On a GPU the host's side is pinned memory. Both sides stay where they are for as long as it lives. `ort` copies by a session
/// of its own, one tensor at a time.
pub(super) struct Staged {
    host: Tensor<f32>,
    device: Option<Tensor<f32>>,
}

impl Staged {
    /// Room for a tensor of `shape` that `session` takes or gives.
    pub(super) fn new(session: &Session, provider: Provider, shape: &[i64]) -> ort::Result<Self> {
        let Provider::Cuda(device) = provider else {
            return Ok(Self { host: Tensor::new(session.allocator(), shape.to_vec())?, device: None });
        };
        let memory = |place, kind| {
            let info = MemoryInfo::new(place, i32::from(device), AllocatorType::Device, kind)?;
            Tensor::new(&Allocator::new(session, info)?, shape.to_vec())
        };
        let host = memory(AllocationDevice::CUDA_PINNED, MemoryType::CPUInput)?;
        Ok(Self { host, device: Some(memory(AllocationDevice::CUDA, MemoryType::Default)?) })
    }

    /// What a session is bound to.
    pub(super) fn bound(&mut self) -> &mut Tensor<f32> {
        self.device.as_mut().unwrap_or(&mut self.host)
    }

    pub(super) fn values(&self) -> &[f32] {
        self.host.extract_tensor().1
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.host.extract_tensor_mut().1
    }

    /// Brings what the host wrote to the device.
    pub(super) fn send(&mut self) -> ort::Result<()> {
        self.device.as_mut().map_or(Ok(()), |device| self.host.copy_into(device))
    }

    /// Brings what the device wrote to the host.
    pub(super) fn fetch(&mut self) -> ort::Result<()> {
        let Self { host, device } = self;
        device.as_ref().map_or(Ok(()), |device| device.copy_into(host))
    }
}
