//! Connections: as many as may be open, each with what its requests have in common, and closed where its client does not
//! take its answers.

mod refuse;
mod stream;
mod untaken;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use axum_server::accept::Accept;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use crate::scheduler::Flow;
use crate::telemetry::metrics::{Closed, ConnectionMetrics};
pub(super) use stream::LINGER;
use stream::Watched;
use untaken::Untaken;

/// What the requests of a connection have in common: in the extensions of each.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// Its images take turns with those of other connections.
    pub(super) flow: Arc<Flow>,
    untaken: Arc<Untaken>,
}

/// Accepts the connections of a listener, within its bounds.
#[derive(Clone)]
pub(super) struct Acceptor(Arc<Bounds>);

struct Bounds {
    room: Arc<Semaphore>,
    /// Connections that are being told that there is no room.
    refusing: Semaphore,
    /// How long a client may leave a part of an answer untaken.
    patience: Duration,
    metrics: ConnectionMetrics,
}

/// An open connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    _place: OwnedSemaphorePermit,
    metrics: ConnectionMetrics,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.open.dec();
    }
}

impl Acceptor {
    /// At most `most` connections at a time. A client has `patience` to take each part of an answer.
    pub(super) fn new(most: usize, patience: Duration, metrics: ConnectionMetrics) -> Self {
        /// Each of these takes a task and a socket for a moment more; beyond them connections are closed without a word.
        const REFUSING: usize = 64;
        let (room, refusing) = (Arc::new(Semaphore::new(most)), Semaphore::new(REFUSING));
        Self(Arc::new(Bounds { room, refusing, patience, metrics }))
    }

    fn open(&self) -> Option<Open> {
        let place = Arc::clone(&self.0.room).try_acquire_owned().ok()?;
        self.0.metrics.open.inc();
        Some(Open { _place: place, metrics: self.0.metrics.clone() })
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Acceptor {
    type Stream = Watched<TcpStream, Open>;
    type Service = Connected<S>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let acceptor = self.clone();
        async move {
            // Without TCP_NODELAY small answers wait for 40 ms.
            stream.set_nodelay(true)?;
            let Acceptor(bounds) = &acceptor;
            let Some(open) = acceptor.open() else {
                bounds.metrics.closed(Closed::Limit);
                if let Ok(_turn) = bounds.refusing.try_acquire() {
                    refuse::refuse(stream).await;
                }
                return Err(io::Error::other("as many connections are open as may be"));
            };
            let untaken = Arc::new(Untaken::default());
            let connection = Connection { flow: Flow::new(), untaken: Arc::clone(&untaken) };
            let metrics = bounds.metrics.clone();
            let given_up = move || metrics.closed(Closed::Untaken);
            let stream = Watched::new(stream, untaken, bounds.patience, Box::new(given_up), open);
            Ok((stream, Connected { service, connection }))
        }
        .boxed()
    }
}

/// The service of one connection.
#[derive(Clone)]
pub(super) struct Connected<S> {
    service: S,
    connection: Connection,
}

impl<B, S> Service<Request<B>> for Connected<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.connection.clone());
        let (answer, untaken) = (self.service.call(request), Arc::clone(&self.connection.untaken));
        Box::pin(async move { answer.await.map(|response| response.map(|body| untaken::watched(body, untaken))) })
    }
}
