//! The responder answers everything that the wire asks.

mod common;

use blockdrop_loadtest::plan::Protocol;
use blockdrop_loadtest::record::{Flops, Payload, Reply};
use blockdrop_loadtest::responder::respond;
use blockdrop_loadtest::target::Target;
use blockdrop_loadtest::wire::{Wire, classes};
use common::{arm, call, fp32, plan, pool};
use tokio::net::TcpListener;

#[tokio::test]
async fn every_protocol_is_answered() {
    let listener = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (http, grpc) = (listener().await, listener().await);
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let (http_url, grpc_url) = (url(&http), url(&grpc));
    tokio::spawn(respond(http, grpc));
    let pool = pool(4, 20);
    for protocol in Protocol::ALL {
        for pixels in [false, true] {
            if pixels && !protocol.is_oip() {
                continue;
            }
            let mut plan = plan(protocol, arm(if !protocol.is_grpc() { &http_url } else { &grpc_url }, &[]));
            if protocol.takes_several() {
                plan.request.images = 3;
            }
            if pixels {
                plan.request.datatype = fp32(8);
            }
            if !protocol.is_oip() || !protocol.is_grpc() {
                assert_eq!(classes(&plan.arms[0], &plan.request).await.unwrap().unwrap()[0], "class 0");
            }
            let wire = Wire::prepare(&plan, &pool).await.unwrap();
            assert!(wire.server(0).starts_with("blockdrop-responder "), "{}", wire.server(0));
            let mut caller = wire.caller(0);
            for first in 0..8 {
                let Reply::Answered(images) = call(&mut caller, Payload::Images { first }).await else {
                    panic!("{protocol:?}")
                };
                assert_eq!(images.len(), plan.request.images);
                for image in images {
                    assert_eq!((image.blocks, image.changed), (Some(5), false));
                    assert_eq!(image.flops.map(|Flops { spent, .. }| spent), Some(49_474_688));
                }
            }
            match call(&mut caller, Payload::Bad { kind: 0 }).await {
                Reply::Failed(cause) => assert_eq!(cause.kind, "bad input answered"),
                other => panic!("{protocol:?}: {other:?}"),
            }
        }
    }
}
