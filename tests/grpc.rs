//! gRPC: answers equal to the engine's, every status, and messages that are none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use blockdrop::proto::inference::infer_parameter::ParameterChoice;
use blockdrop::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use blockdrop::proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
    RepositoryModelLoadRequest, RepositoryModelLoadResponse,
};
use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop::proto::v1::classify_stream_response::Result as Either;
use blockdrop::proto::v1::{ClassifyRequest, ClassifyResponse};
use blockdrop_testkit::Net;
use bytes::Bytes;
use common::reference::Reference;
use common::server::Server;
use common::{PATIENCE, contains, heavy, models, png};
use futures_util::{StreamExt, stream};
use prost::Message;
use rustix::process::Signal;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

const PIXELS: usize = 3 * 16 * 16;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

struct Bench {
    server: Server,
    channel: Channel,
    reference: Reference,
}

impl Bench {
    async fn start(net: &Net, flags: &[&str]) -> Self {
        let dir = models("net", net);
        let server = Server::start(dir.path(), flags);
        let channel = Endpoint::new(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
        Self { channel, reference: Reference::load(&dir.path().join("net/1")), server }
    }

    fn typed(&self) -> ClassifierClient<Channel> {
        ClassifierClient::new(self.channel.clone()).max_encoding_message_size(usize::MAX)
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<Response<A>, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone()).max_encoding_message_size(usize::MAX);
        client.ready().await.unwrap();
        let codec = ProstCodec::<Q, A>::default();
        client.unary(Request::new(request), axum::http::uri::PathAndQuery::from_static(path), codec).await
    }

    async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.call(INFER, request).await.map(Response::into_inner)
    }

    async fn refused(&self, request: ModelInferRequest, code: Code, parts: &[&str]) {
        let status = self.infer(request).await.expect_err("a request that is refused");
        assert_eq!(status.code(), code, "{status:?}");
        contains(status.message(), parts);
        assert!(status.metadata().contains_key("blockdrop-code"), "{status:?}");
        assert!(status.metadata().contains_key("x-request-id"), "{status:?}");
    }

    fn check(&self, found: &ClassifyResponse, file: &[u8], path: &str) {
        let expected = self.reference.answer(file, &self.reference.selection(path), 0);
        let (path, flops) = (found.path.as_ref().unwrap(), found.flops.as_ref().unwrap());
        assert_eq!(path.mask, expected.mask.to_string());
        assert_eq!(path.blocks_kept as usize, expected.mask.kept());
        assert_eq!(flops.executed, self.reference.costs().executed(&expected.mask));
        assert_eq!(flops.full, self.reference.costs().full());
        let best = found.predictions[0].class as usize;
        let most = expected.logits.iter().copied().fold(f32::MIN, f32::max);
        assert!((expected.logits[best] - most).abs() < 1e-4, "{found:?}, expected {expected:?}");
        assert!(found.timing.is_some_and(|timing| timing.total_ms > 0.0));
    }
}

/// An image and nothing else.
fn only(image: Vec<u8>) -> ClassifyRequest {
    ClassifyRequest { image: image.into(), ..ClassifyRequest::default() }
}

fn bytes_input(files: usize) -> InferInputTensor {
    InferInputTensor {
        name: "image".into(),
        datatype: "BYTES".into(),
        shape: vec![files as i64],
        ..InferInputTensor::default()
    }
}

