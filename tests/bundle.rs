//! Bundles that do not fit are refused with the file, what was found and what was expected.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use blockdrop::bundle::onnx::{
    AttributeProto, GraphProto, ModelProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto, TensorProto,
    ValueInfoProto, tensor_shape_proto::dimension, type_proto,
};
use blockdrop::bundle::{Bundle, join, sha256_hex};
use blockdrop::policy::Mask;
use blockdrop_testkit::{Kind, Net, Shortcut};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

fn written(net: &Net) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    net.write(dir.path()).unwrap();
    dir
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("bundle.json")).unwrap()).unwrap()
}

fn edit_manifest(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = manifest(dir);
    edit(&mut value);
    fs::write(dir.join("bundle.json"), value.to_string()).unwrap();
}

/// Puts the hash of `file` as it is now into the manifest, wherever the file is named.
fn rehash(dir: &Path, file: &str) {
    fn visit(value: &mut Value, file: &str, hash: &str) {
        if value.get("file").and_then(Value::as_str) == Some(file) {
            value["sha256"] = json!(hash);
        }
        match value {
            Value::Object(map) => map.values_mut().for_each(|value| visit(value, file, hash)),
            Value::Array(list) => list.iter_mut().for_each(|value| visit(value, file, hash)),
            _ => {}
        }
    }
    let hash = sha256_hex(&fs::read(dir.join(file)).unwrap());
    edit_manifest(dir, |value| visit(value, file, &hash));
}

fn edit_graph(dir: &Path, file: &str, edit: impl FnOnce(&mut ModelProto)) {
    let mut model = ModelProto::decode(&*fs::read(dir.join(file)).unwrap()).unwrap();
    edit(&mut model);
    fs::write(dir.join(file), model.encode_to_vec()).unwrap();
    rehash(dir, file);
}

/// The message with which the bundle is refused; it has to contain every one of `parts`.
fn refused(dir: &Path, parts: &[&str]) {
    let message = Bundle::load(dir).expect_err("a bundle that does not fit").to_string();
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

#[test]
fn every_kind_of_net_loads() {
    for kind in [Kind::Basic, Kind::Bottleneck] {
        for shortcut in [Shortcut::Pooled, Shortcut::Projection] {
            let net = Net { kind, shortcut, ..Net::tiny(3) };
            let bundle = net.bundle(written(&net).path());
            let with_shortcut = bundle.blocks.iter().filter(|block| block.shortcut.is_some()).count();
            assert_eq!(with_shortcut, if shortcut == Shortcut::Pooled { 2 } else { 3 });
            assert_eq!(bundle.blocks.iter().map(|block| block.segment).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2]);
        }
    }
}

/// ImageNet ResNet-101's shape (3, 4, 23, 3 bottlenecks with projections), thin and on small images: no code of its own.
#[test]
fn a_bottleneck_net_of_33_blocks_loads() {
    let net = Net {
        kind: Kind::Bottleneck,
        shortcut: Shortcut::Projection,
        segments: vec![3, 4, 23, 3],
        width: 2,
        ..Net::tiny(1)
    };
    let bundle = net.bundle(written(&net).path());
    assert_eq!(bundle.blocks.len(), 33);
    assert_eq!(bundle.costs().full(), net.full_flops());
}

#[test]
fn a_missing_or_changed_file_is_named() {
    let dir = written(&Net::tiny(1));
    fs::remove_file(dir.path().join("blocks/002.onnx")).unwrap();
    refused(dir.path(), &["blocks/002.onnx", "cannot be read"]);

    let dir = written(&Net::tiny(1));
    let file = dir.path().join("head.onnx");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let found = sha256_hex(&bytes);
    fs::write(&file, bytes).unwrap();
    refused(dir.path(), &["head.onnx: sha256: found ", &found, "expected "]);

    refused(Path::new("/nowhere"), &["/nowhere/bundle.json", "cannot be read"]);
}

