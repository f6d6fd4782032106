//! Writes the first inputs of each corpus: `cargo run --package blockdrop-fuzz --example seeds`.
//!
//! What a fuzzer found besides lies beside them, named by its hash.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blockdrop::proto::inference::infer_parameter::ParameterChoice;
use blockdrop::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use blockdrop::proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};
use blockdrop_testkit::{Kind, Net, Shortcut, encoded};
use image::{DynamicImage, ImageFormat, RgbImage};
use prost::Message;

type Done = Result<(), Box<dyn std::error::Error>>;

fn put(target: &str, name: &str, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), bytes)
}

fn main() -> Done {
    images()?;
    bundles()?;
    inference()?;
    classify()?;
    for (name, query) in [
        ("none", ""),
        ("policy", "path=policy&threshold=0.25&max_blocks=3&max_flops=40&top_k=2&timeout=1000"),
        ("mask", "path=mask:101100&model=m&version=1"),
        ("random", "path=random_k%3A3:42"),
        ("first", "path=first_k:4&top_k=1"),
        ("distribute", "path=distribute_k:6"),
        ("full", "path=full&timeout=0"),
        ("twice", "top_k=1&top_k=2"),
        ("unknown", "paht=full"),
        ("negative", "top_k=-1"),
        ("large", "max_flops=9223372036854775808"),
        ("not-a-number", "threshold=NaN"),
    ] {
        put("parameters", name, query)?;
    }
    put("selection", "short", [0; 16])?;
    put("selection", "long", (0..200).map(|byte: u8| byte.wrapping_mul(37)).collect::<Vec<_>>())?;
    put("bundle_files", "none", [])?;
    put("bundle_files", "some", (0..60).map(|byte: u8| byte.wrapping_mul(91)).collect::<Vec<_>>())?;
    put("join", "none", [])?;
    put("join", "path", [1, 5, 0, 0])?;
    put("join", "parts", [2, 0, 1, 1, 3, 1, 4, 1, 2, 0, 9, 9, 9, 9, 9])?;
    put("keys", "lines", "# of the page\r\n0123456789abcdef\n\n  \nghijklmnopqrstuvwxyz\n")?;
    put("keys", "list", "0123456789abcdef,,ghijklmnopqrstuvwxyz,")?;
    put("keys", "bad", "short\nwith a space in it\n0123456789abcdef\u{e9}\n")?;
    put("keys", "empty", "")?;
    put("frequent", "two", r#"{"schema": 1, "paths": [{"mask": "101", "share": 0.5}, {"mask": "111", "share": 1}]}"#)?;
    put("frequent", "none", r#"{"schema": 1, "paths": []}"#)?;
    put("frequent", "newer", r#"{"schema": 2, "paths": []}"#)?;
    put("frequent", "twice", r#"{"schema": 1, "paths": [{"mask": "101", "share": 0}, {"mask": "101", "share": 0}]}"#)?;
    put("frequent", "wide", r#"{"schema": 1, "paths": [{"mask": "1010", "share": 0.5}]}"#)?;
    Ok(())
}

/// A small picture in `format`.
fn picture(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_raw(width, height, encoded(1, width, height)).expect("an RGB image");
    written(&DynamicImage::ImageRgb8(image), format)
}

fn written(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("an image in memory");
    bytes.into_inner()
}

fn images() -> Done {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    for (name, format) in [("jpeg", Jpeg), ("png", Png), ("webp", WebP), ("bmp", Bmp), ("gif", Gif)] {
        put("image", name, picture(format, 9, 7))?;
        let whole = picture(format, 3, 2);
        put("image", &format!("{name}-cut"), &whole[..whole.len() * 3 / 4])?;
    }
    let rgb = DynamicImage::ImageRgb8(RgbImage::from_raw(5, 4, encoded(2, 5, 4)).expect("an RGB image"));
    put("image", "png-grey", written(&rgb.to_luma8().into(), Png))?;
    put("image", "png-deep", written(&rgb.to_rgba16().into(), Png))?;
    put("image", "jpeg-grey", written(&rgb.to_luma8().into(), Jpeg))?;
    put("image", "webp-alpha", written(&rgb.to_rgba8().into(), WebP))?;
    put("image", "bmp-alpha", written(&rgb.to_rgba8().into(), Bmp))?;
    let mut huge = picture(Bmp, 2, 2);
    huge[18..26].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
    put("image", "bmp-huge", huge)?;
    put("image", "other", "%PDF-1.7")?;
    Ok(())
}

fn bundles() -> Done {
    let dir = tempfile::tempdir()?;
    let net = Net {
        seed: 1,
        kind: Kind::Basic,
        shortcut: Shortcut::Pooled,
        segments: vec![1, 2],
        width: 2,
        side: 4,
        classes: 3,
        traps: false,
    };
    net.write(dir.path())?;
    let manifest = fs::read(dir.path().join("bundle.json"))?;
    put("bundle", "whole", &manifest)?;
    put("bundle", "cut", &manifest[..manifest.len() / 2])?;
    let changed = |from: &str, to: &str| String::from_utf8_lossy(&manifest).replacen(from, to, 1);
    put("bundle", "newer", changed("\"schema_version\": 1", "\"schema_version\": 2"))?;
    put("bundle", "outside", changed("stem.onnx", "../stem.onnx"))?;
    put("bundle", "wide", changed("\"short_side\": 4", "\"short_side\": 4096"))?;
    for graph in ["policy.onnx", "stem.onnx", "head.onnx", "blocks/000.onnx", "blocks/001.onnx", "shortcuts/001.onnx"] {
        put("onnx", &graph.replace('/', "-"), fs::read(dir.path().join(graph))?)?;
    }
    put("onnx", "path.onnx", net.reference(&"101".parse()?))?;
    let head = fs::read(dir.path().join("head.onnx"))?;
    put("onnx", "cut.onnx", &head[..head.len() / 2])?;
    let bottleneck = Net { kind: Kind::Bottleneck, shortcut: Shortcut::Projection, ..net };
    bottleneck.write(dir.path())?;
    put("onnx", "bottleneck.onnx", fs::read(dir.path().join("blocks/000.onnx"))?)?;
    Ok(())
}

fn inference() -> Done {
    let values: Vec<f32> = (0..12u8).map(|value| f32::from(value) - 5.5).collect();
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let png = picture(ImageFormat::Png, 2, 2);
    let file = [&(png.len() as u32).to_le_bytes(), &png[..]].concat();

    let json = |input: &str, rest: &str| format!(r#"{{"id":"1","inputs":[{{"name":"image",{input}}}]{rest}}}"#);
    let floats = r#""datatype":"FP32","shape":[1,3,2,2]"#;
    let all = r#","parameters":{"path":"first_k:1","binary_data_output":true,"top_k":2,"timeout":0.5,"x":[{}]}"#;
    let outputs =
        r#","outputs":[{"name":"logits","parameters":{"classification":3,"binary_data":false}},{"name":"mask"}]"#;
    put("oip_json", "flat", json(&format!("{floats},\"data\":{values:?}"), all))?;
    put(
        "oip_json",
        "nested",
        json(&format!("{floats},\"data\":[[[[1,2],[3,4]],[[5,6],[7,8]],[[9,1e0],[0,-0.0]]]]"), outputs),
    )?;
    let b64 = STANDARD.encode(&png);
    put("oip_json", "files", json(&format!(r#""datatype":"BYTES","shape":[1,1],"data":["{b64}"]"#), outputs))?;
    put("oip_json", "two", json(r#""datatype":"BYTES","shape":[2],"data":["","aGk="]"#, ""))?;
    put("oip_json", "none", json(r#""datatype":"BYTES","shape":[0],"data":[]"#, ""))?;
    put("oip_json", "nulls", r#"{"id":null,"parameters":null,"inputs":null,"outputs":null}"#)?;
    put("oip_json", "many", json(r#""datatype":"FP32","shape":[4294967296,3,2,2],"data":[1]"#, ""))?;

    let framed = |text: String, tensors: &[u8]| [format!("{}\n{text}", text.len()).as_bytes(), tensors].concat();
    let sized = |input: &str, size: usize| json(&format!(r#"{input},"parameters":{{"binary_data_size":{size}}}"#), "");
    put("oip_binary", "floats", framed(sized(floats, raw.len()), &raw))?;
    put("oip_binary", "files", framed(sized(r#""datatype":"BYTES","shape":[1]"#, file.len()), &file))?;
    put("oip_binary", "image", [b"0\n", &png[..]].concat())?;
    put("oip_binary", "short", framed(sized(floats, raw.len()), &raw[1..]))?;
    put("oip_binary", "long", "99999999999999999999\n{}")?;
    put("oip_binary", "no-length", "\n{}")?;

    let input = |datatype: &str, shape: &[i64]| InferInputTensor {
        name: "image".into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..Default::default()
    };
    let request = |input| ModelInferRequest { model_name: "m".into(), inputs: vec![input], ..Default::default() };
    let floats = || input("FP32", &[1, 3, 2, 2]);
    let number = |value| InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(value)) };
    let raw_floats = ModelInferRequest {
        id: "1".into(),
        parameters: [("top_k".to_owned(), number(2))].into(),
        outputs: vec![InferRequestedOutputTensor {
            name: "logits".into(),
            parameters: [("classification".to_owned(), number(3))].into(),
        }],
        raw_input_contents: vec![raw.into()],
        ..request(floats())
    }
    .encode_to_vec();
    let typed = InferTensorContents { fp32_contents: values, ..Default::default() };
    let files = InferTensorContents { bytes_contents: vec![png.into()], ..Default::default() };
    let numbers = InferTensorContents {
        bool_contents: vec![true; 3],
        int_contents: vec![-1; 2],
        int64_contents: vec![1 << 40],
        uint_contents: vec![7; 3],
        uint64_contents: vec![1 << 60],
        fp64_contents: vec![0.5],
        ..Default::default()
    };
    put("oip_grpc", "raw", &raw_floats)?;
    put("oip_grpc", "group", [&[0x7b, 0x08, 1, 0x2a, 1, 0xff, 0x7c], &raw_floats[..]].concat())?;
    let with = |input, contents| request(InferInputTensor { contents: Some(contents), ..input }).encode_to_vec();
    put("oip_grpc", "floats", with(floats(), typed))?;
    put("oip_grpc", "files", with(input("BYTES", &[1]), files))?;
    put("oip_grpc", "numbers", with(floats(), numbers))?;
    put("oip_grpc", "cut", &raw_floats[..raw_floats.len() - 1])?;
    Ok(())
}

fn classify() -> Done {
    let png = picture(ImageFormat::Png, 2, 2);
    let b64 = STANDARD.encode(&png);
    let json = |images: &str| format!("application/json\n{{\"images\":[{images}]}}");
    put("classify", "json", json(&format!(r#"{{"b64":"{b64}"}},{{"b64":"\u0061Gk="}},{{"b64":"no"}}"#)))?;
    put("classify", "json-none", json(""))?;
    put("classify", "json-list", json(r#"["aGk="]"#))?;
    let part = |head: &str, body: &[u8]| {
        [b"--b\r\nContent-Disposition: form-data", head.as_bytes(), b"\r\n\r\n", body, b"\r\n"].concat()
    };
    let form = |parts: &[Vec<u8>]| {
        [b"multipart/form-data; boundary=b\n".to_vec(), parts.concat(), b"--b--\r\n".to_vec()].concat()
    };
    let named = "; name=\"image\"; filename=\"a.png\"\r\nContent-Type: image/png";
    put("classify", "form", form(&[part(named, &png), part("; name=image", b"hi")]))?;
    put("classify", "form-other", form(&[part("; name=picture", &png)]))?;
    put("classify", "form-none", form(&[]))?;
    put(
        "classify",
        "form-cut",
        "multipart/form-data; boundary=\"b c\"\n--b c\r\nContent-Disposition: form-data; name*=UTF-8''image\r\n\r\nx",
    )?;
    put("classify", "no-boundary", "multipart/form-data\n--b--")?;
    Ok(())
}
