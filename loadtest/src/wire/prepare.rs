//! Before the clock starts: who the servers are, whether they have what the plan asks for, and one request to each.

use std::sync::Arc;
use std::time::Duration;

use blockdrop::proto::inference::{
    ModelMetadataRequest, ModelMetadataResponse, ServerMetadataRequest, ServerMetadataResponse,
};
use blockdrop::proto::v1::{ClassifyRequest, ClassifyResponse};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode, Uri};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::door::{Door, PATIENCE, escaped};
use super::grpc::Lines;
use super::judge::Judge;
use super::mail::{Asked, Items, Mail, datatype};
use super::outcome::{How, Kinds, short};
use super::tensor::{Described, Wanted, shown};
use super::{Arm, Shared, Wire, WireError, http};
use crate::images::Pool;
use crate::plan::{self, Datatype, Plan, Protocol};
use crate::target::Target;

/// For a request that is broken on purpose, at most.
const MOST_PATIENCE: Duration = Duration::from_secs(2);

impl Wire {
    /// Asks the servers of `plan` what they have, writes the requests for the images of `pool`, and sends the first one to
    /// each arm.
    ///
    /// # Errors
    /// A server cannot be reached, lacks the model, the input or the output, has them of another datatype or shape, or
    /// refuses the first request for what it asks (not for its image); each with what was found and what was expected.
    pub async fn prepare(plan: &Plan, pool: &Pool) -> Result<Self, WireError> {
        let request = &plan.request;
        check(request)?;
        let items = Arc::new(Items::new(pool, request)?);
        let boundary = format!("{:032x}", ChaCha8Rng::seed_from_u64(plan.seed).random::<u128>());
        let mut arms = Vec::with_capacity(plan.arms.len());
        for arm in &plan.arms {
            let door = Door::open(arm, request).await?;
            let Found { server, model, wanted } = door.found(request).await?;
            let mail = Mail::new(Arc::clone(&items), request, arm, &model, &wanted, &boundary)?;
            let (uri, headers) = door.request(request, &model, &boundary)?;
            let judge = Judge::new(pool.len(), random(arm, request.images));
            arms.push(Arm {
                addresses: door.addresses,
                uri,
                headers,
                mail,
                wanted,
                judge,
                lines: Lines::default(),
                server,
            });
        }
        let wire = Self(Arc::new(Shared {
            protocol: request.protocol,
            arms,
            labels: pool.pictures().iter().map(|picture| picture.label).collect(),
            kinds: Kinds::default(),
            patience: request.timeout.min(MOST_PATIENCE),
            single: request.new_connections,
        }));
        for (index, arm) in plan.arms.iter().enumerate() {
            wire.try_first(index, arm).await?;
        }
        Ok(wire)
    }

    /// Sends the first request. What it is refused for is found before the run and not a thousand times in it.
    async fn try_first(&self, index: usize, arm: &plan::Arm) -> Result<(), WireError> {
        let mut caller = self.caller(index);
        let asked = tokio::time::timeout(PATIENCE, caller.ask(Asked::Images { first: 0 })).await;
        let Ok(Err(problem)) = asked else { return Ok(()) };
        let of_the_image = ["invalid_image", "unsupported_image_type", "image_too_large", "empty_body"];
        let number = problem.kind.split(' ').next().unwrap_or("");
        let refused =
            matches!(number, "400" | "401" | "403" | "404" | "405" | "413" | "415" | "422" | "INVALID_ARGUMENT")
                || matches!(number, "UNAUTHENTICATED" | "PERMISSION_DENIED" | "NOT_FOUND" | "UNIMPLEMENTED")
                || (number == "stream" && problem.how == How::Input);
        if !refused || of_the_image.iter().any(|code| problem.kind.ends_with(code)) {
            return Ok(());
        }
        Err(WireError::mismatch(
            arm,
            format!("the first request answered with {}", short(&problem.message)),
            "a result",
        ))
    }
}

/// The names of the classes of an arm's model, in their order, from a server that tells them: blockdrop's
/// `GET /v1/models/{name}`, or over gRPC its `blockdrop.v1.Classifier`. `None` from other servers.
///
/// # Errors
/// The server cannot be reached, or has no such model.
pub async fn classes(arm: &plan::Arm, request: &plan::Request) -> Result<Option<Vec<String>>, WireError> {
    let door = Door::open(arm, request).await?;
    if http(request.protocol) {
        return Ok(door.model().await?.map(|model| model.labels));
    }
    Ok(door.typed().await?.map(|answer| {
        let mut labels: Vec<(u32, String)> =
            answer.predictions.into_iter().map(|prediction| (prediction.class, prediction.label)).collect();
        labels.sort();
        labels.into_iter().map(|(_, label)| label).collect()
    }))
}

