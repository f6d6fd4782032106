//! The Open Inference Protocol over REST, byte by byte: what is answered, and every way to get it wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use base64::Engine as _;
use blockdrop_testkit::Net;
use common::raw::{Raw, Whole, ask};
use common::reference::Reference;
use common::server::{Server, answered};
use common::{contains, models, png};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// What [`Net::tiny`] takes, and how many blocks it has.
const SHAPE: [usize; 3] = [3, 16, 16];
const PIXELS: usize = 3 * 16 * 16;

const INFER: &str = "/v2/models/net/infer";

fn started(flags: &[&str]) -> Server {
    Server::start(models("net", &Net::tiny(5)).path(), flags)
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A request of one BYTES input.
fn of_files(files: &[Vec<u8>]) -> Value {
    let data: Vec<String> = files.iter().map(|file| base64(file)).collect();
    json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [files.len()], "data": data}]})
}

async fn infer(server: &Server, body: &Value) -> Value {
    answered(server.client.post(server.url(INFER)).json(body).send().await.unwrap()).await
}

fn output<'v>(answer: &'v Value, name: &str) -> &'v Value {
    let outputs = answer["outputs"].as_array().unwrap();
    outputs.iter().find(|output| output["name"] == name).unwrap_or_else(|| panic!("no output {name}: {answer}"))
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn check(found: &Whole, status: u16, code: &str, parts: &[&str]) {
    let shown = String::from_utf8_lossy(&found.body);
    assert_eq!(found.status, status, "{shown}");
    let body = found.json();
    let keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["error", "code", "request_id"], "{shown}");
    assert_eq!(body["code"], code, "{shown}");
    contains(body["error"].as_str().unwrap(), parts);
}

async fn refused(server: &Server, headers: &str, body: &[u8], status: u16, code: &str, parts: &[&str]) {
    let found = ask(server.http, request(INFER, headers, body)).await.whole();
    check(&found, status, code, parts);
}

