//! How much memory this process may use.

use std::path::Path;

use blockdrop::engine::Provider;
use sysinfo::{MemoryRefreshKind, System};

/// What is taken where nothing can be read, in bytes.
const UNKNOWN: u64 = 512 << 20;

/// What is for compiled paths where nobody says how much, in bytes: on the CPU a quarter of what is free. Of a GPU's memory
/// nothing is known here.
pub(crate) fn for_paths(provider: Provider) -> u64 {
    const ON_GPU: u64 = 8 << 30;
    match provider {
        Provider::Cpu => quarter(),
        Provider::Cuda(_) => ON_GPU,
    }
}

/// A quarter of the memory that is free now, for the machine, for the control groups that this process is in, or in its
/// address space, whichever has least.
fn quarter() -> u64 {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = Some(system.available_memory()).filter(|&free| free > 0);
    machine.into_iter().chain(free_in_groups(Path::new("/"))).chain(free_in_addresses()).min().unwrap_or(UNKNOWN) / 4
}

/// What the limit of this process's address space (`ulimit -v`) leaves.
fn free_in_addresses() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
        let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').next()?.parse().ok()?;
        Some(limit.saturating_sub(pages * rustix::param::page_size() as u64))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// What the memory limits of the control groups leave, of version 1 and 2, below the file system's `root`: the limit less
/// what is used, page cache that can go not counted.
fn free_in_groups(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least = None;
    for line in groups.lines() {
        // `0::/path` of version 2, `4:memory:/path` of version 1.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (mount, limit, usage, cache) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        } else {
            continue;
        };
        // The group and those around it; in a container the path may be one of the host's, which is not there.
        let group = Path::new(path.trim_start_matches('/'));
        for group in group.ancestors() {
            let dir = root.join(mount).join(group);
            let number = |file: &str| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
            let (Some(limit), Some(usage)) = (number(limit), number(usage)) else { continue };
            let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let of = |line: &str| line.strip_prefix(cache)?.trim().parse::<u64>().ok();
            let cache = stat.lines().find_map(of).unwrap_or(0);
            let free = limit.saturating_sub(usage.saturating_sub(cache));
            least = Some(least.map_or(free, |least: u64| least.min(free)));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        free_in_groups(root.path())
    }

    #[test]
    fn limits_of_version_2_hold_along_the_path_and_page_cache_is_free() {
        let files = [
            ("proc/self/cgroup", "0::/system.slice/blockdrop.service\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "5000\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "1000\n"),
            ("sys/fs/cgroup/system.slice/blockdrop.service/memory.max", "2000\n"),
            ("sys/fs/cgroup/system.slice/blockdrop.service/memory.current", "1500\n"),
            ("sys/fs/cgroup/system.slice/blockdrop.service/memory.stat", "anon 300\ninactive_file 1200\n"),
        ];
        assert_eq!(free(&files), Some(1700));
        assert_eq!(free(&files[..3]), Some(4000), "the group around it");
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "400\n"),
        ];
        assert_eq!(free(&files), Some(600));
        let files = [
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n"),
        ];
        assert_eq!(free(&files), Some(600));
    }

    #[test]
    fn no_limit_is_none() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.current", "400\n"),
        ];
        assert_eq!(free(&files), None);
        assert_eq!(free(&[]), None);
        assert!(quarter() > 0);
    }
}
