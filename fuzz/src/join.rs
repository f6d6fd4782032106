//! Paths: graphs of small nets, in any order and with any names, joined into one.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use blockdrop::bundle::onnx::{GraphProto, ModelProto, NodeProto, tensor_proto::DataLocation};
use blockdrop::bundle::{Bundle, Graph, JoinError, fuzzing};
use blockdrop::policy::Mask;
use blockdrop_testkit::{Kind, Net, Shortcut};
use prost::Message;

use crate::{Outcome, Refused, Taken, check_message};

/// Nets of every kind, as bundles, and the opset of their graphs.
static NETS: LazyLock<Vec<(Net, Bundle)>> = LazyLock::new(|| {
    let kinds = [Kind::Basic, Kind::Bottleneck].map(|kind| (kind, Shortcut::Pooled));
    let nets = kinds.into_iter().chain([(Kind::Basic, Shortcut::Projection), (Kind::Bottleneck, Shortcut::Projection)]);
    let nets = nets.map(|(kind, shortcut)| Net { kind, shortcut, segments: vec![2, 1], ..crate::bundle::net() });
    let made = nets.map(|net| {
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = net.bundle(dir.path());
        (net, bundle)
    });
    made.collect()
});

/// Parts of a net by number, renamed.
#[derive(Debug, Arbitrary)]
struct Plan<'a> {
    net: u8,
    mask: u8,
    /// What runs in place of the mask's path.
    parts: Option<Vec<u8>>,
    /// A name of the part at a position becomes another.
    renamed: Vec<(u8, u8, Name<'a>)>,
}

#[derive(Debug, Arbitrary)]
enum Name<'a> {
    /// A name that joining gives, or that the borders have.
    Known(u8),
    /// Of another value of the same part.
    Other(u8),
    Any(&'a str),
}

const KNOWN: [&str; 8] = ["image", "x", "y", "logits", "output", "0/x", "1/y", "0/0/stem.weight"];

pub(crate) fn join(input: &[u8]) -> Outcome {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return Refused };
    let (net, bundle) = &NETS[usize::from(plan.net) % NETS.len()];
    let blocks = bundle.blocks.len();
    let mask = Mask::from_fn(blocks, |block| plan.mask >> block & 1 == 1);
    let chosen: Vec<&Graph> = match &plan.parts {
        None => bundle.path(&mask),
        Some(parts) => {
            let all: Vec<&Graph> = all(bundle);
            parts.iter().take(8).map(|&part| all[usize::from(part) % all.len()]).collect()
        }
    };
    let mut parts = Vec::with_capacity(chosen.len());
    for (at, part) in chosen.iter().enumerate() {
        let renamed = plan.renamed.iter().filter(|(of, ..)| usize::from(*of) % chosen.len() == at);
        let Some(part) = again(part, renamed.map(|(_, which, name)| (*which, name))) else { return Refused };
        parts.push(part);
    }
    let parts: Vec<&Graph> = parts.iter().collect();
    let fit = !parts.is_empty() && parts.windows(2).all(|pair| pair[0].output == pair[1].input);
    match blockdrop::bundle::join(&parts) {
        Err(error) => {
            check_message(&error.to_string());
            assert!(!fit && matches!(error, JoinError::Empty | JoinError::Shapes { .. }), "{error}");
            Refused
        }
        Ok(joined) => {
            assert!(fit, "parts that do not fit are joined");
            let path = check(&parts, &joined);
            if plan.parts.is_none() {
                assert_eq!(path.flops, bundle.costs().executed(&mask));
                let reference = net.reference(&mask);
                let reference = read(&reference, "image", "logits").expect("the same path, built by itself");
                assert_eq!((path.input, path.output, path.flops), (reference.input, reference.output, reference.flops));
            }
            Taken
        }
    }
}

/// Every graph of a bundle.
fn all(bundle: &Bundle) -> Vec<&Graph> {
    let blocks = bundle.blocks.iter().flat_map(|block| [true, false].map(|keep| block.part(keep)));
    [&bundle.policy, &bundle.stem, &bundle.head].into_iter().chain(blocks.flatten()).collect()
}

