//! The responder's gRPC services.

use std::convert::Infallible;

use blockdrop::proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use blockdrop::proto::inference::model_infer_response::InferOutputTensor;
use blockdrop::proto::inference::model_metadata_response::TensorMetadata;
use blockdrop::proto::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use blockdrop::proto::v1::classifier_server::{Classifier, ClassifierServer};
use blockdrop::proto::v1::classify_stream_response::Result as Either;
use blockdrop::proto::v1::{
    ClassifyRequest, ClassifyResponse, ClassifyStreamResponse, Flops, Path, Prediction, Timing,
};
use futures_util::stream::{BoxStream, StreamExt};
use hyper::body::Incoming;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use super::{BLOCKS, CLASS, FLOPS_EXECUTED, FLOPS_FULL, FLOPS_POLICY, MASK, NAME, OUTPUTS, PROBABILITIES, raw, shape};

/// Bytes of a message, at most.
const MOST: usize = 64 << 20;

#[derive(Clone, Copy)]
struct Canned;

/// Answers a call of either service.
pub(super) async fn answer(
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    if request.uri().path().starts_with("/blockdrop.v1.Classifier/") {
        return ClassifierServer::new(Canned).max_decoding_message_size(MOST).call(request).await;
    }
    GrpcInferenceServiceServer::new(Canned).max_decoding_message_size(MOST).call(request).await
}

type Answered<T> = Result<Response<T>, Status>;

fn no<T>() -> Answered<T> {
    Err(Status::unimplemented("this server only answers"))
}

fn classified() -> ClassifyResponse {
    let prediction =
        |class: u32| Prediction { label: format!("class {class}"), class, probability: PROBABILITIES[class as usize] };
    ClassifyResponse {
        model: "canned".to_owned(),
        version: "1".to_owned(),
        request_id: String::new(),
        predictions: [CLASS, 4, 0, 1, 2].map(prediction).into(),
        path: Some(Path {
            policy: "learned".to_owned(),
            mask: MASK.to_owned(),
            blocks_kept: BLOCKS,
            blocks_total: MASK.len() as u32,
            brownout_threshold: None,
        }),
        flops: Some(Flops {
            policy: FLOPS_POLICY,
            executed: FLOPS_EXECUTED,
            full: FLOPS_FULL,
            ratio: (FLOPS_POLICY + FLOPS_EXECUTED) as f64 / FLOPS_FULL as f64,
        }),
        timing: Some(Timing::default()),
    }
}

#[tonic::async_trait]
impl Classifier for Canned {
    async fn classify(&self, _: Request<ClassifyRequest>) -> Answered<ClassifyResponse> {
        Ok(Response::new(classified()))
    }

    type ClassifyStreamStream = BoxStream<'static, Result<ClassifyStreamResponse, Status>>;

    async fn classify_stream(
        &self,
        request: Request<Streaming<ClassifyRequest>>,
    ) -> Answered<Self::ClassifyStreamStream> {
        let each = |message: Result<ClassifyRequest, Status>| {
            message.map(|_| ClassifyStreamResponse { result: Some(Either::Response(classified())) })
        };
        Ok(Response::new(request.into_inner().map(each).boxed()))
    }
}

fn inferred(request: &ModelInferRequest) -> ModelInferResponse {
    let count = request.inputs.first().and_then(|input| input.shape.first()).copied().unwrap_or(1);
    let count = usize::try_from(count).unwrap_or(1).clamp(1, 4096);
    let output = |(name, datatype, told): (&str, &str, &[i64])| InferOutputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape(told, count),
        ..Default::default()
    };
    ModelInferResponse {
        model_name: "canned".to_owned(),
        model_version: "1".to_owned(),
        outputs: OUTPUTS.map(output).into(),
        raw_output_contents: OUTPUTS.map(|(name, ..)| raw(name, count).into()).into(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Canned {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answered<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answered<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(&self, _: Request<ModelReadyRequest>) -> Answered<ModelReadyResponse> {
        Ok(Response::new(ModelReadyResponse { ready: true }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answered<ServerMetadataResponse> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(ServerMetadataResponse { name: NAME.to_owned(), version, extensions: Vec::new() }))
    }

    async fn model_metadata(&self, _: Request<ModelMetadataRequest>) -> Answered<ModelMetadataResponse> {
        let tensor = |(name, datatype, shape): (&str, &str, &[i64])| TensorMetadata {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.into(),
        };
        Ok(Response::new(ModelMetadataResponse {
            name: "canned".to_owned(),
            versions: vec!["1".to_owned()],
            platform: "none".to_owned(),
            inputs: vec![tensor(("image", "FP32", &[-1, 3, -1, -1]))],
            outputs: OUTPUTS.map(tensor).into(),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answered<ModelInferResponse> {
        Ok(Response::new(inferred(request.get_ref())))
    }

    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Answered<Self::ModelStreamInferStream> {
        let each = |message: Result<ModelInferRequest, Status>| {
            let answer = |message| ModelStreamInferResponse {
                error_message: String::new(),
                infer_response: Some(inferred(&message)),
            };
            message.map(answer)
        };
        Ok(Response::new(request.into_inner().map(each).boxed()))
    }

    async fn model_config(&self, _: Request<ModelConfigRequest>) -> Answered<ModelConfigResponse> {
        no()
    }

    async fn model_statistics(&self, _: Request<ModelStatisticsRequest>) -> Answered<ModelStatisticsResponse> {
        no()
    }

    async fn repository_index(&self, _: Request<RepositoryIndexRequest>) -> Answered<RepositoryIndexResponse> {
        no()
    }

    async fn repository_model_load(
        &self,
        _: Request<RepositoryModelLoadRequest>,
    ) -> Answered<RepositoryModelLoadResponse> {
        no()
    }

    async fn repository_model_unload(
        &self,
        _: Request<RepositoryModelUnloadRequest>,
    ) -> Answered<RepositoryModelUnloadResponse> {
        no()
    }
}
