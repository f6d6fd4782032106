//! The wire against a real blockdrop server, in every protocol.

mod common;

use std::time::Duration;

use blockdrop_loadtest::plan::{Datatype, Protocol};
use blockdrop_loadtest::record::{Fault, Image, Payload, Reply};
use blockdrop_loadtest::target::{Caller, Target};
use blockdrop_loadtest::wire::{Wire, classes};
use blockdrop_testkit::Net;
use common::{Server, arm, call, fp32, images, plan, pool};

fn answered(reply: Reply) -> Vec<Image> {
    match reply {
        Reply::Answered(images) => images,
        other => panic!("expected an answer, found {other:?}"),
    }
}

#[tokio::test]
async fn parameters_reach_the_server_in_every_protocol() {
    let server = Server::start(&Net::tiny(3), &[]);
    let pool = pool(4, 16);
    for protocol in Protocol::ALL {
        for (parameters, blocks) in [
            (&[("path", "first_k:2")][..], Some(2)),
            (&[("path", "mask:110010")], Some(3)),
            (&[("max_blocks", "0"), ("max_flops", "9e9")], Some(0)),
            (&[("path", "full")], Some(6)),
            (&[("max_blocks", "0"), ("threshold", "0.25")], Some(0)),
        ] {
            if parameters.iter().any(|(_, value)| *value == "9e9") && !protocol.is_oip() {
                continue;
            }
            let plan = plan(protocol, server.arm(protocol, parameters));
            let wire = Wire::prepare(&plan, &pool).await.unwrap_or_else(|error| panic!("{protocol:?}: {error}"));
            let mut caller = wire.caller(0);
            for _ in 0..2 {
                for first in 0..wire.images() {
                    let image = answered(call(&mut caller, Payload::Images { first }).await).remove(0);
                    assert_eq!((image.blocks, image.changed, image.correct), (blocks, false, None), "{protocol:?}");
                    assert!(image.flops.is_some_and(|flops| flops.spent > 0 && flops.full > 0));
                    assert!(image.stages.is_some_and(|stages| stages.total > 0.0));
                }
            }
        }
    }
}

#[tokio::test]
async fn bad_inputs_are_refused_in_every_protocol() {
    let server = Server::start(&Net::tiny(3), &[]);
    let pool = pool(3, 16);
    for protocol in Protocol::ALL {
        for pixels in [false, true] {
            if pixels && !protocol.is_oip() {
                continue;
            }
            let mut plan = plan(protocol, server.arm(protocol, &[]));
            if pixels {
                plan.request.datatype = fp32(16);
            }
            if protocol.takes_several() {
                plan.request.images = 2;
            }
            let wire = Wire::prepare(&plan, &pool).await.unwrap();
            let mut caller = wire.caller(0);
            for kind in 0..pool.bad().len() + 1 {
                match call(&mut caller, Payload::Bad { kind }).await {
                    Reply::Refused(cause) => assert!(!cause.message.is_empty()),
                    other => panic!("{protocol:?} {pixels} {kind}: {other:?}"),
                }
                // The caller goes on, on the stream that it has.
                assert_eq!(
                    answered(call(&mut caller, Payload::Images { first: kind }).await).len(),
                    plan.request.images
                );
            }
        }
    }
}

/// A net that takes a while for an image.
fn slow() -> Net {
    Net { segments: vec![3, 3, 3], width: 40, side: 64, ..Net::tiny(5) }
}

#[tokio::test]
async fn overload_is_refused_and_nothing_fails() {
    let server = Server::start(&slow(), &["--workers", "1", "--max-batch", "1", "--max-queue", "1"]);
    let pool = pool(2, 64);
    for protocol in Protocol::ALL {
        let plan = plan(protocol, server.arm(protocol, &[("path", "full")]));
        let wire = Wire::prepare(&plan, &pool).await.unwrap();
        let many = (0..8).map(|first| {
            let mut caller = wire.caller(0);
            async move { call(&mut caller, Payload::Images { first }).await }
        });
        let replies = futures_util::future::join_all(many).await;
        let count = |wanted: fn(&Reply) -> bool| replies.iter().filter(|reply| wanted(reply)).count();
        let (served, refused) =
            (count(|reply| matches!(reply, Reply::Answered(_))), count(|reply| matches!(reply, Reply::Refused(_))));
        assert!(served > 0 && refused > 0 && served + refused == replies.len(), "{protocol:?}: {replies:?}");
    }
}

