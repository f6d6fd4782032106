//! A bounded number of turns at something, given to flows in an order that is [fair](super::fair).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::admission::Flow;
use super::fair::{FlowId, Flows, Place};

/// Turns that are had at the same time, at most so many.
#[derive(Debug)]
pub struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Not had by anyone; where there are some, nobody waits.
    free: usize,
    flows: Flows,
    waiting: BTreeMap<Place, (FlowId, oneshot::Sender<Turn>)>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// At most `most` at a time.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: most, flows: Flows::new(), waiting: BTreeMap::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub async fn turn(self: &Arc<Self>, flow: &Flow) -> Turn {
        let (given, _waits) = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(Arc::clone(self)));
            }
            let oldest = state.waiting.first_key_value().map(|(&place, _)| place);
            let place = state.flows.enter(flow.id(), oldest);
            let (give, given) = oneshot::channel();
            state.waiting.insert(place, (flow.id(), give));
            (given, Waits { turns: self, place })
        };
        given.await.expect("who waits is given a turn")
    }

    /// Gives a turn that has ended to the next who waits.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let give = {
                let mut state = self.lock();
                let Some((_, (flow, give))) = state.waiting.pop_first() else {
                    state.free += 1;
                    return;
                };
                state.flows.take(flow, true);
                give
            };
            match give.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // Who waited has left this moment; the turn is still this one.
                Err(mut turn) => drop(turn.0.take()),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

/// A place among those who wait, given up when dropped.
struct Waits<'t> {
    turns: &'t Turns,
    place: Place,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if let Some((flow, _)) = state.waiting.remove(&self.place) {
            state.flows.take(flow, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    type Waiting<'t> = Pin<Box<dyn Future<Output = Turn> + 't>>;

    fn poll(waiting: &mut Waiting<'_>) -> Option<Turn> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_light_flow_is_next_though_another_has_many_waiting() {
        let (turns, flood, light) = (Turns::new(1), Flow::new(), Flow::new());
        let mut first: Waiting<'_> = Box::pin(turns.turn(&flood));
        let had = poll(&mut first).unwrap();
        let mut many: Vec<Waiting<'_>> = (0..50).map(|_| Box::pin(turns.turn(&flood)) as _).collect();
        assert!(many.iter_mut().all(|waiting| poll(waiting).is_none()));
        let mut one: Waiting<'_> = Box::pin(turns.turn(&light));
        assert!(poll(&mut one).is_none());
        drop(had);
        let had = poll(&mut many[0]).expect("the first of the flood waits longer");
        assert!(poll(&mut one).is_none());
        drop(had);
        assert!(poll(&mut one).is_some());
    }

    proptest! {
        /// Whoever takes, leaves or gives up: never more turns than there are, none lost, and each flow in its order.
        #[test]
        fn turns_are_bounded_and_none_is_lost(
            steps in prop::collection::vec((0u8..3, 0usize..100), 0..150), most in 1usize..4,
        ) {
            let (turns, flows) = (Turns::new(most), [(); 3].map(|()| Flow::new()));
            let mut waiting: Vec<(usize, Waiting<'_>)> = Vec::new();
            let mut had: Vec<Turn> = Vec::new();
            for (what, which) in steps {
                match what {
                    0 => waiting.push((which % 3, Box::pin(turns.turn(&flows[which % 3])))),
                    1 if !had.is_empty() => drop(had.swap_remove(which % had.len())),
                    2 if !waiting.is_empty() => drop(waiting.remove(which % waiting.len())),
                    _ => {}
                }
                let mut passed_over = [false; 3];
                waiting.retain_mut(|(flow, waiting)| {
                    let turn = poll(waiting);
                    assert!(turn.is_none() || !passed_over[*flow], "an older one of its flow waits");
                    passed_over[*flow] |= turn.is_none();
                    let waits = turn.is_none();
                    had.extend(turn);
                    waits
                });
                prop_assert!(had.len() <= most);
                prop_assert!(had.len() == most || waiting.is_empty(), "nobody waits while there is a turn");
            }
            drop(waiting);
            drop(had);
            let state = turns.lock();
            prop_assert_eq!((state.free, state.waiting.len(), state.flows.active()), (most, 0, 0));
        }
    }
}
