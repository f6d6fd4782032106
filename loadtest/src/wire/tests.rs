//! What the protocols of a real server say of the same images.

use blockdrop_testkit::Net;

use super::*;
use crate::wire::mail::Asked;

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{Server, fp32, plan, pool};

#[tokio::test]
async fn all_protocols_agree_on_class_mask_and_flops() {
    let net = Net::tiny(11);
    let server = Server::start(&net, &[]);
    let pool = pool(12, 16);
    let mut first: Option<Vec<Facts>> = None;
    for protocol in Protocol::ALL {
        for pixels in [false, true] {
            for count in [1, 3] {
                if (pixels && !protocol.is_oip()) || (count > 1 && !protocol.takes_several()) {
                    continue;
                }
                let mut plan = plan(protocol, server.arm(protocol, &[]));
                plan.request.images = count;
                if pixels {
                    plan.request.datatype = fp32(16);
                }
                let wire = Wire::prepare(&plan, &pool).await.unwrap();
                assert_eq!(wire.server(0), concat!("blockdrop ", env!("CARGO_PKG_VERSION"), ", net version 1"));
                let mut caller = wire.caller(0);
                let mut found = Vec::new();
                for at in (0..pool.len()).step_by(count) {
                    let facts = caller.ask(Asked::Images { first: at }).await;
                    found.extend(facts.unwrap_or_else(|problem| panic!("{protocol:?} {pixels} {count}: {problem:?}")));
                }
                let first = first.get_or_insert_with(|| found.clone());
                assert_eq!(first.len(), found.len());
                for (one, other) in first.iter().zip(&found) {
                    let of =
                        |facts: &Facts| (facts.class, facts.mask, facts.blocks, facts.flops.map(|flops| flops.spent));
                    assert_eq!(of(one), of(other), "{protocol:?} {pixels} {count}");
                    assert!((one.score.unwrap() - other.score.unwrap()).abs() < 1e-4, "{one:?} {other:?}");
                    assert!((one.second.unwrap() - other.second.unwrap()).abs() < 1e-4, "{one:?} {other:?}");
                    let full = other.flops.unwrap().full;
                    assert!(full == net.full_flops() || (full == 0 && protocol.is_oip() && count > 1), "{other:?}");
                    assert_eq!(other.stages.is_some(), !(protocol.is_oip() && count > 1), "{protocol:?} {other:?}");
                }
            }
        }
    }
    let masks: std::collections::BTreeSet<_> = first.unwrap().iter().map(|facts| facts.mask).collect();
    assert!(masks.len() > 1, "images that a policy tells apart");
}
