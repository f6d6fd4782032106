//! Whether the operating system has room for a server, found out before the first thing that is needed fails.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use anyhow::Context;

/// Checks that there may be `count` more threads at once.
pub(crate) fn for_threads(count: usize) -> anyhow::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        for there in 0..count {
            let thread = Builder::new().spawn_scoped(scope, || drop(gate.lock()));
            thread.with_context(|| {
                format!("found room for {there} threads, expected {count} (see the limits on processes and pids)")
            })?;
        }
        drop(closed);
        Ok(())
    })
}

/// Checks that `count` more files may be open at once.
pub(crate) fn for_files(count: usize) -> anyhow::Result<()> {
    let mut open = Vec::with_capacity(count);
    for there in 0..count {
        let file = File::open("/dev/null");
        open.push(file.with_context(|| {
            format!("found room for {there} open files, expected {count} (see the limit on open files)")
        })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_there_is_is_found() {
        for_threads(20).unwrap();
        for_files(20).unwrap();
    }
}