#[tokio::test]
async fn outputs_are_what_the_engine_finds() {
    let dir = models("net", &Net::tiny(5));
    let server = Server::start(dir.path(), &[]);
    let reference = Reference::load(&dir.path().join("net/1"));
    let files: Vec<Vec<u8>> = (0..5).map(png).collect();
    let answer = infer(&server, &of_files(&files)).await;
    assert_eq!((&answer["model_name"], &answer["model_version"]), (&json!("net"), &json!("1")));
    assert_eq!(answer.get("id"), None);
    assert_eq!(answer.get("parameters"), None, "facts of one image alone");
    let expected: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(index, file)| reference.answer(file, &reference.selection("policy"), index as u64))
        .collect();
    let classes = expected[0].logits.len();
    let logits = output(&answer, "logits");
    assert_eq!((&logits["datatype"], &logits["shape"]), (&json!("FP32"), &json!([5, classes])));
    for (found, expected) in floats(&logits["data"]).iter().zip(expected.iter().flat_map(|answer| &answer.logits)) {
        assert!((found - f64::from(*expected)).abs() < 1e-4, "{found} {expected}");
    }
    let masks: Vec<u8> = expected.iter().flat_map(|answer| answer.mask.iter().map(u8::from)).collect();
    assert_eq!(
        output(&answer, "mask"),
        &json!({
            "name": "mask", "datatype": "UINT8", "shape": [5, reference.blocks()], "data": masks,
        })
    );
    let kept: Vec<usize> = expected.iter().map(|answer| answer.mask.kept()).collect();
    assert_eq!(output(&answer, "blocks"), &json!({"name": "blocks", "datatype": "INT32", "shape": [5], "data": kept}));
    let spent: Vec<u64> = expected.iter().map(|answer| reference.costs().spent(&answer.mask, true)).collect();
    assert_eq!(output(&answer, "flops"), &json!({"name": "flops", "datatype": "INT64", "shape": [5], "data": spent}));
    let best: Vec<usize> = expected
        .iter()
        .map(|answer| (0..classes).max_by(|&a, &b| answer.logits[a].total_cmp(&answer.logits[b])).unwrap())
        .collect();
    assert_eq!(output(&answer, "class"), &json!({"name": "class", "datatype": "INT32", "shape": [5], "data": best}));
    let probabilities = floats(&output(&answer, "probabilities")["data"]);
    for image in probabilities.chunks(classes) {
        assert!((image.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{image:?}");
    }
}

#[tokio::test]
async fn a_request_says_what_it_wants() {
    let server = started(&[]);
    let mut body = of_files(&[png(1)]);
    body["id"] = json!("mine");
    body["parameters"] =
        json!({"path": "first_k:4", "top_k": 2, "priority": 3, "sequence_id": 0, "triton_x": {"a": []}});
    body["outputs"] = json!([{"name": "class"}, {"name": "mask", "parameters": {"binary_data": false}}]);
    let answer = infer(&server, &body).await;
    assert_eq!(answer["id"], "mine");
    assert_eq!(answer["outputs"].as_array().unwrap().len(), 2);
    assert_eq!(output(&answer, "mask")["data"], json!([1, 1, 1, 1, 0, 0]));
    assert_eq!(output(&answer, "class")["shape"], json!([1, 2]));
    let facts = &answer["parameters"];
    assert_eq!(
        (&facts["path"], &facts["mask"], &facts["blocks_kept"]),
        (&json!("first_k"), &json!("111100"), &json!(4))
    );
    assert_eq!(facts["flops_policy"], 0);
    for time in ["decode_us", "preprocess_us", "queue_us", "policy_us", "backbone_us", "total_us"] {
        assert!(facts[time].is_u64(), "{time}: {facts}");
    }
    // Numbers may come as text or with a point, as gRPC's parameters and Python's may.
    for top_k in [json!("2"), json!(2.0)] {
        body["parameters"]["top_k"] = top_k;
        assert_eq!(output(&infer(&server, &body).await, "class")["shape"], json!([1, 2]));
    }
    body["outputs"] = json!([{"name": "probabilities", "parameters": {"classification": 3}}, {"name": "flops"}]);
    let answer = infer(&server, &body).await;
    let found = output(&answer, "probabilities");
    assert_eq!((&found["datatype"], &found["shape"]), (&json!("BYTES"), &json!([1, 3])));
    let first: Vec<&str> = found["data"][0].as_str().unwrap().split(':').collect();
    assert_eq!(first.len(), 3, "value:index:label in {found}");
    assert!((0.0..=1.0).contains(&first[0].parse::<f64>().unwrap()), "{found}");
}

/// JSON, flat and nested, and binary tensors, in every mixture, are the same request and get the same answer.
#[test]
fn json_and_binary_are_the_same() {
    let (server, runtime) = (started(&[]), tokio::runtime::Runtime::new().unwrap());
    let cases = (1usize..4, any::<u64>(), any::<bool>(), any::<bool>());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(24));
    let run = runner.run(&cases, |(count, seed, nested, some)| {
        let value = |at: usize| ((seed.wrapping_mul(at as u64 + 1) >> 40) as f32) / 1e7 - 0.8;
        let pixels: Vec<f32> = (0..count * PIXELS).map(value).collect();
        let shape: Vec<usize> = std::iter::once(count).chain(SHAPE).collect();
        let mut data: Vec<Value> = pixels.iter().map(|pixel| json!(pixel)).collect();
        if nested {
            for &length in shape.iter().skip(1).rev() {
                data = data.chunks(length).map(|chunk| json!(chunk)).collect();
            }
        }
        let plain = json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": shape, "data": data}]});
        let raw: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        let json = json!({
            "parameters": {"binary_data_output": !some},
            "inputs": [{"name": "image", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": raw.len()}}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": true}}, {"name": "mask"}],
        });
        let json = json.to_string().into_bytes();
        let length = format!("inference-header-content-length: {}\r\n", json.len());
        let (plain, binary) = runtime.block_on(async {
            let found = ask(server.http, request(INFER, &length, &[json, raw].concat())).await.whole();
            (infer(&server, &plain).await, found)
        });
        prop_assert_eq!(binary.status, 200);
        prop_assert_eq!(binary.header("content-type"), Some("application/octet-stream"));
        let stated: usize = binary.header("inference-header-content-length").unwrap().parse().unwrap();
        let (json, mut tensors) = binary.body.split_at(stated);
        let json: Value = serde_json::from_slice(json).unwrap();
        let sizes: Vec<Option<u64>> =
            json["outputs"].as_array().unwrap().iter().map(|output| output["parameters"]["binary_data_size"].as_u64()).collect();
        let mask = &output(&plain, "mask")["data"];
        prop_assert_eq!(sizes[0].unwrap() as usize, 4 * count * output(&plain, "logits")["shape"][1].as_u64().unwrap() as usize);
        for expected in floats(&output(&plain, "logits")["data"]) {
            let (value, rest) = tensors.split_at(4);
            tensors = rest;
            prop_assert!((f64::from(f32::from_le_bytes(value.try_into().unwrap())) - expected).abs() < 1e-4);
        }
        if some {
            prop_assert_eq!(&output(&json, "mask")["data"], mask, "not asked for in binary");
            prop_assert!(tensors.is_empty());
        } else {
            let found: Vec<u8> = mask.as_array().unwrap().iter().map(|keep| u8::try_from(keep.as_u64().unwrap()).unwrap()).collect();
            prop_assert_eq!(tensors, &found[..]);
        }
        Ok(())
    });
    run.unwrap();
}

