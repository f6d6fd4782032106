//! `blockdrop.v1.Classifier`

use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::call::{Answers, Call, answered, answers};
use crate::proto::v1::classifier_server::Classifier;
use crate::proto::v1::classify_stream_response::Result as Either;
use crate::proto::v1::{self, ClassifyRequest, ClassifyResponse, ClassifyStreamResponse, Flops, Path, Prediction};
use crate::server::classify::{Image, ImageResult, Service, Timing};
use crate::server::error::{Error, Kind};
use crate::server::parameters::{Parameters, check_id};

pub(super) struct Typed {
    pub(super) service: Arc<Service>,
}

#[tonic::async_trait]
impl Classifier for Typed {
    async fn classify(&self, request: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let message = request.into_inner();
        let answer = classify(&self.service, &call, message);
        Ok(Response::new(answered(&self.service, "Classify", &call, answer).await?))
    }

    type ClassifyStreamStream = Answers<ClassifyStreamResponse>;

    async fn classify_stream(
        &self,
        request: Request<Streaming<ClassifyRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        let call = Call::of(request.extensions())?;
        let service = Arc::clone(&self.service);
        let each = move |message: ClassifyRequest| {
            let (service, call) = (Arc::clone(&service), call.message("ClassifyStream"));
            let request_id = shown_id(&call, &message);
            async move {
                let answer = async {
                    call.admit(&service)?;
                    classify(&service, &call, message).await
                };
                let result = match answered(&service, "ClassifyStream", &call, answer).await {
                    Ok(response) => Either::Response(response),
                    Err(Error { kind, message, .. }) => {
                        Either::Error(v1::Error { message, code: kind.code().to_owned(), request_id })
                    }
                };
                ClassifyStreamResponse { result: Some(result) }
            }
        };
        Ok(Response::new(answers(Arc::clone(&self.service), request.into_inner(), each)))
    }
}

/// The id that an answer has: the message's own, or the call's where that has none or one that is refused.
fn shown_id(call: &Call, message: &ClassifyRequest) -> String {
    let usable = !message.request_id.is_empty() && check_id("request_id", &message.request_id).is_ok();
    if usable { message.request_id.clone() } else { call.context().id().to_owned() }
}

async fn classify(service: &Service, call: &Call, message: ClassifyRequest) -> Result<ClassifyResponse, Error> {
    let received = Instant::now();
    let _memory = call.memory(service, message.encoded_len())?;
    check_id("request_id", &message.request_id)?;
    let request_id = shown_id(call, &message);
    let ClassifyRequest { image, model, version, path, threshold, max_blocks, max_flops, top_k, .. } = message;
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let parameters = Parameters {
        model: some(model),
        version: some(version),
        top_k: top_k.map(|value| value.to_string()),
        path: some(path),
        threshold: threshold.map(|value| value.to_string()),
        max_blocks: max_blocks.map(|value| value.to_string()),
        max_flops: max_flops.map(|value| value.to_string()),
        timeout: None,
    };
    let top_k = parameters.top_k()?.unwrap_or(5);
    let request = call.within(parameters.request(service, Arc::clone(call.context()), &call.flow, received)?);
    if image.is_empty() {
        return Err(Error::new(Kind::EmptyBody, "image: found no bytes, expected an encoded image"));
    }
    let image = service.classify(&request, vec![Ok(Image::Encoded(image))]).await?.remove(0)?;
    Ok(shown(&request.model.name, request.model.version, request_id, image.result(&request, top_k)))
}

fn shown(model: &str, version: u64, request_id: String, result: ImageResult) -> ClassifyResponse {
    let ImageResult { described, timing_ms } = result;
    let Timing { decode, preprocess, queue, policy, backbone, total } = timing_ms;
    let prediction = |prediction: crate::answer::Prediction| Prediction {
        label: prediction.label,
        class: prediction.class as u32,
        probability: prediction.probability,
    };
    let (path, flops) = (described.path, described.flops);
    ClassifyResponse {
        model: model.to_owned(),
        version: version.to_string(),
        request_id,
        predictions: described.predictions.into_iter().map(prediction).collect(),
        path: Some(Path {
            policy: path.policy.to_owned(),
            mask: path.mask,
            blocks_kept: path.blocks_kept as u32,
            blocks_total: path.blocks_total as u32,
            brownout_threshold: path.brownout_threshold,
        }),
        flops: Some(Flops { policy: flops.policy, executed: flops.executed, full: flops.full, ratio: flops.ratio }),
        timing: Some(v1::Timing {
            decode_ms: decode,
            preprocess_ms: preprocess,
            queue_ms: queue,
            policy_ms: policy,
            backbone_ms: backbone,
            total_ms: total,
        }),
    }
}
