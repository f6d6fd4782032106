//! What the driver sends to, as little of it as it has to know.

use std::future::Future;

use crate::record::{Item, Reply};

/// The servers of a run and all that is sent to them, ready to go.
pub trait Target: Send + Sync + 'static {
    type Caller: Caller;

    /// A client of its own, not connected yet.
    fn caller(&self, arm: usize) -> Self::Caller;

    /// Images in the pool, 1 or more.
    fn images(&self) -> usize;
}

/// A client: one request at a time. It connects when it has to.
pub trait Caller: Send + 'static {
    /// Sends a request and waits for the whole answer. A future that is dropped leaves the caller fit for the next call, on
    /// a new connection.
    fn call(&mut self, item: Item) -> impl Future<Output = Reply> + Send;
}
