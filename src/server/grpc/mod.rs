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
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tonic::Status;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::service::Routes;

use super::arrived;
use super::classify::Service;
use super::connection::Connection;
use super::error::Error;
use super::keys::{Guard, Keys};
use crate::proto::code_name;
use crate::proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::proto::v1::classifier_server::ClassifierServer;
use crate::telemetry::request::{Answering, Described};
use call::{Call, described};
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

/// Reads a call's head: its id, trace and deadline; and limits its body. Counts calls that end before a message of theirs is
/// answered: refused here, unknown, or with a message that cannot be read.
async fn head(State((service, guard)): State<(Arc<Service>, Guard)>, request: Request, next: Next) -> Response {
    let (started, uri) = (Instant::now(), request.uri().clone());
    let (asked, method) = uri.path().strip_prefix('/').unwrap_or_default().split_once('/').unwrap_or_default();
    // Nobody asks how long health or reflection took.
    let known = health::SERVICES[1..].iter().find(|known| **known == asked && !is_open(uri.path()));
    let tracer = service.tracer.as_ref().filter(|_| known.is_some());
    let answering = Arc::new(Answering::new(arrived::context(request.headers(), tracer)));
    let context = answering.context();
    let classifies = CLASSIFYING.contains(&uri.path());
    context.describe(|span| {
        span.name = known.map_or("", |known| *known).into();
        span.attribute("rpc.system", "grpc");
        span.attribute("rpc.service", span.name.to_string());
        if classifies {
            of_method(span, method);
        }
    });
    // From here on, so that one that is admitted is waited for while its message arrives.
    let _under_way = classifies.then(|| service.metrics.enter());
    let admitted = guard.check(uri.path(), request.headers());
    let called = admitted.and_then(|()| called(&service, request, Arc::clone(&answering)));
    let (mut response, counted) = match called {
        Ok((request, call)) => (context.within(next.run(request)).await, call.counted.load(Ordering::Relaxed)),
        Err(error) => (refused(error), false),
    };
    let status = Status::from_header_map(response.headers()).filter(|_| !counted);
    if let Some(status) = &status {
        service.metrics.request("grpc", code_name(status.code()), started.elapsed());
    }
    context.describe(|span| {
        // What a client made up is no method, and not answered.
        if counted && !classifies {
            of_method(span, method);
        }
        match status {
            Some(status) => described(span, status.code()),
            // A stream has begun; each of its messages says how it ended.
            None if !counted => span.error = None,
            None => {}
        }
    });
    arrived::tell(context, response.headers_mut());
    response
}

fn of_method(span: &mut Described, method: &str) {
    span.name = format!("{}/{method}", span.name).into();
    span.attribute("rpc.method", method.to_owned());
}

fn called(service: &Arc<Service>, request: Request, answering: Arc<Answering>) -> Result<(Request, Call), Error> {
    let connection = request.extensions().get::<Connection>().expect("a request comes over a connection");
    let flow = Arc::clone(&connection.flow);
    let classifies = CLASSIFYING.contains(&request.uri().path());
    if classifies {
        service.admit(&flow, Instant::now() + service.limits.time)?;
    }
    let (mut head, body) = request.into_parts();
    let (body, arrived) = body::limited(Arc::clone(service), Arc::clone(&flow), body, classifies);
    let call = Call::new(answering, flow, &head.headers, arrived, classifies)?;
    head.extensions.insert(call.clone());
    Ok((Request::from_parts(head, body), call))
}

fn refused(error: Error) -> Response {
    let response: axum::http::Response<axum::body::Body> = Status::from(error).into_http();
    response.into_response()
}