#[tokio::test]
async fn an_image_may_be_the_body_alone() {
    let server = started(&[]);
    let found = ask(
        server.http,
        request(&format!("{INFER}?path=full&top_k=1"), "inference-header-content-length: 0\r\n", &png(1)),
    )
    .await
    .whole();
    assert_eq!(found.status, 200, "{found:?}");
    let answer = found.json();
    assert_eq!((&answer["parameters"]["path"], &output(&answer, "class")["shape"]), (&json!("full"), &json!([1, 1])));
    let wrong = request(&format!("{INFER}?model=net"), "inference-header-content-length: 0\r\n", &png(1));
    check(
        &ask(server.http, wrong).await.whole(),
        400,
        "invalid_parameter",
        &["model: found 'net'", "in the path alone"],
    );
    refused(
        &server,
        "inference-header-content-length: 0\r\n",
        b"junk",
        415,
        "unsupported_image_type",
        &["6a 75 6e 6b"],
    )
    .await;
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let server = started(&["--max-images", "4"]);
    let input = |input: Value| json!({"inputs": [input]}).to_string();
    let pixels = vec![0.0; PIXELS];
    let [file] = [base64(&png(1))];
    let cases: &[(String, &str, &[&str])] = &[
        ("".into(), "empty_body", &["the body is empty"]),
        ("[".into(), "invalid_body", &["JSON", "line 1"]),
        ("[]".into(), "invalid_body", &["JSON", "expected an object", "inputs"]),
        ("\u{fffd}".into(), "invalid_body", &["JSON"]),
        ("{}".into(), "invalid_body", &["missing field `inputs`"]),
        (r#"{"inputs": []}"#.into(), "invalid_body", &["found none, expected one named image"]),
        (r#"{"inputs": [{}]}"#.into(), "invalid_body", &["missing field `name`"]),
        (
            input(json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]})),
            "invalid_body",
            &["'x'", "expected image"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP16", "shape": [1], "data": [1]})),
            "invalid_body",
            &["'FP16'", "FP32", "BYTES"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [3, 16, 16], "data": pixels})),
            "invalid_body",
            &["[3,16,16]", "[N,3,16,16]"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 15], "data": pixels})),
            "invalid_body",
            &["[1,3,16,15]"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [0, 3, 16, 16], "data": []})),
            "invalid_body",
            &["a batch of 0"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [-1, 3, 16, 16], "data": pixels})),
            "invalid_body",
            &["a batch of -1"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [1, 2]})),
            "invalid_body",
            &["2 values", "768"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [[1, 2]]})),
            "invalid_body",
            &["[1, 2]", "flat"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [file]})),
            "invalid_body",
            &["data has a string", "numbers for FP32"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16]})),
            "invalid_body",
            &["neither data nor binary_data_size"],
        ),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": vec![1; 17], "data": [1]})),
            "invalid_body",
            &["a list of more than 16"],
        ),
        (
            input(json!({"name": "image", "datatype": "BYTES", "shape": [2], "data": [file]})),
            "invalid_body",
            &["1 elements", "expected 2"],
        ),
        (
            input(json!({"name": "image", "datatype": "BYTES", "shape": [1], "data": ["no base64"]})),
            "invalid_body",
            &["standard base64"],
        ),
        (
            input(json!({"name": "image", "datatype": "BYTES", "shape": [1], "data": [1]})),
            "invalid_body",
            &["data has a number", "base64 strings for BYTES"],
        ),
        (
            input(json!({"name": "image", "datatype": "BYTES", "shape": [1, 2], "data": [file]})),
            "invalid_body",
            &["[1,2]", "expected [N]"],
        ),
        (
            input(json!({"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]})),
            "empty_body",
            &["the image is empty"],
        ),
        (
            input(
                json!({"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"shared_memory_region": "r"}}),
            ),
            "invalid_body",
            &["shared_memory_region", "shared memory is not read"],
        ),
        (format!(r#"{{"inputs": [{}, {}]}}"#, "{}", "{}"), "invalid_body", &["JSON"]),
    ];
    for (body, code, parts) in cases {
        refused(&server, "", body.as_bytes(), 400, code, parts).await;
    }
    // Shapes that overflow, if anybody multiplies them.
    let long =
        input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": vec![1; PIXELS + 1]}));
    refused(&server, "", long.as_bytes(), 400, "invalid_body", &["data has more than the 768 values of its shape"])
        .await;
    for size in [i64::MAX, i64::MAX / 768 + 1, 1 << 32, 5] {
        let body = input(json!({"name": "image", "datatype": "FP32", "shape": [size, 3, 16, 16], "data": pixels}));
        refused(&server, "", body.as_bytes(), 413, "too_many_images", &["more than 4 images"]).await;
        let body = input(json!({"name": "image", "datatype": "BYTES", "shape": [size], "data": [file]}));
        refused(&server, "", body.as_bytes(), 413, "too_many_images", &["more than 4 images"]).await;
    }
    let mut several = of_files(&[png(1), b"junk".to_vec(), png(2)]);
    refused(&server, "", several.to_string().as_bytes(), 415, "unsupported_image_type", &["image 1: "]).await;
    several["inputs"][0]["shape"] = json!([3, 1]);
    refused(&server, "", several.to_string().as_bytes(), 415, "unsupported_image_type", &["image 1: "]).await;
    let deep = [b"{\"inputs\":".as_slice(), &[b'['; 100_000]].concat();
    refused(&server, "", &deep, 400, "invalid_body", &["JSON"]).await;
    let huge = input(json!({"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": vec![3e38; PIXELS]}));
    refused(&server, "", huge.as_bytes(), 400, "invalid_body", &["overflow", "normalised"]).await;
    assert_eq!(infer(&server, &of_files(&[png(1)])).await["model_name"], "net");
    assert_eq!(server.metrics().await.code(500), 0.0);
}

#[tokio::test]
async fn lengths_that_lie() {
    let server = started(&[]);
    let raw = vec![0u8; 4 * PIXELS];
    let json = |size: i64| {
        json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "parameters": {"binary_data_size": size}}]})
            .to_string()
            .into_bytes()
    };
    let header = |length: usize| format!("inference-header-content-length: {length}\r\n");
    let whole = |json: &[u8], raw: &[u8]| [json, raw].concat();
    let right = json(raw.len() as i64);
    let found = ask(server.http, request(INFER, &header(right.len()), &whole(&right, &raw))).await.whole();
    assert_eq!(found.status, 200, "{found:?}");

    let cases: Vec<(String, Vec<u8>, &[&str])> = vec![
        ("inference-header-content-length: -1\r\n".into(), whole(&right, &raw), &["'-1'", "a number of bytes"]),
        ("inference-header-content-length: 1e3\r\n".into(), whole(&right, &raw), &["'1e3'"]),
        ("inference-header-content-length: +3\r\n".into(), whole(&right, &raw), &["'+3'"]),
        (header(right.len()) + &header(9), whole(&right, &raw), &["a number of bytes, once"]),
        (
            "inference-header-content-length: 18446744073709551616\r\n".into(),
            whole(&right, &raw),
            &["a number of bytes"],
        ),
        (header(1 << 40), whole(&right, &raw), &["states 1099511627776 bytes of JSON"]),
        (header(right.len() - 1), whole(&right, &raw), &["JSON", "EOF"]),
        (header(right.len() + 1), whole(&right, &raw), &["JSON", "trailing"]),
        (header(right.len()), whole(&right, &raw[1..]), &["states 3072 bytes, found 3071"]),
        (header(right.len()), whole(&right, &[&raw[..], b"x"].concat()), &["states 3072 bytes, found 3073"]),
        (header(json(4).len()), whole(&json(4), &raw[..4]), &["4 bytes", "expected 3072"]),
        (header(json(-1).len()), whole(&json(-1), &raw), &["'-1'", "a number of bytes"]),
        (String::new(), right.clone(), &["states 3072 bytes, found 0"]),
    ];
    for (headers, body, parts) in &cases {
        let about_header = parts.iter().any(|part| part.contains("a number of bytes") || part.starts_with('\''));
        let code = if about_header && !body.starts_with(&json(-1)) { "invalid_parameter" } else { "invalid_body" };
        refused(&server, headers, body, 400, code, parts).await;
    }
    let both = json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [1],
                                  "parameters": {"binary_data_size": 3072}}]});
    let both = both.to_string().into_bytes();
    refused(
        &server,
        &header(both.len()),
        &whole(&both, &raw),
        400,
        "invalid_body",
        &["found data and binary_data_size"],
    )
    .await;
    let beside = of_files(&[png(1)]).to_string().into_bytes();
    refused(
        &server,
        &header(beside.len()),
        &whole(&beside, b"x"),
        400,
        "invalid_body",
        &["found 1 bytes after the JSON"],
    )
    .await;
    let not_finite = [&f32::NAN.to_le_bytes()[..], &raw[4..]].concat();
    refused(&server, &header(right.len()), &whole(&right, &not_finite), 400, "invalid_body", &["NaN at value 0"]).await;

    // Elements of BYTES, each after its length.
    let files = |count: usize, raw: &[u8]| {
        let json = json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [count],
                                      "parameters": {"binary_data_size": raw.len()}}]});
        let json = json.to_string().into_bytes();
        (header(json.len()), whole(&json, raw))
    };
    let element = |file: &[u8]| [&(file.len() as u32).to_le_bytes()[..], file].concat();
    let (headers, body) = files(2, &[element(&png(1)), element(&png(2))].concat());
    let found = ask(server.http, request(INFER, &headers, &body)).await.whole();
    assert_eq!(found.status, 200, "{found:?}");
    for (count, raw, part) in [
        (1, vec![], "found 0 bytes left at element 0"),
        (1, vec![1, 0], "found 2 bytes left at element 0"),
        (1, u32::MAX.to_le_bytes().to_vec(), "element 0 states 4294967295 bytes, found 0"),
        (2, element(&png(1)), "found 0 bytes left at element 1"),
        (1, [element(&png(1)), vec![0]].concat(), "found 1 bytes after the last of 1 elements"),
    ] {
        let (headers, body) = files(count, &raw);
        refused(&server, &headers, &body, 400, "invalid_body", &[part]).await;
    }
}

