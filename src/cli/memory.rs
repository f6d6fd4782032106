//! How much memory this process may use.

use sysinfo::{MemoryRefreshKind, System};

/// A quarter of the memory that is free now, for the machine or the container, whichever has less.
pub(crate) fn quarter() -> u64 {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let container = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    container.min(system.available_memory()) / 4
}