#[test]
fn a_manifest_that_does_not_fit_is_named() {
    let cases: [(&str, Value, &[&str]); 16] = [
        ("/schema_version", json!(2), &["schema_version: found 2, expected 1"]),
        ("/opset", json!(7), &["opset: found 7, expected 13 to"]),
        ("/opset", json!(18), &["policy.onnx: opset: found 17, expected 18"]),
        ("/classes", json!(11), &["labels.txt: labels: found 10, expected 11"]),
        ("/policy/threshold", json!(1.5), &["policy.threshold: found 1.5, expected a probability"]),
        ("/policy/threshold", json!("half"), &["bundle.json", "invalid type: string"]),
        ("/segments", json!([]), &["segments: found an empty list"]),
        ("/segments/1/blocks", json!([]), &["segments: found an empty list"]),
        ("/input/height", json!(0), &["input.height: found 0"]),
        ("/input/height", json!(8), &["policy.onnx: input shape: found [3, 16, 16], expected [3, 8, 16]"]),
        ("/input/std/1", json!(0.0), &["input.std: found 0"]),
        ("/input/resize/short_side", json!(15), &["short_side: found 15"]),
        ("/flops/full", json!(1), &["flops.full: found 1, expected ", "counted from the graphs"]),
        ("/flops/policy", json!(7), &["flops.policy: found 7, expected "]),
        ("/stem/file", json!("../stem.onnx"), &["found '../stem.onnx', expected a path inside"]),
        ("/stem/sha256", json!("abc"), &["sha256 of stem.onnx: found 'abc', expected 64 hexadecimal digits"]),
    ];
    for (pointer, value, parts) in cases {
        let dir = written(&Net::tiny(1));
        edit_manifest(dir.path(), |manifest| *manifest.pointer_mut(pointer).unwrap() = value);
        refused(dir.path(), parts);
    }
    let dir = written(&Net::tiny(1));
    edit_manifest(dir.path(), |manifest| manifest["treshold"] = json!(0.5));
    refused(dir.path(), &["bundle.json", "unknown field `treshold`"]);
    fs::write(dir.path().join("bundle.json"), "{").unwrap();
    refused(dir.path(), &["bundle.json", "EOF"]);
}

#[test]
fn a_graph_that_does_not_fit_is_named() {
    let block = "blocks/001.onnx";
    let edit = |edit: fn(&mut ModelProto)| {
        let dir = written(&Net::tiny(1));
        edit_graph(dir.path(), block, edit);
        dir
    };
    let dir = edit(|model| model.graph.as_mut().unwrap().input[0].name = Some("in".into()));
    refused(dir.path(), &["blocks/001.onnx: inputs: found 'in', expected one, 'x'"]);
    let dir = edit(|model| model.graph.as_mut().unwrap().output.clear());
    refused(dir.path(), &["blocks/001.onnx: outputs: found none, expected one, 'y'"]);
    let dir = edit(|model| model.opset_import[0].version = Some(16));
    refused(dir.path(), &["blocks/001.onnx: opset: found 16, expected 17"]);
    let dir = edit(|model| {
        let again = OperatorSetIdProto { domain: Some("ai.onnx".into()), version: Some(16) };
        model.opset_import.push(again);
    });
    refused(dir.path(), &["blocks/001.onnx: opset: found 17 and 16 of the domain 'ai.onnx', expected one version"]);
    let dir = edit(|model| model.graph.as_mut().unwrap().node.reverse());
    refused(dir.path(), &["blocks/001.onnx: node 'block1.relu'", "not made before it"]);
    let dir = edit(|model| model.graph.as_mut().unwrap().node[0].op_type = Some("Loop".into()));
    refused(dir.path(), &["blocks/001.onnx: node 'block1.conv0.conv' (Loop)"]);
    let dir = edit(|model| {
        model.graph.as_mut().unwrap().initializer[0].data_location = Some(1);
    });
    refused(dir.path(), &["blocks/001.onnx: data of tensor", "external file"]);
    let dir = edit(|model| {
        let kind = model.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap();
        let Some(type_proto::Value::TensorType(tensor)) = kind.value.as_mut() else { panic!("a tensor") };
        tensor.shape.as_mut().unwrap().dim[0].value = Some(dimension::Value::DimValue(1));
    });
    refused(dir.path(), &["blocks/001.onnx: input 'x': found batch dimension 1, expected a free batch"]);
    let dir = edit(|model| {
        let kind = model.graph.as_mut().unwrap().output[0].r#type.as_mut().unwrap();
        let Some(type_proto::Value::TensorType(tensor)) = kind.value.as_mut() else { panic!("a tensor") };
        tensor.shape.as_mut().unwrap().dim[1].value = Some(dimension::Value::DimValue(5));
    });
    refused(dir.path(), &["blocks/001.onnx: shape of the output as declared: found [5, 16, 16], expected [4, 16, 16]"]);
}

