//! ONNX: what is read of a graph, its shapes and its FLOPs.

use std::path::Path;

use blockdrop::bundle::onnx::ModelProto;
use blockdrop::bundle::{Graph, OPSETS, fuzzing};
use prost::Message;

use crate::{Outcome, Refused, Taken, check_message};

/// The borders that graphs of a bundle have.
const BORDERS: [(&str, &str); 4] = [("image", "x"), ("image", "logits"), ("x", "y"), ("x", "logits")];

pub(crate) fn onnx(input: &[u8]) -> Outcome {
    let opset = ModelProto::decode(input).ok().and_then(|model| model.opset_import.first()?.version);
    let opset = opset.filter(|opset| OPSETS.contains(opset)).unwrap_or(17);
    let file = Path::new("it.onnx");
    let mut outcome = Refused;
    for (input_name, output_name) in BORDERS {
        match fuzzing::graph(file, input, input_name, output_name, opset) {
            Ok(graph) => {
                outcome = Taken;
                check(&graph, input_name, output_name, opset);
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with("it.onnx: "), "it names no file: {message}");
                check_message(&message);
            }
        }
    }
    outcome
}

/// What a graph that was taken promises: written and read again it is the same, and it can be joined.
fn check(graph: &Graph, input: &'static str, output: &'static str, opset: i64) {
    assert!(graph.input.iter().all(|&size| size > 0));
    let again = fuzzing::graph(&graph.file, &graph.to_bytes(), input, output, opset).expect("it reads what it writes");
    assert_eq!(
        (&again.input, &again.output, again.flops),
        (&graph.input, &graph.output, graph.flops),
        "it is the same when it is read again"
    );
    let joined = blockdrop::bundle::join(&[graph]).expect("a graph alone");
    crate::join::check(&[graph], &joined);
    if graph.input == graph.output && graph.flops <= u64::MAX / 4 {
        let parts = [graph, graph];
        crate::join::check(&parts, &blockdrop::bundle::join(&parts).expect("a graph after itself"));
    }
}
