//! The public gRPC interface: the Open Inference Protocol, our own typed service, health and reflection.

mod body;
mod call;
mod classifier;
mod health;
mod oip;
mod status;

#[cfg(feature = "fuzzing")]
pub(super) use oip::images;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tonic::Status;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::service::Routes;

use super::classify::Service;
use super::connection::Connection;
use super::error::Error;
use super::http::{REQUEST_ID, RequestId};
use super::keys::{Guard, Keys};
use crate::proto::code_name;
use crate::proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::proto::v1::classifier_server::ClassifierServer;
use call::Call;
use classifier::Typed;
pub(super) use health::Health;
use oip::Oip;

/// The calls that run images: a server that is full says so before it reads their messages.
const CLASSIFYING: [&str; 2] = ["/inference.GRPCInferenceService/ModelInfer", "/blockdrop.v1.Classifier/Classify"];

/// The public services, for those who have one of the `keys`, and what tells their health.
///
/// # Panics
/// The descriptors in this binary are broken.
pub(super) fn router(service: Arc<Service>, keys: Keys) -> (Router, Health) {
    let guard = Guard { keys, metrics: Arc::clone(&service.metrics), open: is_open };
    let most = service.limits.body;
    let (reporter, health) = tonic_health::server::health_reporter();
    let told = Health::new(reporter, Arc::clone(&service.readiness));
    let inference = GrpcInferenceServiceServer::new(Oip { service: Arc::clone(&service) });
    let classifier = ClassifierServer::new(Typed { service: Arc::clone(&service) });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    /// Of messages that have no images.
    const SMALL: usize = 64 * 1024;
    let v1 = reflection().build_v1().expect("the descriptors are whole").max_decoding_message_size(SMALL);
    let v1alpha = reflection().build_v1alpha().expect("the descriptors are whole").max_decoding_message_size(SMALL);
    macro_rules! sized {
        ($services:expr) => {
            $services
                .max_decoding_message_size(most)
                .max_encoding_message_size(usize::MAX)
                .accept_compressed(Gzip)
                .accept_compressed(Deflate)
                .send_compressed(Gzip)
                .send_compressed(Deflate)
        };
    }
    let routes = Routes::new(sized!(inference))
        .add_service(sized!(classifier))
        .add_service(health.max_decoding_message_size(SMALL))
        .add_service(v1)
        .add_service(v1alpha);
    let router = routes.into_axum_router().layer(from_fn_with_state((service, guard), head));
    (router, told)
}

/// What needs no key.
fn is_open(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/")
        || matches!(path, "/inference.GRPCInferenceService/ServerLive" | "/inference.GRPCInferenceService/ServerReady")
}

/// Reads a call's head: its id and deadline; and limits its body. Counts calls that end before a message of theirs is
/// answered: refused here, unknown, or with a message that cannot be read.
async fn head(State((service, guard)): State<(Arc<Service>, Guard)>, request: Request, next: Next) -> Response {
    let (started, id) = (Instant::now(), RequestId::of(&request));
    // From here on, so that one that is admitted is waited for while its message arrives.
    let _under_way = classifies(&request).then(|| service.metrics.enter());
    let admitted = guard.check(request.uri().path(), request.headers());
    let (mut response, counted) = match admitted.and_then(|()| called(&service, request, &id)) {
        Ok((request, call)) => (next.run(request).await, call.counted.load(Ordering::Relaxed)),
        Err(error) => (refused(error), false),
    };
    if !counted && let Some(status) = Status::from_header_map(response.headers()) {
        service.metrics.request("grpc", code_name(status.code()), started.elapsed());
    }
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn classifies(request: &Request) -> bool {
    CLASSIFYING.contains(&request.uri().path())
}

fn called(service: &Arc<Service>, request: Request, id: &RequestId) -> Result<(Request, Call), Error> {
    let connection = request.extensions().get::<Connection>().expect("a request comes over a connection");
    let flow = Arc::clone(&connection.flow);
    let classifies = classifies(&request);
    if classifies {
        service.admit(&flow, Instant::now() + service.limits.time)?;
    }
    let (mut head, body) = request.into_parts();
    let (body, arrived) = body::limited(Arc::clone(service), body, classifies);
    let call = Call::new(id.clone(), flow, &head.headers, arrived, classifies)?;
    head.extensions.insert(call.clone());
    Ok((Request::from_parts(head, body), call))
}

fn refused(error: Error) -> Response {
    let response: axum::http::Response<axum::body::Body> = Status::from(error).into_http();
    response.into_response()
}
