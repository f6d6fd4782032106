//! Options that bound what connections may cost.

use std::time::Duration;

use clap::Args;

use super::checked::{Checked, Problems};

#[derive(Debug, Args)]
pub(crate) struct Connections {
    /// Connections to the HTTP listener and to the gRPC listener, at most so many each; beyond it HTTP/1 is answered with 503,
    /// HTTP/2 and gRPC are told to go away. The admin listener has 64 of its own. Beside the bodies of --max-bodies-bytes and
    /// its answers a connection may hold up to 400 KiB over HTTP/1, and over HTTP/2 1 MiB and 16 KiB for each of up to 100
    /// requests.
    #[arg(long, env = "BLOCKDROP_MAX_CONNECTIONS", default_value = "1024")]
    max_connections: Checked<usize>,

    /// Images of one connection that may wait, at most; beyond it requests are refused with 503. Whatever this is, a connection
    /// has no more images waiting than there are places left in the queue, and the last eighth of all places is for connections
    /// with none: those that flood leave half of it, or that, to others. Images of different connections are run in turns
    /// [default: --max-queue].
    #[arg(long, env = "BLOCKDROP_MAX_QUEUE_PER_CONNECTION")]
    max_queue_per_connection: Option<Checked<usize>>,

    /// Time for a client to take each 64 KiB of an answer; beyond it the connection is closed.
    #[arg(long, env = "BLOCKDROP_WRITE_TIMEOUT", default_value = "30s")]
    write_timeout: Checked<humantime::Duration>,
}

/// [`Connections`], checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) connections: usize,
    pub(crate) queue_each: usize,
    pub(crate) write_timeout: Duration,
}

/// Files that the process opens beside connections to the public listeners: the admin listener's, logs, models, libraries.
const OTHER_FILES: u64 = 256;

impl Connections {
    /// The bounds, where the queue takes `max_queue` images.
    pub(crate) fn check(self, max_queue: Option<usize>, problems: &mut Problems) -> Option<Bounds> {
        let expected = "1 to 1000000 connections";
        let connections = problems
            .take("--max-connections", expected, self.max_connections, |most| (1..=1_000_000).contains(most))
            .map(files_for);
        let queue_each = match self.max_queue_per_connection {
            None => max_queue,
            Some(images) => {
                problems.take("--max-queue-per-connection", "from 1 to --max-queue images", images, |images| {
                    (1..=max_queue.unwrap_or(usize::MAX)).contains(images)
                })
            }
        };
        let time =
            problems.take("--write-timeout", "a time from 1ms to 1day such as 30s", self.write_timeout, |time| {
                (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&**time)
            });
        Some(Bounds { connections: connections?, queue_each: queue_each?, write_timeout: *time? })
    }
}

/// Lets the process open files for so many `connections` to each of the two listeners; how many of them that is enough for.
fn files_for(connections: usize) -> usize {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let wanted = 2 * connections as u64 + OTHER_FILES;
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < wanted) {
            limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
            // Where that is not granted it stays what it is.
            let _ = setrlimit(Resource::Nofile, limit);
        }
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if files < wanted {
            let enough = enough_for(files);
            tracing::warn!(
                max_connections = enough,
                "the process may open {files} files: --max-connections {connections} is lowered to what that is enough for"
            );
            return enough;
        }
    }
    connections
}

/// Connections to each of the two listeners when the process may open so many `files`.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "elsewhere nothing is known of files"))]
fn enough_for(files: u64) -> usize {
    usize::try_from(files.saturating_sub(OTHER_FILES) / 2).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_by_two_listeners_and_some_are_left() {
        assert_eq!(enough_for(1024), 384);
        assert_eq!((enough_for(100), enough_for(0)), (1, 1));
        assert_eq!(files_for(1), 1);
    }
}
