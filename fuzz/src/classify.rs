//! Bodies of `/v1/classify`: JSON and forms.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blockdrop::server::fuzzing;
use bytes::Bytes;
use serde_json::json;

use crate::{Outcome, Refused, Taken, check_message};

/// Images of a body, at most.
const MOST: usize = 4;

/// `input` is the content type, a line of its own, and the body.
pub(crate) fn classify(input: &[u8]) -> Outcome {
    let line = input.iter().position(|&byte| byte == b'\n').unwrap_or(0);
    let Ok(content_type) = std::str::from_utf8(&input[..line]) else { return Refused };
    let body = Bytes::copy_from_slice(input.get(line + 1..).unwrap_or_default());
    let images = match fuzzing::classify(content_type, &body, MOST) {
        Ok(images) => images,
        Err(error) => {
            check_message(&error.message);
            assert!(error.kind.status().is_client_error(), "{error}");
            return Refused;
        }
    };
    assert!(images.len() <= MOST);
    images.iter().filter_map(|image| image.as_ref().err()).for_each(|error| check_message(&error.message));
    let images: Vec<Bytes> = images.into_iter().flatten().collect();
    if images.is_empty() {
        return Refused;
    }
    let list: Vec<_> = images.iter().map(|image| json!({"b64": STANDARD.encode(image)})).collect();
    same("application/json", json!({ "images": list }).to_string().into_bytes(), &images);

    // A boundary that is in no image.
    let within = |boundary: &String| {
        images.iter().any(|image| image.windows(boundary.len()).any(|part| part == boundary.as_bytes()))
    };
    let boundary = (0..).map(|number| format!("boundary{number}")).find(|boundary| !within(boundary));
    let boundary = boundary.expect("images end");
    let mut form = Vec::new();
    for image in &images {
        let head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\n");
        form.extend(head.into_bytes());
        form.extend(image);
        form.extend(b"\r\n");
    }
    form.extend(format!("--{boundary}--\r\n").into_bytes());
    same(&format!("multipart/form-data; boundary={boundary}"), form, &images);
    Taken
}

fn same(content_type: &str, body: Vec<u8>, images: &[Bytes]) {
    let again = fuzzing::classify(content_type, &body.into(), MOST).unwrap_or_else(|error| panic!("{error}"));
    let again: Vec<Bytes> = again.into_iter().map(|image| image.expect("an image")).collect();
    assert_eq!(again, images, "as {content_type}");
}