/// How the model of an arm wants its pixels, from a server that tells it over HTTP: blockdrop. `None` from others.
///
/// # Errors
/// The server cannot be reached, or has no such model.
pub async fn input(arm: &plan::Arm, request: &plan::Request) -> Result<Option<Input>, WireError> {
    if !http(request.protocol) {
        return Ok(None);
    }
    Ok(Door::open(arm, request).await?.model().await?.and_then(|model| model.input))
}

/// What no server is needed for to see.
fn check(request: &plan::Request) -> Result<(), WireError> {
    let wrong = |found: String, expected: &str| Err(WireError::Request { found, expected: expected.to_owned() });
    let protocol = request.protocol;
    if request.images == 0 {
        return wrong("0 images".to_owned(), "1 or more");
    }
    if request.images > 1 && !protocol.takes_several() {
        let found = format!("{} images with protocol {protocol:?}", request.images);
        return wrong(found, "1: classify-multipart and the inference protocol take several");
    }
    if request.new_connections && !http(protocol) {
        return wrong(format!("new connections with protocol {protocol:?}"), "a protocol over HTTP/1.1 for them");
    }
    if let Datatype::Fp32 { height, width, std, .. } = &request.datatype {
        let fits = *height > 0 && *width > 0 && u64::from(*height) * u64::from(*width) <= 64_000_000;
        if !fits || std.iter().any(|std| *std == 0.0 || !std.is_finite()) {
            let found = format!("height {height}, width {width}, std {std:?}");
            return wrong(found, "sizes from 1, at most 64 million pixels, and deviations other than 0");
        }
    }
    Ok(())
}

/// Whether an arm draws its blocks so that an image's answers differ: anew for each request, or by the place of the image
/// in one.
fn random(arm: &plan::Arm, images: usize) -> bool {
    let path = arm.parameters.iter().find(|(name, _)| name == "path").map_or("", |(_, value)| value);
    path.strip_prefix("random_k:").is_some_and(|rest| images > 1 || !rest.contains(':'))
}

/// What was found out about a server.
struct Found {
    server: String,
    /// The name to ask for; empty where the server is to choose.
    model: String,
    wanted: Wanted,
}

/// blockdrop's description of a model.
#[derive(Deserialize)]
struct Model {
    name: String,
    version: String,
    #[serde(default)]
    default: bool,
    labels: Vec<String>,
    input: Option<Input>,
}

/// How blockdrop says that a model wants its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Input {
    pub height: u32,
    pub width: u32,
    /// Of red, green and blue, in values from 0 to 1.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// The inference protocol's description of a model.
#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    versions: Option<Vec<String>>,
    #[serde(default)]
    inputs: Vec<Described>,
    #[serde(default)]
    outputs: Vec<Described>,
}

