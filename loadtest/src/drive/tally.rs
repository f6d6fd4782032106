//! How a reply is counted.

use crate::record::{Cause, Image, Reply, Stages, Tally};

/// Kinds of causes that are told apart; the rest are counted as [`OTHERS`].
const KINDS: usize = 100;
const OTHERS: &str = "others";

/// Microseconds of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// From due to done; of a request that timed out at least the timeout.
    pub(super) latency: u64,
    /// From due to sent; absent where it was never sent, or due when it was sent.
    pub(super) delay: Option<u64>,
    /// From sent to done.
    pub(super) service: u64,
}

impl Tally {
    /// Counts a reply; `sent` is counted apart, when a request is sent. `within`: microseconds that count as in time.
    pub(super) fn count(&mut self, reply: &Reply, spent: Spent, within: u64) {
        if let Some(delay) = spent.delay {
            self.delay.record(delay);
        }
        match reply {
            Reply::Answered(images) => {
                self.counts.answered += 1;
                self.in_time += u64::from(spent.latency <= within);
                self.latency.record(spent.latency);
                self.service.record(spent.service);
                self.answer(images, spent.latency);
            }
            Reply::Refused(cause) => {
                self.counts.refused += 1;
                self.refusal.record(spent.latency);
                self.cause(cause, 1);
            }
            Reply::Failed(cause) => {
                self.counts.failed += 1;
                self.cause(cause, 1);
            }
            Reply::TimedOut => {
                self.counts.timed_out += 1;
                self.latency.record(spent.latency);
            }
            Reply::Broken(_) => self.counts.broken += 1,
        }
    }

    fn answer(&mut self, images: &[Image], latency: u64) {
        let (mut blocks, mut told) = (0_u32, 0);
        for image in images {
            self.images += 1;
            if let Some(correct) = image.correct {
                self.labelled += 1;
                self.correct += u64::from(correct);
            }
            self.changed += u64::from(image.changed);
            if let Some(kept) = image.blocks {
                blocks += u32::from(kept);
                told += 1;
                *self.blocks.entry(kept).or_default() += 1;
            }
            if let Some(flops) = image.flops {
                self.counted += 1;
                self.flops_spent += flops.spent as f64;
                self.flops_full += flops.full as f64;
            }
            if let Some(stages) = &image.stages {
                self.timed += 1;
                self.stages = sum(&self.stages, stages);
            }
        }
        if let Some(mean) = (blocks + told / 2).checked_div(told) {
            self.by_blocks.entry(u16::try_from(mean).unwrap_or(u16::MAX)).or_default().record(latency);
        }
    }

    fn cause(&mut self, cause: &Cause, count: u64) {
        if let Some(known) = self.causes.get_mut(&cause.kind) {
            known.0 += count;
            return;
        }
        let kind = if self.causes.len() < KINDS { cause.kind.clone() } else { OTHERS.to_owned() };
        self.causes.entry(kind).or_insert_with(|| (0, cause.message.clone())).0 += count;
    }

    /// Adds what another tally of the same arm counted.
    pub fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.good += other.good;
        self.in_time += other.in_time;
        let histograms = [
            (&mut self.latency, &other.latency),
            (&mut self.service, &other.service),
            (&mut self.delay, &other.delay),
            (&mut self.refusal, &other.refusal),
        ];
        for (ours, theirs) in histograms {
            ours.add(theirs);
        }
        self.images += other.images;
        self.labelled += other.labelled;
        self.correct += other.correct;
        self.changed += other.changed;
        for (blocks, latencies) in &other.by_blocks {
            self.by_blocks.entry(*blocks).or_default().add(latencies);
        }
        for (blocks, images) in &other.blocks {
            *self.blocks.entry(*blocks).or_default() += images;
        }
        self.counted += other.counted;
        self.flops_spent += other.flops_spent;
        self.flops_full += other.flops_full;
        self.timed += other.timed;
        self.stages = sum(&self.stages, &other.stages);
        for (kind, (count, message)) in &other.causes {
            self.cause(&Cause { kind: kind.clone(), message: message.clone() }, *count);
        }
        self.seconds += other.seconds;
    }
}