#[tokio::test]
async fn what_the_server_gives_up_is_timed_out() {
    let server = Server::start(&slow(), &["--workers", "1", "--request-timeout", "1ms"]);
    let pool = pool(2, 64);
    for protocol in Protocol::ALL {
        // Asking for the model runs an image, which this server cannot.
        if matches!(protocol, Protocol::Grpc | Protocol::GrpcStream) {
            continue;
        }
        let plan = plan(protocol, server.arm(protocol, &[("path", "full")]));
        let wire = Wire::prepare(&plan, &pool).await.unwrap();
        let reply = call(&mut wire.caller(0), Payload::Images { first: 0 }).await;
        assert_eq!(reply, Reply::TimedOut, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_the_caller_fit() {
    let server = Server::start(&slow(), &[]);
    let pool = pool(2, 64);
    for protocol in Protocol::ALL {
        let plan = plan(protocol, server.arm(protocol, &[("path", "full")]));
        let wire = Wire::prepare(&plan, &pool).await.unwrap();
        let mut caller = wire.caller(0);
        for micros in [0, 100, 1000, 3000] {
            drop(tokio::time::timeout(Duration::from_micros(micros), caller.call(images(0))).await);
            let image = answered(call(&mut caller, Payload::Images { first: 1 }).await).remove(0);
            assert!(!image.changed, "{protocol:?}: the answer is the request's own");
        }
    }
}

#[tokio::test]
async fn faults_end_and_harm_no_other() {
    let mut server = Server::start(&Net::tiny(3), &[]);
    let pool = pool(3, 16);
    for protocol in
        [Protocol::Classify, Protocol::ClassifyMultipart, Protocol::OipJson, Protocol::GrpcOip, Protocol::Grpc]
    {
        let mut plan = plan(protocol, server.arm(protocol, &[]));
        plan.request.timeout = Duration::from_millis(300);
        let wire = Wire::prepare(&plan, &pool).await.unwrap();
        let mut caller = wire.caller(0);
        for fault in Fault::ALL {
            let started = std::time::Instant::now();
            assert_eq!(call(&mut caller, Payload::Broken { fault, first: 0 }).await, Reply::Broken(fault));
            assert!(started.elapsed() < common::PATIENCE, "bounded in time");
            let image = answered(call(&mut caller, Payload::Images { first: 0 }).await).remove(0);
            assert!(!image.changed);
        }
    }
    assert!(server.is_running());
}

#[tokio::test]
async fn faults_are_over_where_nobody_listens() {
    let mut server = Server::start(&Net::tiny(3), &[]);
    for protocol in [Protocol::Classify, Protocol::Grpc] {
        let mut plan = plan(protocol, server.arm(protocol, &[]));
        plan.request.timeout = Duration::from_millis(200);
        let wire = Wire::prepare(&plan, &pool(1, 16)).await.unwrap();
        let mut caller = wire.caller(0);
        if protocol == Protocol::Grpc {
            drop(std::mem::replace(&mut server, Server::start(&Net::tiny(3), &[])));
            for fault in Fault::ALL {
                assert_eq!(call(&mut caller, Payload::Broken { fault, first: 0 }).await, Reply::Broken(fault));
            }
            match call(&mut caller, Payload::Images { first: 0 }).await {
                Reply::Failed(cause) => assert_eq!(cause.kind, "connect", "{}", cause.message),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn many_callers_share_a_wire() {
    let server = Server::start(&Net::tiny(3), &[]);
    let pool = pool(7, 16);
    for protocol in [Protocol::Classify, Protocol::Grpc, Protocol::GrpcOipStream] {
        for new_connections in [false, true] {
            let mut plan = plan(protocol, server.arm(protocol, &[]));
            plan.request.new_connections = new_connections && !protocol.is_grpc();
            let wire = Wire::prepare(&plan, &pool).await.unwrap();
            let callers = (0..40).map(|at| {
                let mut caller = wire.caller(0);
                tokio::spawn(async move {
                    for first in at..at + 8 {
                        let image = answered(call(&mut caller, Payload::Images { first }).await).remove(0);
                        assert!(!image.changed);
                    }
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn keys_are_sent() {
    let key = "0123456789abcdef-key";
    let server = Server::start_with(&Net::tiny(3), &[], &[("BLOCKDROP_API_KEYS", key)]);
    let pool = pool(1, 16);
    for protocol in Protocol::ALL {
        let mut plan = plan(protocol, server.arm(protocol, &[]));
        let error = Wire::prepare(&plan, &pool).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("401") || error.contains("UNAUTHENTICATED"), "{protocol:?}: {error}");
        plan.request.api_key = Some(key.to_owned());
        let wire = Wire::prepare(&plan, &pool).await.unwrap();
        answered(call(&mut wire.caller(0), Payload::Images { first: 0 }).await);
    }
}

#[tokio::test]
async fn classes_come_from_the_server() {
    let server = Server::start(&Net::tiny(3), &[]);
    let expected: Vec<String> = (0..10).map(|class| format!("class {class}")).collect();
    for protocol in Protocol::ALL {
        for model in [Some("net".to_owned()), None] {
            let mut plan = plan(protocol, server.arm(protocol, &[]));
            plan.arms[0].model = model;
            let found = classes(&plan.arms[0], &plan.request).await.unwrap();
            assert_eq!(found.as_ref(), Some(&expected), "{protocol:?}");
            let wire = Wire::prepare(&plan, &pool(1, 16)).await.unwrap();
            answered(call(&mut wire.caller(0), Payload::Images { first: 0 }).await);
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_is_told_before_the_run() {
    let server = Server::start(&Net::tiny(3), &[]);
    let pool = pool(1, 16);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for protocol in Protocol::ALL {
        let told = async |change: &dyn Fn(&mut blockdrop_loadtest::plan::Plan), parts: &[&str]| {
            let mut plan = plan(protocol, server.arm(protocol, &[]));
            change(&mut plan);
            let Err(error) = Wire::prepare(&plan, &pool).await.map(drop) else {
                panic!("{protocol:?} fits: {parts:?}")
            };
            let error = error.to_string();
            for part in parts {
                assert!(error.contains(part), "{protocol:?}: '{part}' is not in: {error}");
            }
        };
        told(&|plan| plan.arms[0].model = Some("cat".to_owned()), &["arm 'arm'", "cat"]).await;
        told(&|plan| plan.arms[0].version = Some("9".to_owned()), &["arm 'arm'", "9"]).await;
        told(&|plan| plan.arms[0].url = format!("http://{nobody}"), &["does not answer", "refused"]).await;
        told(&|plan| plan.arms[0].url = "https://localhost".to_owned(), &["https://localhost", "http://host:port"])
            .await;
        told(&|plan| plan.arms[0].parameters = vec![("colour".to_owned(), "red".to_owned())], &["colour", "path"])
            .await;
        told(&|plan| plan.arms[0] = arm(server.url(protocol), &[("path", "first_k:99")]), &["path", "99 blocks"]).await;
        told(&|plan| plan.request.images = 0, &["0 images"]).await;
        if protocol.is_oip() {
            told(&|plan| plan.request.input = "x".to_owned(), &["image FP32 [-1,3,16,16]", "named 'x'"]).await;
            told(&|plan| plan.request.datatype = fp32(32), &["[-1,3,16,16]", "[1, 3, 32, 32]"]).await;
            told(&|plan| plan.request.output = Some("scores".to_owned()), &["logits FP32 [-1,10]", "'scores'"]).await;
        }
        if !protocol.takes_several() {
            told(&|plan| plan.request.images = 2, &["2 images"]).await;
        }
        if protocol.is_grpc() {
            told(&|plan| plan.request.new_connections = true, &["new connections"]).await;
        }
        // The other listener speaks another language.
        let other = if !protocol.is_grpc() { &server.grpc } else { &server.http };
        told(&|plan| plan.arms[0].url.clone_from(other), &["arm 'arm'"]).await;
    }
}

#[tokio::test]
async fn an_output_of_ones_own_choice_is_read() {
    let server = Server::start(&Net::tiny(3), &[]);
    let pool = pool(5, 16);
    for protocol in Protocol::ALL.into_iter().filter(|protocol| protocol.is_oip()) {
        for output in ["logits", "class", "probabilities"] {
            let mut plan = plan(protocol, server.arm(protocol, &[]));
            plan.request.output = Some(output.to_owned());
            plan.request.datatype = Datatype::Bytes;
            plan.request.images = 2;
            let wire = Wire::prepare(&plan, &pool).await.unwrap();
            let mut caller = wire.caller(0);
            for first in 0..5 {
                let images = answered(call(&mut caller, Payload::Images { first }).await);
                assert!(images.iter().all(|image| image.blocks.is_some() && image.flops.is_some() && !image.changed));
            }
        }
    }
}