#[tokio::test]
async fn parameters_and_outputs_that_do_not_fit() {
    let server = started(&[]);
    let cases: &[(Value, &[&str])] = &[
        (json!({"treshold": 0.5}), &["found 'treshold'", "threshold"]),
        (json!({"threshold": 2}), &["threshold: found 2", "0 to 1"]),
        (json!({"threshold": "x"}), &["threshold: found 'x'"]),
        (json!({"threshold": null}), &["threshold", "null"]),
        (json!({"top_k": 0}), &["top_k: found 0"]),
        (json!({"top_k": -1}), &["top_k: found '-1'"]),
        (json!({"path": "zig"}), &["path: found 'zig'"]),
        (json!({"path": ["full"]}), &["path: found 'a list"]),
        (json!({"max_blocks": 1.5}), &["max_blocks: found '1.5'"]),
        (json!({"timeout": -1}), &["timeout: found '-1'", "microseconds"]),
        (json!({"binary_data_output": "yes"}), &["binary_data_output: found 'yes'", "true or false"]),
    ];
    for (parameters, parts) in cases {
        let mut body = of_files(&[png(1)]);
        body["parameters"] = parameters.clone();
        refused(&server, "", body.to_string().as_bytes(), 400, "invalid_parameter", parts).await;
    }
    let cases: &[(Value, &[&str])] = &[
        (json!([{"name": "softmax"}]), &["found 'softmax'", "logits, probabilities, class, mask, blocks, flops"]),
        (json!([{"name": "mask"}, {"name": "mask"}]), &["found 'mask' twice"]),
        (json!([{"name": "mask", "parameters": {"classification": 2}}]), &["classification of 'mask'"]),
        (json!([{"name": "mask", "parameters": {"binary_data": 1}}]), &["binary_data: found '1'"]),
        (json!([{"name": "logits", "parameters": {"classification": -2}}]), &["classification = -2"]),
        (json!([{"name": "logits", "parameters": {"shared_memory_region": "r"}}]), &["shared_memory_region"]),
    ];
    for (outputs, parts) in cases {
        let mut body = of_files(&[png(1)]);
        body["outputs"] = outputs.clone();
        refused(&server, "", body.to_string().as_bytes(), 400, "invalid_parameter", parts).await;
    }
    let mut body = of_files(&[png(1)]);
    body["id"] = json!("x".repeat(1025));
    refused(&server, "", body.to_string().as_bytes(), 400, "invalid_parameter", &["id: found 1025 bytes", "1024"])
        .await;
    let many: Vec<Value> = (0..17).map(|_| json!({"name": "mask"})).collect();
    let mut body = of_files(&[png(1)]);
    body["outputs"] = json!(many);
    refused(&server, "", body.to_string().as_bytes(), 400, "invalid_body", &["a list of more than 16"]).await;

    for (path, status, code, part) in [
        ("/v2/models/nope/infer", 404, "unknown_model", "'nope'"),
        ("/v2/models/net/versions/2/infer", 404, "unknown_model", "version '2'"),
        ("/v2/models/net/versions/01/infer", 404, "unknown_model", "version '01'"),
        ("/v2/models/%ff/infer", 400, "invalid_parameter", "UTF-8"),
        ("/v2/models/net/train", 404, "not_found", "/v2/models/net/train"),
        ("/v2/repository/models/net/load", 404, "not_found", "/v2/repository/models/net/load"),
        ("/v2/repository/models/net/unload", 404, "not_found", "unload"),
    ] {
        check(&ask(server.http, request(path, "", b"{}")).await.whole(), status, code, &[part]);
    }
}

