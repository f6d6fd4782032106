//! Operator rules on single nodes.

use super::super::onnx::{TensorProto, tensor_proto::DataType};
use super::*;

fn weight(name: &str, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        ..Default::default()
    }
}

fn constant(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(DataType::Int64 as i32),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// The output shape and FLOPs of one node on an input `x`.
fn run(
    op: &str,
    x: &[u64],
    initializer: Vec<TensorProto>,
    attribute: Vec<AttributeProto>,
) -> Result<(Shape, u64), Problem> {
    let input = std::iter::once("x".to_owned()).chain(initializer.iter().map(|t| t.name().to_owned())).collect();
    let node = NodeProto {
        op_type: Some(op.into()),
        name: Some("n".into()),
        input,
        output: vec!["y".into()],
        attribute,
        ..Default::default()
    };
    let graph = GraphProto { node: vec![node], initializer, ..Default::default() };
    infer(&graph, 17, "x", x.to_vec()).map(|found| (found.shapes["y"].clone(), found.flops))
}

#[test]
fn a_convolution_counts_two_operations_per_multiply_accumulate() {
    // The stem of ImageNet ResNets: 7x7/2 on 224x224, 3 to 64 channels.
    let attributes = vec![AttributeProto::of_ints("strides", &[2, 2]), AttributeProto::of_ints("pads", &[3, 3, 3, 3])];
    let (shape, flops) = run("Conv", &[1, 3, 224, 224], vec![weight("w", &[64, 3, 7, 7])], attributes).unwrap();
    assert_eq!(shape, [1, 64, 112, 112]);
    assert_eq!(flops, 2 * 3 * 64 * 7 * 7 * 112 * 112);
}

#[test]
fn groups_divide_the_work() {
    let (shape, flops) =
        run("Conv", &[2, 8, 5, 5], vec![weight("w", &[8, 2, 1, 1])], vec![AttributeProto::of_int("group", 4)]).unwrap();
    assert_eq!(shape, [2, 8, 5, 5]);
    assert_eq!(flops, 2 * (2 * 8 * 5 * 5) * 2);
    let problem = run("Conv", &[2, 8, 5, 5], vec![weight("w", &[8, 2, 1, 1])], vec![]).unwrap_err();
    assert!(problem.found.contains("8 channels in"), "{problem:?}");
}

#[test]
fn pools_round_down_or_up_as_told() {
    let attributes = |ceil| {
        vec![
            AttributeProto::of_ints("kernel_shape", &[3, 3]),
            AttributeProto::of_ints("strides", &[2, 2]),
            AttributeProto::of_ints("pads", &[1; 4]),
            AttributeProto::of_int("ceil_mode", ceil),
        ]
    };
    assert_eq!(run("MaxPool", &[1, 64, 112, 112], vec![], attributes(0)).unwrap().0, [1, 64, 56, 56]);
    assert_eq!(run("MaxPool", &[1, 64, 112, 112], vec![], attributes(1)).unwrap().0, [1, 64, 57, 57]);
    assert_eq!(
        run(
            "AveragePool",
            &[1, 4, 5, 5],
            vec![],
            vec![
                AttributeProto::of_ints("kernel_shape", &[2, 2]),
                AttributeProto::of_ints("strides", &[2, 2]),
                AttributeProto::of_int("ceil_mode", 1)
            ]
        )
        .unwrap()
        .0,
        [1, 4, 3, 3]
    );
}

#[test]
fn reshapes_and_pads_follow_their_constants() {
    assert_eq!(run("Reshape", &[3, 64, 1, 1], vec![constant("s", &[0, -1])], vec![]).unwrap().0, [3, 64]);
    assert!(run("Reshape", &[3, 64], vec![constant("s", &[0, 63])], vec![]).is_err());
    let pads = constant("p", &[0, 0, 0, 0, 0, 16, 0, 0]);
    assert_eq!(run("Pad", &[1, 16, 16, 16], vec![pads], vec![]).unwrap().0, [1, 32, 16, 16]);
    assert_eq!(
        run(
            "ReduceMean",
            &[2, 8, 4, 4],
            vec![],
            vec![AttributeProto::of_ints("axes", &[2, 3]), AttributeProto::of_int("keepdims", 0)]
        )
        .unwrap()
        .0,
        [2, 8]
    );
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: Some("n".into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

#[test]
fn values_are_made_once_and_before_they_are_used() {
    let refused = |node: Vec<NodeProto>, initializer: Vec<TensorProto>| {
        let graph = GraphProto { node, initializer, ..Default::default() };
        let Err(Problem { at, found, .. }) = infer(&graph, 17, "x", vec![1, 1, 3, 3]) else { panic!("it is taken") };
        (at, found)
    };
    let filter = || weight("w", &[1, 1, 1, 1]);
    // No rule looks at a convolution's bias.
    let (at, found) = refused(vec![node("Conv", &["x", "w", "bias"], "y")], vec![filter()]);
    assert_eq!((at.as_str(), found.as_str()), ("node 'n' (Conv)", "input 'bias' not made before it"));
    let (at, found) = refused(vec![node("Relu", &["x"], "y"), node("Relu", &["y"], "y")], vec![]);
    assert_eq!(at, "node 'n' (Relu): its output 'y'");
    assert_eq!(found, "a name that another value has");
    assert_eq!(refused(vec![node("Relu", &["x"], "x")], vec![]).0, "node 'n' (Relu): its output 'x'");
    assert_eq!(refused(vec![node("Relu", &["x"], "w")], vec![filter()]).0, "node 'n' (Relu): its output 'w'");
    assert_eq!(refused(vec![], vec![filter(), filter()]).0, "initializer 'w'");
    assert_eq!(refused(vec![], vec![weight("x", &[1])]).0, "initializer 'x'");
    assert_eq!(refused(vec![], vec![weight("", &[1])]).1, "no name");
    // Inputs and outputs that are left out have no name.
    let clip = NodeProto { output: vec!["y".into(), String::new()], ..node("Clip", &["x", "", "w"], "") };
    let graph = GraphProto { node: vec![clip], initializer: vec![filter()], ..Default::default() };
    assert!(infer(&graph, 17, "x", vec![1, 1, 3, 3]).is_ok());
}

#[test]
fn absurd_sizes_are_an_error_and_not_an_overflow() {
    for (x, w) in [([1, 1 << 40, 9, 9], [1 << 40, 1 << 40, 1, 1]), ([1 << 62, 8, 9, 9], [8, 8, 3, 3])] {
        assert!(run("Conv", &x, vec![weight("w", &w)], vec![]).is_err());
    }
    assert!(run("Conv", &[1, 1, 3, 3], vec![weight("w", &[1, 1, 5, 5])], vec![]).is_err());
    assert!(
        run(
            "Conv",
            &[1, 1, 3, 3],
            vec![weight("w", &[1, 1, 1, 1])],
            vec![AttributeProto::of_ints("pads", &[i64::MAX; 4])]
        )
        .is_err()
    );
}

#[test]
fn work_that_would_go_uncounted_is_refused_and_other_unknown_operators_need_a_declared_shape() {
    let refused = run("QLinearConv", &[1, 1, 3, 3], vec![], vec![]).unwrap_err();
    assert!(refused.expected.contains("FLOPs"), "{refused:?}");
    let unknown = run("SpaceToDepth", &[1, 1, 4, 4], vec![], vec![]).unwrap_err();
    assert!(unknown.found.contains("no declared shape"), "{unknown:?}");
}