fn float_input(shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: "image".into(),
        datatype: "FP32".into(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

fn element(file: &[u8]) -> Bytes {
    [&(file.len() as u32).to_le_bytes()[..], file].concat().into()
}

/// A request of one file in binary.
fn of_file(file: &[u8]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "net".into(),
        inputs: vec![bytes_input(1)],
        raw_input_contents: vec![element(file)],
        ..ModelInferRequest::default()
    }
}

#[tokio::test]
async fn images_are_classified_as_the_engine_does() {
    let bench = Bench::start(&Net::tiny(5), &[]).await;
    for seed in 0..4 {
        for path in ["policy", "full", "first_k:2", "mask:101010"] {
            let request = ClassifyRequest { path: path.into(), request_id: format!("{seed}"), ..only(png(seed)) };
            let found = bench.typed().classify(request).await.unwrap().into_inner();
            assert_eq!((&*found.model, &*found.version, &*found.request_id), ("net", "1", &*seed.to_string()));
            bench.check(&found, &png(seed), path);
        }
    }
    let request = ClassifyRequest { top_k: Some(2), threshold: Some(1.0), max_blocks: Some(3), ..only(png(1)) };
    let found = bench.typed().classify(request).await.unwrap();
    let id = found.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    assert_eq!((found.get_ref().predictions.len(), &found.get_ref().request_id), (2, &id));
    let metrics = bench.server.metrics().await;
    assert_eq!(metrics.values[r#"blockdrop_requests_total{code="OK",protocol="grpc"}"#], 17.0);
    assert_eq!(metrics.values[r#"blockdrop_request_duration_seconds_count{protocol="grpc"}"#], 17.0);
}

#[tokio::test]
async fn both_kinds_of_contents_give_the_same_outputs() {
    let bench = Bench::start(&Net::tiny(5), &[]).await;
    let pixels: Vec<f32> = (0..PIXELS).map(|at| (at % 17) as f32 / 9.0 - 1.0).collect();
    let raw: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let typed = InferTensorContents { fp32_contents: pixels, ..InferTensorContents::default() };
    let base = || ModelInferRequest { model_name: "net".into(), id: "7".into(), ..ModelInferRequest::default() };
    let input = float_input(&[1, 3, 16, 16]);
    let raw = ModelInferRequest { inputs: vec![input.clone()], raw_input_contents: vec![raw.into()], ..base() };
    let typed = ModelInferRequest { inputs: vec![InferInputTensor { contents: Some(typed), ..input }], ..base() };
    let (raw, typed) = (bench.infer(raw).await.unwrap(), bench.infer(typed).await.unwrap());
    assert_eq!(raw.id, "7");
    let names: Vec<&str> = raw.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["logits", "probabilities", "class", "mask", "blocks", "flops"]);
    assert_eq!(raw.raw_output_contents.len(), 6);
    assert_eq!(raw.raw_output_contents[2..], typed.raw_output_contents[2..], "class, mask, blocks, FLOPs");
    assert_eq!(raw.raw_output_contents[3].len(), 6, "a byte for each block");

    let contents = InferTensorContents { bytes_contents: vec![png(1).into()], ..InferTensorContents::default() };
    let typed =
        ModelInferRequest { inputs: vec![InferInputTensor { contents: Some(contents), ..bytes_input(1) }], ..base() };
    let typed = bench.infer(typed).await.unwrap();
    assert_eq!(typed.raw_output_contents[3], bench.infer(of_file(&png(1))).await.unwrap().raw_output_contents[3]);
    let mask = Some(ParameterChoice::StringParam(bench.reference.learned(&png(1)).to_string()));
    assert_eq!(typed.parameters["mask"].parameter_choice, mask);
}

#[tokio::test]
async fn requests_that_do_not_fit() {
    let bench = Bench::start(&Net::tiny(5), &["--max-images", "4", "--max-body-bytes", "65536"]).await;
    let parameter = |choice| [("threshold".to_owned(), InferParameter { parameter_choice: Some(choice) })].into();
    let contents = |contents: InferTensorContents, input: InferInputTensor| ModelInferRequest {
        model_name: "net".into(),
        inputs: vec![InferInputTensor { contents: Some(contents), ..input }],
        ..ModelInferRequest::default()
    };
    let floats = || InferTensorContents { fp32_contents: vec![0.0; 3], ..InferTensorContents::default() };
    let output = |name: &str| InferRequestedOutputTensor { name: name.into(), ..InferRequestedOutputTensor::default() };
    let junk = |raw: Vec<Bytes>, input: InferInputTensor| ModelInferRequest {
        inputs: vec![input],
        raw_input_contents: raw,
        ..of_file(b"")
    };
    let cases: Vec<(ModelInferRequest, Code, &[&str])> = vec![
        (
            ModelInferRequest { model_name: "x".into(), ..of_file(&png(1)) },
            Code::NotFound,
            &["'x'", "expected one of: net"],
        ),
        (ModelInferRequest { model_version: "9".into(), ..of_file(&png(1)) }, Code::NotFound, &["'9'"]),
        (ModelInferRequest { inputs: vec![], ..of_file(&png(1)) }, Code::InvalidArgument, &["found 0, expected one"]),
        (
            ModelInferRequest { inputs: vec![bytes_input(1); 2], ..of_file(&png(1)) },
            Code::InvalidArgument,
            &["found 2"],
        ),
        (ModelInferRequest { raw_input_contents: vec![], ..of_file(&png(1)) }, Code::InvalidArgument, &["no contents"]),
        (junk(vec![element(b""); 2], bytes_input(1)), Code::InvalidArgument, &["2 raw_input_contents"]),
        (of_file(b"junk"), Code::InvalidArgument, &["type is unknown"]),
        (
            ModelInferRequest { id: "x".repeat(1025), ..of_file(&png(1)) },
            Code::InvalidArgument,
            &["id: found 1025 bytes"],
        ),
        (of_file(b""), Code::InvalidArgument, &["the image is empty"]),
        (
            junk(vec![Bytes::from_static(&[9, 0, 0, 0, 1])], bytes_input(1)),
            Code::InvalidArgument,
            &["states 9 bytes, found 1"],
        ),
        (junk(vec![element(b"")], float_input(&[i64::MAX, 3, 16, 16])), Code::InvalidArgument, &["more than 4 images"]),
        (junk(vec![element(b"")], bytes_input(5)), Code::InvalidArgument, &["more than 4 images"]),
        (junk(vec![element(b"")], float_input(&[1, 3, 8, 8])), Code::InvalidArgument, &["[1,3,8,8]", "[N,3,16,16]"]),
        (contents(floats(), float_input(&[1, 3, 16, 16])), Code::InvalidArgument, &["3 values", "768"]),
        (
            contents(InferTensorContents { int_contents: vec![1], ..floats() }, float_input(&[1, 3, 16, 16])),
            Code::InvalidArgument,
            &["fp32_contents for FP32"],
        ),
        (contents(floats(), bytes_input(1)), Code::InvalidArgument, &["fp32_contents for FP32"]),
        (
            ModelInferRequest { raw_input_contents: vec![element(&png(1))], ..contents(floats(), bytes_input(1)) },
            Code::InvalidArgument,
            &["contents and raw_input_contents"],
        ),
        (
            ModelInferRequest { parameters: parameter(ParameterChoice::DoubleParam(1.5)), ..of_file(&png(1)) },
            Code::InvalidArgument,
            &["threshold: found 1.5"],
        ),
        (
            ModelInferRequest { parameters: parameter(ParameterChoice::BoolParam(true)), ..of_file(&png(1)) },
            Code::InvalidArgument,
            &["threshold: found 'true'"],
        ),
        (
            ModelInferRequest { outputs: vec![output("x")], ..of_file(&png(1)) },
            Code::InvalidArgument,
            &["'x'", "logits"],
        ),
        (ModelInferRequest { outputs: vec![output("mask"); 2], ..of_file(&png(1)) }, Code::InvalidArgument, &["twice"]),
    ];
    for (request, code, parts) in cases {
        bench.refused(request, code, parts).await;
    }
    let big = of_file(&vec![0; 65536]);
    let size = format!("the message has {} bytes, expected at most 65536", big.encoded_len());
    bench.refused(big, Code::ResourceExhausted, &[&size]).await;
    let status = bench.typed().classify(only(vec![])).await.expect_err("no image");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "image: found no bytes, expected an encoded image")
    );
    let load: Result<Response<RepositoryModelLoadResponse>, Status> =
        bench.call("/inference.GRPCInferenceService/RepositoryModelLoad", RepositoryModelLoadRequest::default()).await;
    assert_eq!(load.expect_err("on the admin listener").code(), Code::PermissionDenied);
    let nothing: Result<Response<ModelInferResponse>, Status> = bench.call("/no.Service/Call", of_file(&png(1))).await;
    assert_eq!(nothing.expect_err("no such service").code(), Code::Unimplemented);
    bench.infer(of_file(&png(1))).await.unwrap();
    // Each is counted once, whoever refused it.
    let metrics = bench.server.metrics().await;
    let count = |code: &str| metrics.values[&format!("blockdrop_requests_total{{code=\"{code}\",protocol=\"grpc\"}}")];
    let counts = ["OK", "NOT_FOUND", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INTERNAL"].map(count);
    assert_eq!(counts, [1.0, 2.0, 1.0, 1.0, 1.0, 0.0]);
}

/// A row of empty parts takes a hundred times its bytes once it is decoded.
#[tokio::test]
async fn messages_that_would_swell_are_refused() {
    let bench = Bench::start(&Net::tiny(5), &[]).await;
    let request = ModelInferRequest { inputs: vec![InferInputTensor::default(); 1 << 20], ..of_file(&png(1)) };
    let status = bench.infer(request).await.expect_err("too many parts");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    contains(status.message(), &["more than 16384 parts"]);
    bench.infer(of_file(&png(1))).await.unwrap();
}

/// Sends `body` as a call with `headers`; the status code and its message.
async fn raw(server: &Server, path: &str, headers: &[(&str, &str)], body: reqwest::Body) -> (Option<String>, String) {
    let client = reqwest::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let mut request = client.post(format!("http://{}{path}", server.grpc)).body(body);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    (header("grpc-status"), header("grpc-message").unwrap_or_default().replace("%20", " "))
}

#[tokio::test]
async fn messages_that_are_none() {
    let bench = Bench::start(&Net::tiny(5), &["--request-timeout", "1s"]).await;
    let message = of_file(&png(1)).encode_to_vec();
    let framed = |length: u32, message: &[u8]| [&[0][..], &length.to_be_bytes(), message].concat();
    let cases: Vec<(Vec<u8>, Code)> = vec![
        (vec![], Code::Internal),                                       // no message
        (vec![0, 0, 0], Code::Internal),                                // half a head
        (framed(message.len() as u32, &message[..10]), Code::Internal), // cut off
        (framed(4, &[0xff; 4]), Code::InvalidArgument),                 // no protobuf
        (framed(u32::MAX, &message), Code::ResourceExhausted),          // a length that lies
        ([&[7][..], &[0, 0, 0, 1, 0]].concat(), Code::Internal),        // an unknown flag
        ([&[1][..], &[0, 0, 0, 1, 0]].concat(), Code::Internal),        // compressed by nothing
    ];
    for (body, code) in cases {
        let shown = format!("{:?}", &body[..body.len().min(16)]);
        let (status, message) = raw(&bench.server, INFER, &[], body.into()).await;
        assert_eq!(status, Some((code as i32).to_string()), "{shown}: {message}");
    }
    // A byte at a time is a message all the same.
    let whole = framed(message.len() as u32, &message);
    let bytes: Vec<_> = whole.iter().map(|byte| Ok::<_, std::io::Error>(vec![*byte])).collect();
    let (status, found) = raw(&bench.server, INFER, &[], reqwest::Body::wrap_stream(stream::iter(bytes))).await;
    assert_eq!(status, None, "what is answered has its status after the answer: {found}");
    let headers = [("grpc-timeout", "soon")];
    let (status, found) = raw(&bench.server, INFER, &headers, framed(message.len() as u32, &message).into()).await;
    assert_eq!(status.as_deref(), Some("3"), "{found}");
    assert!(found.contains("soon"), "{found}");

    // A message that stops half way, on a connection that stays.
    for path in [INFER, "/inference.GRPCInferenceService/ModelStreamInfer"] {
        let start = stream::iter([Ok::<_, std::io::Error>(framed(message.len() as u32, &message[..10]))]);
        let body = reqwest::Body::wrap_stream(start.chain(stream::pending()));
        let (status, found) = raw(&bench.server, path, &[], body).await;
        if path == INFER {
            assert_eq!(status.as_deref(), Some("4"), "{found}");
            assert!(found.contains("did not arrive in time"), "{found}");
        }
    }
    bench.infer(of_file(&png(1))).await.unwrap();
    assert_eq!(bench.server.metrics().await.values["blockdrop_inflight_requests"], 0.0);
}

#[tokio::test]
async fn a_stream_answers_in_order_and_outlives_a_bad_image() {
    let bench = Bench::start(&Net::tiny(5), &[]).await;
    let image = |at: u64| if at % 5 == 3 { b"junk".to_vec() } else { png(at) };
    let requests = (0..40).map(move |at| ClassifyRequest { request_id: at.to_string(), ..only(image(at)) });
    let answers = bench.typed().classify_stream(stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 40);
    for (at, answer) in (0..).zip(answers) {
        match answer.unwrap().result.unwrap() {
            Either::Response(found) => {
                assert_eq!(found.request_id, at.to_string());
                bench.check(&found, &image(at), "policy");
            }
            Either::Error(error) => {
                assert_eq!(
                    (at % 5, error.code.as_str(), error.request_id),
                    (3, "unsupported_image_type", at.to_string())
                );
            }
        }
    }
    let mut client = Grpc::new(bench.channel.clone());
    client.ready().await.unwrap();
    let requests = (0..20u64).map(move |at| ModelInferRequest { id: at.to_string(), ..of_file(&image(at)) });
    let path = axum::http::uri::PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
    let codec = ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
    let answers = client.streaming(Request::new(stream::iter(requests)), path, codec).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
    assert_eq!(answers.len(), 20);
    for (at, answer) in (0..).zip(answers) {
        assert_eq!(answer.error_message.is_empty(), at % 5 != 3, "{answer:?}");
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, u64::to_string(&at));
        let code = response.parameters.get("blockdrop-code").and_then(|code| code.parameter_choice.clone());
        let expected = ParameterChoice::StringParam("unsupported_image_type".to_owned());
        assert_eq!(code, (at % 5 == 3).then_some(expected));
    }
}

#[tokio::test]
async fn deadlines_and_cancellation_are_honoured() {
    let bench = Bench::start(&heavy(5), &["--workers", "1"]).await;
    let image = common::picture(1, 128, image::ImageFormat::Png);
    let full = move || ClassifyRequest { path: "full".into(), ..only(image.clone()) };
    let mut late = Request::new(full());
    late.set_timeout(Duration::from_millis(1));
    let status = bench.typed().classify(late).await.expect_err("too late");
    // The client itself gives up at its deadline, where its server does not answer in time.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let left = r#"blockdrop_rejected_total{reason="deadline"}"#;
    let cancelled = r#"blockdrop_rejected_total{reason="cancelled"}"#;
    bench.server.until(|metrics| metrics.values[left] + metrics.values[cancelled] >= 1.0).await;
    // A call that is given up too early was never sent, and too late was answered: some moment is between.
    let before = bench.server.metrics().await.values[cancelled];
    for wait in (0..100).map(Duration::from_millis) {
        let (mut client, request) = (bench.typed(), full());
        let call = tokio::spawn(async move { client.classify(request).await });
        tokio::time::sleep(wait).await;
        call.abort();
        let metrics = bench.server.until(|metrics| metrics.values["blockdrop_inflight_requests"] == 0.0).await;
        if metrics.values[cancelled] > before {
            break;
        }
    }
    let counted = r#"blockdrop_requests_total{code="CANCELLED",protocol="grpc"}"#;
    let metrics = bench.server.until(|metrics| metrics.values.get(counted).is_some_and(|count| *count >= 1.0)).await;
    assert_eq!(metrics.values[cancelled], before + 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_answers_what_it_has_and_ends_its_streams() {
    let mut bench = Bench::start(&Net::tiny(5), &[]).await;
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let requests = stream::poll_fn(move |context| requests.poll_recv(context));
    let mut answers = bench.typed().classify_stream(requests).await.unwrap().into_inner();
    sender.send(only(png(1))).unwrap();
    assert!(matches!(answers.next().await.unwrap().unwrap().result, Some(Either::Response(_))));
    bench.server.signal(Signal::TERM);
    let end = answers.next().await.expect("a status").expect_err("the end");
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    contains(end.message(), &["shutting down"]);
    // The client's connection answers meanwhile.
    assert_eq!(tokio::task::block_in_place(|| bench.server.ended()).code(), Some(0));
    drop(sender);
}
