//! The line between the thread that paces requests and the clients that send them.
//!
//! A request goes to the client that was busy last, so that no more connections are in use than are needed; where all
//! are busy it waits. What waits is bounded by the rate times the timeout, because what has waited that long is taken out
//! when more comes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::record::Payload;

/// A request and when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) load: Payload,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    state: Mutex<State>,
    timeout: Duration,
}

#[derive(Debug)]
struct State {
    /// In the order in which they are due. Empty while a client is idle.
    waiting: VecDeque<Due>,
    /// Clients with nothing to do, the one that was busy last at the end.
    idle: Vec<usize>,
    seats: Vec<Seat>,
    closed: bool,
}

/// A client's.
#[derive(Debug, Default)]
struct Seat {
    /// What it is to send, and not yet has taken.
    given: Option<Due>,
    idle: bool,
    waker: Option<Waker>,
}

impl Line {
    /// For clients by the numbers in `idle`, each once, from 0 on: the last of them gets the first request.
    pub(super) fn new(idle: Vec<usize>, timeout: Duration) -> Self {
        let seats = idle.iter().map(|_| Seat { idle: true, ..Seat::default() }).collect();
        Self { state: Mutex::new(State { waiting: VecDeque::new(), idle, seats, closed: false }), timeout }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over requests, which are due in this order. Puts into `overdue` those whose time ran out in the line.
    pub(super) fn give(&self, dues: impl Iterator<Item = Due>, now: Instant, overdue: &mut Vec<Due>) {
        let mut wakers = Vec::new();
        {
            let mut state = self.state();
            for due in dues {
                if let Some(client) = state.idle.pop() {
                    let seat = &mut state.seats[client];
                    (seat.given, seat.idle) = (Some(due), false);
                    wakers.extend(seat.waker.take());
                } else {
                    state.waiting.push_back(due);
                }
            }
            while let Some(first) = state.waiting.front().filter(|first| first.at + self.timeout <= now) {
                overdue.push(*first);
                state.waiting.pop_front();
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The next request for a client; none when there are no more to come.
    pub(super) async fn next(&self, client: usize) -> Option<Due> {
        std::future::poll_fn(|context| {
            let mut state = self.state();
            let State { waiting, idle, seats, closed } = &mut *state;
            let seat = &mut seats[client];
            if let Some(due) = seat.given.take() {
                return Poll::Ready(Some(due));
            }
            // A client that has not been asked for a request yet is idle although it has never waited.
            if !seat.idle
                && let Some(due) = waiting.pop_front()
            {
                return Poll::Ready(Some(due));
            }
            if *closed {
                return Poll::Ready(None);
            }
            if !seat.idle {
                seat.idle = true;
                idle.push(client);
            }
            seat.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// No more is to come; what waits is still handed out.
    pub(super) fn close(&self) {
        let wakers: Vec<Waker> = {
            let mut state = self.state();
            state.closed = true;
            state.seats.iter_mut().filter_map(|seat| seat.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Clients by when they were busy, the last at the end; when all are done.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut state = self.state();
        let State { idle, seats, .. } = &mut *state;
        // Those that found the line closed never became idle again: they were busy last.
        let busy = (0..seats.len()).filter(|client| !seats[*client].idle);
        idle.iter().copied().chain(busy).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn due(at: Instant, first: usize) -> Due {
        Due { at, load: Payload::Images { first } }
    }

    fn give(line: &Line, dues: &[Due]) -> Vec<Due> {
        let mut overdue = Vec::new();
        line.give(dues.iter().copied(), Instant::now(), &mut overdue);
        overdue
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_that_was_busy_last_gets_the_next_request() {
        let line = Arc::new(Line::new(vec![2, 1, 0], TIMEOUT));
        let now = Instant::now();
        for first in 0..10 {
            assert!(give(&line, &[due(now, first)]).is_empty());
            assert_eq!(line.next(0).await, Some(due(now, first)));
            // It comes back for more before the next is due.
            let idle = tokio::spawn({
                let line = line.clone();
                async move { line.next(0).await }
            });
            tokio::task::yield_now().await;
            idle.abort();
        }
        give(&line, &[due(now, 10), due(now, 11)]);
        assert_eq!(line.next(1).await, Some(due(now, 11)));
        assert_eq!(line.next(0).await, Some(due(now, 10)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_handed_out_in_order_and_after_closing_too() {
        let line = Line::new(vec![0], TIMEOUT);
        let now = Instant::now();
        let dues: Vec<Due> = (0..5).map(|first| due(now, first)).collect();
        assert!(give(&line, &dues).is_empty());
        line.close();
        for expected in &dues {
            assert_eq!(line.next(0).await, Some(*expected));
        }
        assert_eq!(line.next(0).await, None);
        assert_eq!(line.order(), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_by_the_timeout() {
        let line = Line::new(vec![0], TIMEOUT);
        let mut overdue = 0;
        for _ in 0..5000 {
            overdue += give(&line, &[due(Instant::now(), 0)]).len();
            assert!(line.state().waiting.len() <= 1000);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(overdue + line.state().waiting.len() + 1, 5000);
    }
}
