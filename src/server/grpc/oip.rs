//! `inference.GRPCInferenceService`

use std::collections::HashMap;
use std::mem::take;
use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::call::{Answers, Call, answered, answers};
use super::status::CODE;
use crate::bundle::InputSpec;
use crate::proto::inference::grpc_inference_service_server::GrpcInferenceService;
use crate::proto::inference::infer_parameter::ParameterChoice;
use crate::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::proto::inference::model_infer_response::InferOutputTensor;
use crate::proto::inference::model_metadata_response::TensorMetadata;
use crate::proto::inference::repository_index_response::ModelIndex;
use crate::proto::inference::{
    DataType, InferParameter, InferStatistics, InferTensorContents, ModelConfig, ModelConfigRequest,
    ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelInput, ModelMetadataRequest,
    ModelMetadataResponse, ModelOutput, ModelReadyRequest, ModelReadyResponse, ModelStatistics, ModelStatisticsRequest,
    ModelStatisticsResponse, ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse,
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse, StatisticDuration,
};
use crate::registry::Model;
use crate::server::classify::{Image, Service};
use crate::server::error::{Error, Kind};
use crate::server::oip::{self, Contents, Infer, Inferred, Value, Wanted};
use crate::server::parameters::{Parameters, check_id};
use crate::text::shortened;

pub(super) struct Oip {
    pub(super) service: Arc<Service>,
}

impl Oip {
    /// Answers a message that needs no inference.
    async fn told<Q, A>(
        &self,
        method: &'static str,
        request: &Request<Q>,
        answer: impl FnOnce(&Service, &Q) -> Result<A, Error>,
    ) -> Result<Response<A>, Status> {
        let call = Call::of(request.extensions())?;
        let answer = async { answer(&self.service, request.get_ref()) };
        Ok(Response::new(answered(&self.service, method, &call, answer).await?))
    }
}

/// An empty name is none.
fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn find(service: &Service, name: &str, version: &str) -> Result<Arc<Model>, Error> {
    Ok(service.registry.get(some(name), some(version))?)
}

#[tonic::async_trait]
impl GrpcInferenceService for Oip {
    async fn server_live(&self, request: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        self.told("ServerLive", &request, |_, _| Ok(ServerLiveResponse { live: true })).await
    }

    async fn server_ready(
        &self,
        request: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = |service: &Service, _: &_| Ok(ServerReadyResponse { ready: service.readiness.is_ready() });
        self.told("ServerReady", &request, ready).await
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        self.told("ModelReady", &request, |service, asked| {
            find(service, &asked.name, &asked.version)?;
            Ok(ModelReadyResponse { ready: true })
        })
        .await
    }

    async fn server_metadata(
        &self,
        request: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let oip::ServerMetadata { name, version, extensions } = oip::ServerMetadata::THIS;
        let extensions = extensions.map(str::to_owned).into();
        let metadata = ServerMetadataResponse { name: name.to_owned(), version: version.to_owned(), extensions };
        self.told("ServerMetadata", &request, |_, _| Ok(metadata)).await
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        self.told("ModelMetadata", &request, |service, asked| {
            let found = find(service, &asked.name, &asked.version)?;
            let oip::ModelMetadata { name, versions, platform, inputs, outputs } =
                oip::ModelMetadata::of(&service.registry, &found);
            let tensor = |tensor: oip::TensorMetadata| TensorMetadata {
                name: tensor.name.to_owned(),
                datatype: tensor.datatype.to_owned(),
                shape: tensor.shape,
            };
            let [inputs, outputs] = [inputs, outputs].map(|each| each.into_iter().map(tensor).collect());
            Ok(ModelMetadataResponse { name, versions, platform: platform.to_owned(), inputs, outputs })
        })
        .await
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let answer = infer(&self.service, &call, request.into_inner());
        Ok(Response::new(answered(&self.service, "ModelInfer", &call, answer).await?))
    }