#[tokio::test]
async fn bodies_that_stop_half_way() {
    let server = started(&["--request-timeout", "1s"]);
    let body = of_files(&[png(1)]).to_string();
    let mut slow = Raw::open(server.http).await.unwrap();
    slow.send(format!("POST {INFER} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    slow.send(&body[..20]).await;
    check(&slow.answer().await.whole(), 408, "body_timeout", &["found 20 bytes of it"]);
    let mut cut = Raw::open(server.http).await.unwrap();
    cut.send(format!("POST {INFER} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    cut.send(&body[..20]).await;
    cut.finish().await;
    drop(cut.answer().await);
    let late = json!({"inputs": of_files(&[png(1)])["inputs"], "parameters": {"timeout": 1}});
    refused(&server, "", late.to_string().as_bytes(), 504, "deadline_exceeded", &["time ran out"]).await;
    assert_eq!(infer(&server, &of_files(&[png(1)])).await["model_name"], "net");
}

#[tokio::test]
async fn statistics_count_requests_images_and_runs() {
    let server = started(&[]);
    let stats = async || {
        let found = answered(server.get("/v2/models/net/stats").await).await;
        found["model_stats"][0].clone()
    };
    let before = stats().await;
    assert_eq!((&before["inference_count"], &before["last_inference"]), (&json!(0), &json!(0)));
    infer(&server, &of_files(&[png(1), png(2), png(3)])).await;
    infer(&server, &of_files(&[png(1)])).await;
    refused(&server, "", of_files(&[b"junk".to_vec()]).to_string().as_bytes(), 415, "unsupported_image_type", &[])
        .await;
    let after = stats().await;
    assert_eq!(after["inference_count"], 4);
    assert!((2..=4).contains(&after["execution_count"].as_u64().unwrap()), "{after}");
    assert!(after["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
    let counts = &after["inference_stats"];
    for (what, count) in [("success", 2), ("fail", 1), ("queue", 2), ("compute_infer", 2), ("cache_hit", 0)] {
        assert_eq!(counts[what]["count"], count, "{what}: {after}");
    }
    assert!(counts["success"]["ns"].as_u64().unwrap() >= counts["compute_infer"]["ns"].as_u64().unwrap(), "{after}");
    let all = answered(server.get("/v2/models/stats").await).await;
    assert_eq!(all["model_stats"][0], after);
}