fn sum(one: &Stages, other: &Stages) -> Stages {
    Stages {
        decode: one.decode + other.decode,
        preprocess: one.preprocess + other.preprocess,
        queue: one.queue + other.queue,
        policy: one.policy + other.policy,
        backbone: one.backbone + other.backbone,
        total: one.total + other.total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Fault, Flops};

    fn image(blocks: u16, correct: Option<bool>) -> Image {
        Image {
            correct,
            changed: correct == Some(false),
            blocks: Some(blocks),
            flops: Some(Flops { spent: 10, full: 40 }),
            stages: Some(Stages { decode: 0.5, total: 2.0, ..Stages::default() }),
        }
    }

    fn spent(latency: u64) -> Spent {
        Spent { latency, delay: Some(2), service: latency - 2 }
    }

    #[test]
    fn every_kind_of_reply_is_counted_where_it_belongs() {
        let mut tally = Tally::default();
        let cause = |kind: &str| Cause { kind: kind.to_owned(), message: format!("{kind}, at length") };
        tally.count(&Reply::Answered(vec![image(3, Some(true)), image(6, Some(false))]), spent(1000), 1000);
        tally.count(&Reply::Answered(vec![Image::default()]), spent(1001), 1000);
        tally.count(&Reply::Refused(cause("503")), spent(50), 1000);
        tally.count(&Reply::Failed(cause("connect")), spent(60), 1000);
        tally.count(&Reply::TimedOut, Spent { latency: 70, delay: None, service: 0 }, 1000);
        tally.count(&Reply::Broken(Fault::Junk), spent(80), 1000);
        tally.counts.sent = 6;
        assert!(tally.counts.whole(), "{:?}", tally.counts);
        assert_eq!((tally.counts.answered, tally.in_time, tally.images), (2, 1, 3));
        assert_eq!((tally.labelled, tally.correct, tally.changed), (2, 1, 1));
        assert_eq!((tally.latency.len(), tally.service.len(), tally.delay.len(), tally.refusal.len()), (3, 2, 5, 1));
        assert_eq!(tally.blocks.into_iter().collect::<Vec<_>>(), [(3, 1), (6, 1)]);
        // The mean of 3 and 6, rounded.
        assert_eq!(tally.by_blocks.keys().collect::<Vec<_>>(), [&5]);
        assert_eq!((tally.counted, tally.flops_spent, tally.flops_full), (2, 20.0, 80.0));
        assert_eq!((tally.timed, tally.stages.decode, tally.stages.total), (2, 1.0, 4.0));
        assert_eq!(tally.causes["503"], (1, "503, at length".to_owned()));
        assert_eq!(tally.causes.len(), 2);
    }

    #[test]
    fn adding_two_tallies_is_counting_in_one() {
        let replies: Vec<Reply> = (0..60)
            .map(|at| match at % 4 {
                0 => Reply::Answered(vec![image(at % 5, Some(at % 3 == 0))]),
                1 => Reply::Refused(Cause { kind: format!("{}", at % 3), message: String::new() }),
                2 => Reply::TimedOut,
                _ => Reply::Broken(Fault::HalfClose),
            })
            .collect();
        let count = |replies: &[Reply]| {
            let mut tally = Tally { seconds: 1.0, ..Tally::default() };
            replies.iter().enumerate().for_each(|(at, reply)| tally.count(reply, spent(at as u64 % 7 + 10), 15));
            tally
        };
        let mut whole = count(&replies);
        whole.seconds = 2.0;
        let mut sum = count(&replies[..28]);
        sum.add(&count(&replies[28..]));
        assert_eq!(format!("{sum:?}"), format!("{whole:?}"));
    }

    #[test]
    fn causes_that_never_recur_are_bounded() {
        let mut tally = Tally::default();
        for at in 0..1000 {
            let cause = Cause { kind: format!("kind {at}"), message: String::new() };
            tally.count(&Reply::Failed(cause), spent(10), 10);
        }
        assert_eq!(tally.causes.len(), KINDS + 1);
        assert_eq!(tally.causes.values().map(|cause| cause.0).sum::<u64>(), 1000);
    }
}
