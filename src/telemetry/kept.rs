//! How many blocks images kept: a histogram that grows with a model.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// A histogram for each model with a bucket for each number of blocks. A histogram of the `prometheus` crate has its
/// buckets for good; a model that is loaded anew may have more blocks.
#[derive(Clone)]
pub(super) struct KeptBlocks {
    desc: Desc,
    models: Arc<Mutex<BTreeMap<String, Kept>>>,
}

/// Images of one model by the number of blocks that they kept.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<u64>>>);

impl KeptBlocks {
    pub(super) fn new(name: &str, help: &str) -> Self {
        let desc = Desc::new(name.to_owned(), help.to_owned(), vec!["model".to_owned()], HashMap::new());
        Self { desc: desc.expect("a valid name"), models: Arc::default() }
    }

    /// The histogram of a model, with buckets for 0 to at least `blocks`.
    pub(super) fn model(&self, name: &str, blocks: usize) -> Kept {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = models.entry(name.to_owned()).or_default().clone();
        kept.grow(blocks);
        kept
    }
}

impl Kept {
    fn counts(&self) -> MutexGuard<'_, Vec<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, blocks: usize) {
        let mut counts = self.counts();
        let buckets = counts.len().max(blocks + 1);
        counts.resize(buckets, 0);
    }

    /// # Panics
    /// There are not so many blocks.
    pub(super) fn observe(&self, blocks: usize) {
        self.counts()[blocks] += 1;
    }

    /// Blocks that all images kept together.
    pub(super) fn sum(&self) -> u64 {
        self.counts().iter().zip(0..).map(|(images, blocks): (_, u64)| images * blocks).sum()
    }

    fn histogram(&self) -> Histogram {
        let counts = self.counts().clone();
        let (mut images, mut sum) = (0, 0);
        let buckets = counts.iter().enumerate().map(|(blocks, count)| {
            images += count;
            sum += blocks as u64 * count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(blocks as f64);
            bucket.set_cumulative_count(images);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(images);
        histogram.set_sample_sum(sum as f64);
        histogram
    }
}

impl Collector for KeptBlocks {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = models.iter().map(|(name, kept)| {
            let mut label = LabelPair::default();
            label.set_name("model".to_owned());
            label.set_value(name.clone());
            let mut metric = Metric::from_label(vec![label]);
            metric.set_histogram(kept.histogram());
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_grows_and_keeps_its_counts() {
        let all = KeptBlocks::new("kept", "Blocks kept.");
        let few = all.model("net", 2);
        few.observe(2);
        few.observe(0);
        let many = all.model("net", 4);
        many.observe(4);
        few.observe(2);
        let histogram = all.model("net", 1).histogram();
        let buckets = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        assert_eq!(buckets.collect::<Vec<_>>(), [(0.0, 1), (1.0, 1), (2.0, 3), (3.0, 3), (4.0, 4)]);
        assert_eq!((histogram.get_sample_count(), histogram.get_sample_sum()), (4, 8.0));
        assert_eq!(few.sum(), 8);
        assert_eq!(all.collect()[0].get_metric().len(), 1);
    }
}