    type ModelStreamInferStream = Answers<ModelStreamInferResponse>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let call = Call::of(request.extensions())?;
        let service = Arc::clone(&self.service);
        let each = move |message: ModelInferRequest| {
            let (service, call) = (Arc::clone(&service), call.message("ModelStreamInfer"));
            let id = check_id("id", &message.id).map_or_else(|_| String::new(), |()| message.id.clone());
            async move {
                let answer = async {
                    call.admit(&service)?;
                    infer(&service, &call, message).await
                };
                match answered(&service, "ModelStreamInfer", &call, answer).await {
                    Ok(response) => {
                        ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                    }
                    // The id says whose error it is, the code what kind of one.
                    Err(error) => {
                        let code = ParameterChoice::StringParam(error.kind.code().to_owned());
                        let code = InferParameter { parameter_choice: Some(code) };
                        let parameters = HashMap::from([(CODE.to_owned(), code)]);
                        let response = ModelInferResponse { id, parameters, ..ModelInferResponse::default() };
                        ModelStreamInferResponse { error_message: error.message, infer_response: Some(response) }
                    }
                }
            }
        };
        Ok(Response::new(answers(Arc::clone(&self.service), request.into_inner(), each)))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        self.told("ModelConfig", &request, |service, asked| {
            let found = find(service, &asked.name, &asked.version)?;
            let oip::ModelConfig { name, platform, backend, max_batch_size, input, output } =
                oip::ModelConfig::of(&found, service.most_images(&found));
            let data_type = |name: &str| DataType::from_str_name(name).unwrap_or(DataType::TypeInvalid).into();
            let input = input.into_iter().map(|tensor| ModelInput {
                name: tensor.name.to_owned(),
                data_type: data_type(tensor.data_type),
                dims: tensor.dims,
            });
            let output = output.into_iter().map(|tensor| ModelOutput {
                name: tensor.name.to_owned(),
                data_type: data_type(tensor.data_type),
                dims: tensor.dims,
            });
            let config = ModelConfig {
                name,
                platform: platform.to_owned(),
                backend: backend.to_owned(),
                max_batch_size: i32::try_from(max_batch_size).unwrap_or(i32::MAX),
                input: input.collect(),
                output: output.collect(),
            };
            Ok(ModelConfigResponse { config: Some(config) })
        })
        .await
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        self.told("ModelStatistics", &request, |service, asked| {
            let found = oip::statistics(&service.registry, some(&asked.name), some(&asked.version))?;
            Ok(ModelStatisticsResponse { model_stats: found.into_iter().map(statistics).collect() })
        })
        .await
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        self.told("RepositoryIndex", &request, |service, _| {
            let entry = |entry: crate::registry::Indexed| ModelIndex {
                name: entry.name,
                version: entry.version,
                state: entry.state.to_owned(),
                reason: entry.reason,
            };
            Ok(RepositoryIndexResponse { models: service.registry.loaded().into_iter().map(entry).collect() })
        })
        .await
    }

    async fn repository_model_load(
        &self,
        _: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        Err(Error::new(Kind::Forbidden, ON_ADMIN).into())
    }

    async fn repository_model_unload(
        &self,
        _: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        Err(Error::new(Kind::Forbidden, ON_ADMIN).into())
    }
}

const ON_ADMIN: &str = "models are loaded and unloaded on the admin listener, \
                        by POST /v2/repository/models/{model}/load and /unload";

fn statistics(model: oip::ModelStatistics) -> ModelStatistics {
    let stats = model.inference_stats;
    let shown = |time: oip::StatisticDuration| Some(StatisticDuration { count: time.count, ns: time.ns });
    ModelStatistics {
        name: model.name,
        version: model.version,
        last_inference: model.last_inference,
        inference_count: model.inference_count,
        execution_count: model.execution_count,
        inference_stats: Some(InferStatistics {
            success: shown(stats.success),
            fail: shown(stats.fail),
            queue: shown(stats.queue),
            compute_input: shown(stats.compute_input),
            compute_infer: shown(stats.compute_infer),
            compute_output: shown(stats.compute_output),
            cache_hit: shown(stats.cache_hit),
            cache_miss: shown(stats.cache_miss),
        }),
        batch_stats: Vec::new(),
    }
}

async fn infer(service: &Service, call: &Call, message: ModelInferRequest) -> Result<ModelInferResponse, Error> {
    let received = Instant::now();
    let _memory = call.memory(service, message.encoded_len())?;
    let ModelInferRequest { model_name, model_version, id, parameters: given, inputs, outputs, raw_input_contents } =
        message;
    check_id("id", &id)?;
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut parameters = Parameters { model: some(model_name), version: some(model_version), ..Parameters::default() };
    for (name, value) in given {
        // Over HTTP only it makes a difference: here outputs are always binary.
        if name != "binary_data_output" {
            parameters.set(&name, text(&value))?;
        }
    }
    let top_k = parameters.top_k()?;
    let wanted = wanted(&outputs)?;
    let request = call.within(parameters.request(service, Arc::clone(call.context()), &call.flow, received)?);
    let spec = &request.model.engine.bundle().manifest.input;
    let images = images(inputs, raw_input_contents, spec, service.most_images(&request.model))?;
    let model = Arc::clone(&request.model);
    let inferred = Infer { request, images, wanted, top_k }.run(service).await?;
    Ok(written(&model, id, inferred))
}

fn text(value: &InferParameter) -> String {
    match &value.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => value.to_string(),
        Some(ParameterChoice::Int64Param(value)) => value.to_string(),
        Some(ParameterChoice::StringParam(value)) => value.clone(),
        Some(ParameterChoice::DoubleParam(value)) => value.to_string(),
        Some(ParameterChoice::Uint64Param(value)) => value.to_string(),
        None => String::new(),
    }
}