impl Door<'_> {
    /// Where and how all requests of the run go.
    fn request(&self, request: &plan::Request, model: &str, boundary: &str) -> Result<(Uri, HeaderMap), WireError> {
        let arm = self.arm;
        let path = match request.protocol {
            Protocol::Classify | Protocol::ClassifyMultipart => {
                let named = [("model", &arm.model), ("version", &arm.version)];
                let named = named.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
                let given = arm.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                let pairs: Vec<String> =
                    named.chain(given).map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
                let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
                format!("{}/v1/classify{query}", self.base)
            }
            Protocol::OipJson | Protocol::OipBinary => format!("{}/infer", self.model_path(model)),
            Protocol::GrpcOip => format!("{}/inference.GRPCInferenceService/ModelInfer", self.base),
            Protocol::GrpcOipStream => format!("{}/inference.GRPCInferenceService/ModelStreamInfer", self.base),
            Protocol::Grpc => format!("{}/blockdrop.v1.Classifier/Classify", self.base),
            Protocol::GrpcStream => format!("{}/blockdrop.v1.Classifier/ClassifyStream", self.base),
        };
        let multipart = format!("multipart/form-data; boundary={boundary}");
        let content_type = match request.protocol {
            Protocol::Classify | Protocol::OipBinary => "application/octet-stream",
            Protocol::ClassifyMultipart => &multipart,
            Protocol::OipJson => "application/json",
            _ => "application/grpc",
        };
        let (uri, mut headers) = self.head(&path, !http(request.protocol))?;
        headers.insert(CONTENT_TYPE, self.value(content_type)?);
        if request.new_connections {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok((uri, headers))
    }

    /// Whether the server has what the arm asks for.
    async fn found(&self, request: &plan::Request) -> Result<Found, WireError> {
        match request.protocol {
            Protocol::Classify | Protocol::ClassifyMultipart => {
                let model = self.model().await?.ok_or_else(|| {
                    self.mismatch("no /v1/models at the server", "blockdrop: others speak the inference protocol")
                })?;
                let server = sentence(&self.server_http().await?, &model.name, &model.version);
                Ok(Found { server, model: model.name, wanted: Wanted::default() })
            }
            Protocol::OipJson | Protocol::OipBinary => {
                let model = match &self.arm.model {
                    Some(model) => model.clone(),
                    None => {
                        let default = self.model().await?.map(|model| model.name);
                        default.ok_or_else(|| self.mismatch("no model", "its name: the server does not tell one"))?
                    }
                };
                let server = self.server_http().await?;
                let answer = self.get(&self.model_path(&model)).await?;
                let metadata: Metadata = self.json(&format!("model '{model}'"), &answer)?;
                self.fits(request, &server, model, metadata)
            }
            Protocol::GrpcOip | Protocol::GrpcOipStream => {
                let server = self.server_grpc().await?;
                let model = self.arm.model.clone().unwrap_or_default();
                let asked =
                    ModelMetadataRequest { name: model.clone(), version: self.arm.version.clone().unwrap_or_default() };
                let found = self.call("/inference.GRPCInferenceService/ModelMetadata", &asked).await;
                let found: ModelMetadataResponse =
                    found.map_err(|problem| self.refused(&problem, "the model's metadata"))?;
                let described = |tensor: blockdrop::proto::inference::model_metadata_response::TensorMetadata| {
                    Described { name: tensor.name, datatype: tensor.datatype, shape: tensor.shape }
                };
                let metadata = Metadata {
                    name: found.name,
                    versions: Some(found.versions),
                    inputs: found.inputs.into_iter().map(described).collect(),
                    outputs: found.outputs.into_iter().map(described).collect(),
                };
                self.fits(request, &server, model, metadata)
            }
            Protocol::Grpc | Protocol::GrpcStream => {
                let server = self.server_grpc().await?;
                let answer = self.typed().await?.ok_or_else(|| {
                    self.mismatch("no blockdrop.v1.Classifier at the server", "blockdrop's gRPC listener")
                })?;
                let server = sentence(&server, &answer.model, &answer.version);
                Ok(Found { server, model: answer.model, wanted: Wanted::default() })
            }
        }
    }

    /// Whether a model of the inference protocol takes the input and has the output.
    fn fits(
        &self,
        request: &plan::Request,
        server: &Server,
        model: String,
        metadata: Metadata,
    ) -> Result<Found, WireError> {
        let Metadata { name, versions, inputs, outputs } = metadata;
        let listed = || inputs.iter().map(shown).collect::<Vec<_>>().join(", ");
        let Some(input) = inputs.iter().find(|input| input.name == request.input) else {
            let found = format!("inputs {} of model '{name}'", listed());
            return Err(self.mismatch(found, format!("one named '{}'", request.input)));
        };
        let found = || format!("input {} of model '{name}'", shown(input));
        // blockdrop tells of FP32 and takes files under the same name too.
        let files = server.name.starts_with("blockdrop") && request.datatype == Datatype::Bytes;
        if input.datatype != datatype(request) && !files {
            return Err(self.mismatch(found(), format!("datatype {}", datatype(request))));
        }
        if let Datatype::Fp32 { height, width, .. } = request.datatype {
            let sent = [request.images as i64, 3, i64::from(height), i64::from(width)];
            let fits = |(told, sent): (&i64, &i64)| *told < 0 || told == sent;
            if input.shape.len() != sent.len() || !input.shape.iter().zip(&sent).all(fits) {
                return Err(self.mismatch(found(), format!("one that takes {sent:?}")));
            }
        }
        let wanted = Wanted::of(&outputs, request.output.as_deref())
            .map_err(|(found, expected)| self.mismatch(format!("{found} of model '{name}'"), expected))?;
        let newest = versions.unwrap_or_default().pop().unwrap_or_default();
        let version = self.arm.version.as_ref().unwrap_or(&newest);
        Ok(Found { server: sentence(server, &name, version), model, wanted })
    }

    /// blockdrop's description of the arm's model, or of the server's default; `None` from another server.
    async fn model(&self) -> Result<Option<Model>, WireError> {
        #[derive(Deserialize)]
        struct Listed {
            models: Vec<Model>,
        }
        let answer = self.get(&format!("{}/v1/models", self.base)).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let Some(name) = &self.arm.model else {
            let Listed { models } = self.json("models", &answer)?;
            let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
            let found = format!("no default among the models {}", names.join(", "));
            let default = models.into_iter().find(|model| model.default);
            return default.map(Some).ok_or_else(|| self.mismatch(found, "the arm to name one"));
        };
        let version = self.arm.version.as_ref().map(|version| format!("?version={}", escaped(version)));
        let path = format!("{}/v1/models/{}{}", self.base, escaped(name), version.unwrap_or_default());
        let answer = self.get(&path).await?;
        self.json(&format!("model '{name}'"), &answer).map(Some)
    }

    /// Has `blockdrop.v1` classify a picture of nothing; `None` where the service is not there.
    async fn typed(&self) -> Result<Option<ClassifyResponse>, WireError> {
        let mut picture = Vec::new();
        let written =
            image::RgbImage::new(16, 16).write_to(&mut std::io::Cursor::new(&mut picture), image::ImageFormat::Png);
        drop(written);
        const ALL: u64 = 1 << 20;
        let asked = ClassifyRequest {
            image: picture.into(),
            model: self.arm.model.clone().unwrap_or_default(),
            version: self.arm.version.clone().unwrap_or_default(),
            top_k: Some(ALL),
            ..Default::default()
        };
        match self.call("/blockdrop.v1.Classifier/Classify", &asked).await {
            Ok(answer) => Ok(Some(answer)),
            Err(problem) if problem.kind.starts_with("UNIMPLEMENTED") => Ok(None),
            Err(problem) => Err(self.refused(&problem, "a result")),
        }
    }

    async fn server_http(&self) -> Result<Server, WireError> {
        let answer = self.get(&format!("{}/v2", self.base)).await?;
        if answer.status != StatusCode::OK {
            return Ok(Server::default());
        }
        Ok(serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    async fn server_grpc(&self) -> Result<Server, WireError> {
        let asked = ServerMetadataRequest {};
        let found = self.call("/inference.GRPCInferenceService/ServerMetadata", &asked).await;
        match found {
            Ok(ServerMetadataResponse { name, version, .. }) => Ok(Server { name, version }),
            Err(problem) if problem.kind.starts_with("UNIMPLEMENTED") => Ok(Server::default()),
            Err(problem) => Err(self.refused(&problem, "the server's metadata")),
        }
    }
}

/// What a server says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Server {
    name: String,
    version: String,
}

fn sentence(server: &Server, model: &str, version: &str) -> String {
    let of = |name: &str, between: &str, version: &str| match (name, version) {
        (name, "") => name.to_owned(),
        (name, version) => format!("{name}{between}{version}"),
    };
    let parts = [of(&server.name, " ", &server.version), of(model, " version ", version)];
    short(&parts.iter().filter(|part| !part.trim().is_empty()).cloned().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_by_what_they_say() {
        let server = Server { name: "blockdrop".to_owned(), version: "0.1.0".to_owned() };
        assert_eq!(sentence(&server, "cifar10-resnet32", "1"), "blockdrop 0.1.0, cifar10-resnet32 version 1");
        assert_eq!(sentence(&Server::default(), "m", ""), "m");
    }

    #[test]
    fn random_paths_are_told_apart() {
        let arm = |path: &str| plan::Arm {
            name: "a".to_owned(),
            url: String::new(),
            model: None,
            version: None,
            parameters: vec![("path".to_owned(), path.to_owned())],
        };
        assert!(random(&arm("random_k:5"), 1));
        assert!(!random(&arm("random_k:5:1"), 1));
        assert!(random(&arm("random_k:5:1"), 2));
        assert!(!random(&arm("first_k:5"), 2));
    }
}
