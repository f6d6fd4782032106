//! A connection's stream, which fails once its client has not taken its answers for too long, and reads on for a moment
//! when it is closed: the system resets a connection that is closed with unread bytes, and a client that is still sending
//! then loses answers that it has not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::untaken::Untaken;

/// How long a closed connection waits for its client to close it too.
pub(in crate::server) const LINGER: Duration = Duration::from_secs(1);

/// `S`, and what is held as long as it is open.
pub(in crate::server) struct Watched<S, H> {
    stream: S,
    untaken: Arc<Untaken>,
    patience: Duration,
    given_up: Option<Box<dyn FnOnce() + Send + Sync>>,
    /// Since when the socket takes no more.
    blocked: Option<Instant>,
    /// Goes off when what is untaken now may have been so for too long.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Goes off when the client, which was told that nothing more comes, has had its time to close too.
    closed: Option<Pin<Box<Sleep>>>,
    _held: H,
}

impl<S, H> Watched<S, H> {
    /// Fails when a part of an answer has been `untaken` for longer than `patience`, and calls `given_up` then.
    pub(super) fn new(
        stream: S,
        untaken: Arc<Untaken>,
        patience: Duration,
        given_up: Box<dyn FnOnce() + Send + Sync>,
        held: H,
    ) -> Self {
        Self {
            stream,
            untaken,
            patience,
            given_up: Some(given_up),
            blocked: None,
            alarm: None,
            closed: None,
            _held: held,
        }
    }

    /// While the stream is not ready: whether it is to be given up. The task is woken when that has to be asked again.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let Some(oldest) = self.blocked.into_iter().chain(self.untaken.oldest()).min() else {
                self.alarm = None;
                return Ok(());
            };
            let until = oldest + self.patience;
            if until <= Instant::now() {
                if let Some(given_up) = self.given_up.take() {
                    given_up();
                }
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not take its answer in time"));
            }
            // An alarm that goes off too early looks again; so one is enough for many answers.
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if alarm.as_mut().poll(context).is_pending() {
                return Ok(());
            }
            self.alarm = None;
        }
    }

    /// What came of writing.
    fn wrote(&mut self, context: &mut Context<'_>, found: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if found.is_ready() {
            self.blocked = None;
            return found;
        }
        self.blocked.get_or_insert_with(Instant::now);
        self.check(context)?;
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin, H: Unpin> AsyncRead for Watched<S, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let found = Pin::new(&mut self.stream).poll_read(context, buffer);
        if found.is_pending() {
            self.check(context)?;
        }
        found
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, H: Unpin> AsyncWrite for Watched<S, H> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let found = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, found)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let found = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(context, found)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, closed, .. } = &mut *self;
        if closed.is_none() {
            std::task::ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        let over = closed.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        // Asked first: a client may send for ever.
        while over.as_mut().poll(context).is_pending() {
            let mut forgotten = [0; 4096];
            let mut buffer = ReadBuf::new(&mut forgotten);
            std::task::ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::super::untaken::watched;
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    type Bench = (Watched<DuplexStream, ()>, DuplexStream, Arc<Untaken>, Arc<AtomicUsize>);

    /// Our side, theirs, what is untaken, and how often the client was given up.
    fn bench(patience: Duration, buffer: usize) -> Bench {
        let (ours, theirs) = duplex(buffer);
        let (untaken, given_up) = (Arc::new(Untaken::default()), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&given_up);
        let counts = Box::new(move || count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
        (Watched::new(ours, Arc::clone(&untaken), patience, counts, ()), theirs, untaken, given_up)
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_given_up() {
        let (mut ours, _theirs, _, given_up) = bench(SOON, 16);
        let error = ours.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(given_up.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_answer_that_stays_is_given_up_though_the_socket_takes_more() {
        let (mut ours, _theirs, untaken, given_up) = bench(SOON, 1000);
        let answer = watched(Body::from("an answer"), untaken);
        ours.write_all(&[0; 100]).await.unwrap();
        let error = ours.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(given_up.load(Ordering::Relaxed), 1);
        drop(answer);
    }

    #[tokio::test]
    async fn a_client_that_is_silent_or_slow_is_none_of_these() {
        let (mut ours, mut theirs, untaken, given_up) = bench(Duration::from_secs(60), 16);
        drop(watched(Body::from("an answer"), untaken));
        let reads = tokio::spawn(async move {
            let mut all = vec![0; 1000];
            theirs.read_exact(&mut all).await.unwrap();
            theirs.write_u8(1).await.unwrap();
            theirs
        });
        ours.write_all(&[7; 1000]).await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), 1);
        drop(reads.await.unwrap());
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(given_up.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_client_that_is_still_sending_reads_what_was_answered() {
        let (mut ours, mut theirs, _, _) = bench(Duration::from_secs(60), 16);
        ours.write_all(b"an answer").await.unwrap();
        let closes = tokio::spawn(async move { ours.shutdown().await.unwrap() });
        theirs.write_all(&[0; 10_000]).await.unwrap();
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"an answer");
        drop(theirs);
        closes.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_closes_is_not_waited_for() {
        let (mut ours, _theirs, _, _) = bench(Duration::from_secs(60), 16);
        ours.shutdown().await.unwrap();
        let (mut ours, mut theirs, _, _) = bench(Duration::from_secs(60), 16);
        let sends = tokio::spawn(async move { while theirs.write_all(&[0; 16]).await.is_ok() {} });
        ours.shutdown().await.unwrap();
        drop(ours);
        sends.await.unwrap();
    }
}
