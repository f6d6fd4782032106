//! An inference request of either transport, run.

use super::output::{Tensor, Wanted, tensor};
use crate::server::classify::{Classified, Image, Request, Service, Times};
use crate::server::error::Error;

/// An inference request that has been read and fits its model.
pub(in crate::server) struct Infer {
    pub(in crate::server) request: Request,
    pub(in crate::server) images: Vec<Image>,
    pub(in crate::server) wanted: Vec<Wanted>,
    /// Classes in the outputs `class` and `probabilities`.
    pub(in crate::server) top_k: Option<usize>,
}

/// What an inference request is answered with.
pub(in crate::server) struct Inferred {
    /// Facts of the image, where there is one alone; of several, whether brownout raised the threshold.
    pub(in crate::server) parameters: Vec<(&'static str, Value)>,
    pub(in crate::server) outputs: Vec<Tensor>,
}

/// A parameter of an answer: one of the types that both transports have.
pub(in crate::server) enum Value {
    Text(String),
    Integer(i64),
}

impl Infer {
    /// Runs the images, all of them or none.
    ///
    /// # Errors
    /// An image failed, or there is no room in the queue.
    pub(in crate::server) async fn run(self, service: &Service) -> Result<Inferred, Error> {
        let Self { request, images, wanted, top_k } = self;
        let several = images.len() > 1;
        let images = images.into_iter().map(Ok).collect();
        let each = service.classify(&request, images).await?.into_iter().enumerate().map(|(index, result)| {
            // Where there are several, the sentence says which.
            let named = |error: Error| Error { message: format!("image {index}: {}", error.message), ..error };
            result.map_err(|error| if several { named(error) } else { error })
        });
        let images: Vec<Classified> = each.collect::<Result<_, Error>>()?;
        let parameters = match images.as_slice() {
            [image] => facts(&request, image),
            _ => Vec::new(),
        };
        let parameters = parameters.into_iter().chain(brownout(&images)).collect();
        let outputs = wanted.into_iter().map(|wanted| tensor(&request.model, &images, wanted, top_k)).collect();
        Ok(Inferred { parameters, outputs })
    }
}

/// The highest keep threshold of the images, where brownout raised any.
fn brownout(images: &[Classified]) -> Option<(&'static str, Value)> {
    let raised = images.iter().filter_map(|image| image.answer.brownout);
    let highest = raised.max_by(f64::total_cmp)?;
    // A parameter over gRPC has no fractions.
    Some(("brownout_threshold", Value::Text(highest.to_string())))
}

/// What `/v1/classify` tells of an image beside its classes.
fn facts(request: &Request, image: &Classified) -> Vec<(&'static str, Value)> {
    let described = image.result(request, 0).described;
    let (path, flops) = (described.path, described.flops);
    let Times { decode, preprocess, queue, policy, backbone, total } = image.times;
    let micros = |time: std::time::Duration| Value::Integer(i64::try_from(time.as_micros()).unwrap_or(i64::MAX));
    let count = |count: u64| Value::Integer(i64::try_from(count).unwrap_or(i64::MAX));
    vec![
        ("path", Value::Text(path.policy.to_owned())),
        ("mask", Value::Text(path.mask)),
        ("blocks_kept", count(path.blocks_kept as u64)),
        ("blocks_total", count(path.blocks_total as u64)),
        ("flops_policy", count(flops.policy)),
        ("flops_executed", count(flops.executed)),
        ("flops_full", count(flops.full)),
        ("decode_us", micros(decode)),
        ("preprocess_us", micros(preprocess)),
        ("queue_us", micros(queue)),
        ("policy_us", micros(policy)),
        ("backbone_us", micros(backbone)),
        ("total_us", micros(total)),
    ]
}