fn wanted(outputs: &[InferRequestedOutputTensor]) -> Result<Vec<Wanted>, Error> {
    if outputs.is_empty() {
        return Ok(Wanted::all(true));
    }
    let each = outputs.iter().map(|output| {
        let mut classification = None;
        for (name, value) in &output.parameters {
            let number = match value.parameter_choice {
                Some(ParameterChoice::Int64Param(number)) => usize::try_from(number).ok(),
                Some(ParameterChoice::Uint64Param(number)) => usize::try_from(number).ok(),
                _ => None,
            };
            match (name.as_str(), number) {
                ("binary_data", _) => {}
                ("classification", Some(classes)) => classification = Some(classes),
                (name, _) => {
                    let (name, found) = (shortened(name), shortened(&text(value)));
                    return Err(Error::new(
                        Kind::InvalidParameter,
                        format!(
                            "outputs: found parameter {name} = {found}, expected classification (a number of classes)"
                        ),
                    ));
                }
            }
        }
        Wanted::new(&output.name, classification, true)
    });
    let wanted: Vec<Wanted> = each.collect::<Result<_, Error>>()?;
    Wanted::distinct(&wanted)?;
    Ok(wanted)
}

/// The images of a message's `inputs` and `raw` contents, at most `most`, for a model that takes `spec`.
pub(in crate::server) fn images(
    inputs: Vec<InferInputTensor>,
    raw: Vec<bytes::Bytes>,
    spec: &InputSpec,
    most: usize,
) -> Result<Vec<Image>, Error> {
    let wrong = |problem: String| Error::new(Kind::InvalidBody, format!("inputs: {problem}"));
    let [input] = <[_; 1]>::try_from(inputs)
        .map_err(|found| wrong(format!("found {}, expected one named {}", found.len(), oip::INPUT)))?;
    if let Some(name) = input.parameters.keys().find(|name| name.starts_with("shared_memory")) {
        return Err(wrong(format!("found {}, expected contents: shared memory is not read", shortened(name))));
    }
    let contents = contents(input.contents, raw, &input.datatype)?;
    oip::Expected::new(spec, &input.name, &input.datatype, &input.shape, most)?.images(contents)
}

/// The contents of the only input.
fn contents(typed: Option<InferTensorContents>, raw: Vec<bytes::Bytes>, datatype: &str) -> Result<Contents, Error> {
    let wrong = |problem: String| Error::new(Kind::InvalidBody, format!("inputs: {problem}"));
    let typed = typed.filter(|contents| *contents != InferTensorContents::default());
    match (typed, <[_; 1]>::try_from(raw)) {
        (None, Ok([raw])) => Ok(Contents::Raw(raw)),
        (None, Err(raw)) if raw.is_empty() => {
            Err(wrong("found no contents, expected raw_input_contents or contents".to_owned()))
        }
        (None, Err(raw)) => Err(wrong(format!("found {} raw_input_contents, expected one", raw.len()))),
        (Some(mut contents), Err(raw)) if raw.is_empty() => {
            let (floats, files) = (take(&mut contents.fp32_contents), take(&mut contents.bytes_contents));
            let others = contents != InferTensorContents::default();
            let others = others || !(floats.is_empty() || files.is_empty());
            match datatype {
                "BYTES" if !files.is_empty() && !others => Ok(Contents::Files(files)),
                "FP32" if !floats.is_empty() && !others => Ok(Contents::Floats(floats)),
                _ => Err(wrong(format!(
                    "found contents that are not of datatype '{}', expected fp32_contents for FP32 or bytes_contents \
                     for BYTES",
                    shortened(datatype)
                ))),
            }
        }
        (Some(_), _) => Err(wrong("found contents and raw_input_contents, expected one of them".to_owned())),
    }
}

fn written(model: &Model, id: String, inferred: Inferred) -> ModelInferResponse {
    let parameter = |(name, value): (&'static str, Value)| {
        let choice = match value {
            Value::Text(text) => ParameterChoice::StringParam(text),
            Value::Integer(number) => ParameterChoice::Int64Param(number),
        };
        (name.to_owned(), InferParameter { parameter_choice: Some(choice) })
    };
    let (mut outputs, mut raw) = (Vec::new(), Vec::new());
    for tensor in inferred.outputs {
        raw.push(tensor.data.raw().into());
        outputs.push(InferOutputTensor {
            name: tensor.name.to_owned(),
            datatype: tensor.data.datatype().to_owned(),
            shape: tensor.shape.into_iter().map(|size| size as i64).collect(),
            parameters: HashMap::new(),
            contents: None,
        });
    }
    ModelInferResponse {
        model_name: model.name.clone(),
        model_version: model.version.to_string(),
        id,
        parameters: inferred.parameters.into_iter().map(parameter).collect(),
        outputs,
        raw_output_contents: raw,
    }
}