fn read(bytes: &[u8], input: &'static str, output: &'static str) -> Option<Graph> {
    fuzzing::graph(Path::new("it.onnx"), bytes, input, output, 17).ok()
}

/// `part` with values renamed; `None` where it is refused then.
fn again<'a>(part: &Graph, renamed: impl Iterator<Item = (u8, &'a Name<'a>)>) -> Option<Graph> {
    let mut model = ModelProto::decode(&*part.to_bytes()).expect("a model");
    let graph = model.graph.as_mut().expect("a graph");
    let border = |name: &str| KNOWN[..4].iter().copied().find(|known| *known == name).expect("a name of a border");
    let (input, output) = (border(graph.input[0].name()), border(graph.output[0].name()));
    for (which, name) in renamed {
        let names: Vec<String> = names(graph).into_iter().collect();
        let nth = |at: u8| names[usize::from(at) % names.len()].clone();
        let to = match *name {
            Name::Known(at) => KNOWN[usize::from(at) % KNOWN.len()].to_owned(),
            Name::Other(at) => nth(at),
            Name::Any(name) => name.to_owned(),
        };
        rename(graph, &nth(which), &to);
    }
    read(&model.encode_to_vec(), input, output)
}

/// Names of values, each once, in an order that is always the same.
fn names(graph: &GraphProto) -> Vec<String> {
    let weights = graph.initializer.iter().map(|tensor| tensor.name());
    let values = graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output)).map(String::as_str);
    let all: BTreeMap<&str, ()> = weights.chain(values).map(|name| (name, ())).collect();
    all.into_keys().map(str::to_owned).collect()
}

fn rename(graph: &mut GraphProto, from: &str, to: &str) {
    let change = |name: &mut String| {
        if name == from {
            to.clone_into(name);
        }
    };
    for tensor in &mut graph.initializer {
        tensor.name.as_mut().into_iter().for_each(change);
    }
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(change);
    }
}

/// What the graph of `parts` joined promises: it is one that can be read, does the work of its parts, and gives each name
/// once. Returns it as it is read.
pub(crate) fn check(parts: &[&Graph], joined: &ModelProto) -> Graph {
    let (first, last) = (parts.first().expect("a part"), parts.last().expect("a part"));
    let graph = joined.graph.as_ref().expect("a graph");
    once(graph);
    assert!(graph.node.iter().all(holds_all), "it reads no file");
    let opset =
        joined.opset_import.iter().find(|import| import.domain() == "").expect("ONNX's own operators").version();
    let border = |name: &str| {
        KNOWN[..4].iter().copied().find(|known| *known == name).unwrap_or_else(|| panic!("'{name}' at a border"))
    };
    let (input, output) = (border(graph.input[0].name()), border(graph.output[0].name()));
    let path = fuzzing::graph(Path::new("path"), &joined.encode_to_vec(), input, output, opset);
    let path = path.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&path.input, &path.output), (&first.input, &last.output));
    assert_eq!(path.flops, parts.iter().map(|part| part.flops).sum::<u64>());
    path
}

/// Every value is made once, before it is used.
pub(crate) fn once(graph: &GraphProto) {
    let mut made = HashSet::new();
    let inputs = graph.input.iter().map(|value| value.name());
    for name in inputs.chain(graph.initializer.iter().map(|tensor| tensor.name())) {
        assert!(made.insert(name), "'{name}' is made twice");
    }
    for node in &graph.node {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            assert!(made.contains(name.as_str()), "'{name}' is used before it is made");
        }
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            assert!(made.insert(name), "'{name}' is made twice");
        }
    }
    for value in &graph.output {
        assert!(made.contains(value.name()), "'{}' is made by nothing", value.name());
    }
}

/// Whether the tensors in a node's attributes have their data with them.
fn holds_all(node: &NodeProto) -> bool {
    let tensors = node.attribute.iter().flat_map(|attribute| attribute.t.iter().chain(&attribute.tensors));
    tensors.into_iter().all(|tensor| tensor.data_location() == DataLocation::Default && tensor.external_data.is_empty())
}