/// Wherever a graph may hold a tensor, its data is not another file's, which the server can read and its author cannot.
#[test]
fn no_tensor_of_a_graph_names_a_file() {
    fn elsewhere() -> TensorProto {
        let location =
            StringStringEntryProto { key: Some("location".into()), value: Some("../../../etc/passwd".into()) };
        TensorProto {
            name: Some("secret".into()),
            data_location: Some(1),
            external_data: vec![location],
            ..TensorProto::default()
        }
    }
    fn sparse() -> SparseTensorProto {
        SparseTensorProto { values: Some(elsewhere()), ..SparseTensorProto::default() }
    }
    fn attribute(graph: &mut GraphProto, attribute: AttributeProto) {
        graph.node[0].attribute.push(AttributeProto { name: Some("value".into()), ..attribute });
    }
    let places: [fn(&mut GraphProto); 6] = [
        |graph| graph.initializer.push(elsewhere()),
        |graph| graph.sparse_initializer.push(sparse()),
        |graph| attribute(graph, AttributeProto { t: Some(elsewhere()), ..AttributeProto::default() }),
        |graph| attribute(graph, AttributeProto { tensors: vec![elsewhere()], ..AttributeProto::default() }),
        |graph| attribute(graph, AttributeProto { sparse_tensor: Some(sparse()), ..AttributeProto::default() }),
        |graph| attribute(graph, AttributeProto { sparse_tensors: vec![sparse()], ..AttributeProto::default() }),
    ];
    for place in places {
        let dir = written(&Net::tiny(1));
        edit_graph(dir.path(), "stem.onnx", |model| place(model.graph.as_mut().unwrap()));
        refused(
            dir.path(),
            &["stem.onnx: data of tensor 'secret': found an external file, expected data inside the graph"],
        );
    }
}

#[test]
fn joined_graphs_state_what_their_parts_do() {
    let dir = written(&Net::tiny(1));
    // An operator without a shape rule, whose shape is known by the graph's output alone.
    edit_graph(dir.path(), "blocks/001.onnx", |model| {
        model.graph.as_mut().unwrap().node.last_mut().unwrap().op_type = Some("ThresholdedRelu".into());
    });
    let bundle = Bundle::load(dir.path()).unwrap();
    let parts = bundle.path(&Mask::full(bundle.blocks.len()));
    let part = parts.iter().position(|part| part.file.ends_with("blocks/001.onnx")).unwrap();
    let graph = join(&parts).unwrap().graph.unwrap();
    let stated = graph.value_info.iter().find(|value| value.name() == format!("{part}/y")).unwrap();
    assert_eq!(stated.r#type, graph_output(dir.path(), "blocks/001.onnx").r#type);
}

fn graph_output(dir: &Path, file: &str) -> ValueInfoProto {
    let model = ModelProto::decode(&*fs::read(dir.join(file)).unwrap()).unwrap();
    model.graph.unwrap().output.remove(0)
}

#[test]
fn parts_of_different_nets_do_not_pass_for_one() {
    // The policy of a net with seven blocks.
    let (dir, other) = (written(&Net::tiny(1)), written(&Net { segments: vec![2, 2, 3], ..Net::tiny(1) }));
    fs::copy(other.path().join("policy.onnx"), dir.path().join("policy.onnx")).unwrap();
    rehash(dir.path(), "policy.onnx");
    refused(dir.path(), &["policy.onnx: output shape: found [7], expected [6] (one logit a block)"]);

    // A block of a wider net.
    let (dir, other) = (written(&Net::tiny(1)), written(&Net { width: 5, ..Net::tiny(1) }));
    fs::copy(other.path().join("blocks/003.onnx"), dir.path().join("blocks/003.onnx")).unwrap();
    rehash(dir.path(), "blocks/003.onnx");
    refused(dir.path(), &["blocks/003.onnx: input shape: found [10, 8, 8], expected [8, 8, 8]"]);

    // A block that changes the shape without a shortcut for when it is dropped.
    let dir = written(&Net::tiny(1));
    edit_manifest(dir.path(), |manifest| {
        manifest["segments"][1]["blocks"][0].as_object_mut().unwrap().remove("shortcut");
    });
    refused(dir.path(), &["blocks/002.onnx: output shape", "since it has no shortcut graph"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any damage to a graph, hash corrected, ends in a bundle or in an error, never in a panic.
    #[test]
    fn damaged_graphs_do_not_panic(at in 0.0..1.0f64, byte: u8, cut in prop::option::of(0.0..1.0f64)) {
        let dir = written(&Net::tiny(1));
        for name in ["policy.onnx", "blocks/002.onnx", "shortcuts/002.onnx"] {
            let file = dir.path().join(name);
            let mut bytes = fs::read(&file).unwrap();
            // The structure stands at the front and at the back; most of the middle is weights.
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = byte;
            if let Some(cut) = cut {
                bytes.truncate((cut * bytes.len() as f64) as usize);
            }
            fs::write(&file, bytes).unwrap();
            rehash(dir.path(), name);
        }
        let _ = Bundle::load(dir.path());
    }
}
