//! `POST /v1/classify` of the real server: every way to send images, every way to choose blocks, the same answers as
//! the engine gives in this process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;

use base64::Engine as _;
use blockdrop::policy::Choice;
use blockdrop_testkit::{Kind, Net, Shortcut};
use common::reference::Reference;
use common::server::{Server, answered};
use common::{FORMATS, models, picture, png};
use image::ImageFormat;
use serde_json::{Value, json};

/// A server of one small net, and the engine to compare it with.
fn started(net: &Net, flags: &[&str]) -> (Server, Reference) {
    let models = models("net", net);
    let server = Server::start(models.path(), flags);
    (server, Reference::load(&models.path().join("net/1")))
}

/// The results of an answer; whatever else is in it is checked.
fn results(answer: &Value) -> &[Value] {
    let keys: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["model", "version", "request_id", "results"]);
    assert_eq!((&answer["model"], &answer["version"]), (&json!("net"), &json!("1")));
    assert!(answer["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    answer["results"].as_array().unwrap()
}

fn only(answer: &Value) -> &Value {
    let [result] = results(answer) else { panic!("expected one result: {answer}") };
    result
}

fn as_json(images: &[Vec<u8>]) -> String {
    let encode = |image: &Vec<u8>| json!({"b64": base64::engine::general_purpose::STANDARD.encode(image)});
    json!({"images": images.iter().map(encode).collect::<Vec<_>>()}).to_string()
}

async fn classify_json(server: &Server, query: &str, body: String) -> Value {
    let post = server.client.post(server.url(&format!("/v1/classify{query}")));
    answered(post.header("content-type", "application/json; charset=utf-8").body(body).send().await.unwrap()).await
}

/// Pictures that the policy keeps at least `kept` blocks for.
fn wanting(reference: &Reference, kept: usize) -> Vec<u8> {
    let mut pictures = (0..1000).map(png);
    pictures.find(|picture| reference.learned(picture).kept() >= kept).expect("such a picture")
}

#[tokio::test]
async fn every_image_type_in_every_kind_of_body_gives_the_engines_answer() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let learned = reference.selection("policy");
    for format in FORMATS {
        // Of the model's size, and of another one.
        for side in [16, 53] {
            let image = picture(7, side, format);
            reference.check(only(&server.classify("", image.clone()).await), &image, &learned, 0);
            let form = server.classify_all("", std::slice::from_ref(&image)).await;
            reference.check(only(&form), &image, &learned, 0);
            let answer = classify_json(&server, "", as_json(std::slice::from_ref(&image))).await;
            reference.check(only(&answer), &image, &learned, 0);
        }
    }
    server.stop();
}

#[tokio::test]
async fn bottleneck_blocks_and_projections_are_served_as_they_are() {
    let net = Net { kind: Kind::Bottleneck, shortcut: Shortcut::Projection, segments: vec![1, 3, 2], ..Net::tiny(3) };
    let (server, reference) = started(&net, &[]);
    for path in ["policy", "full", "mask:010110", "first_k:0"] {
        let image = png(4);
        let answer = server.classify(&format!("?path={path}"), image.clone()).await;
        reference.check(only(&answer), &image, &reference.selection(path), 0);
    }
}

#[tokio::test]
async fn the_images_of_a_request_keep_their_order() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let learned = reference.selection("policy");
    let images: Vec<Vec<u8>> = (0..40).map(png).collect();
    let masks: HashSet<_> = images.iter().map(|image| reference.learned(image)).collect();
    assert!(masks.len() > 2, "batches of different masks would not be tested");
    for answer in [server.classify_all("", &images).await, classify_json(&server, "", as_json(&images)).await] {
        assert_eq!(results(&answer).len(), images.len());
        for (result, image) in results(&answer).iter().zip(&images) {
            reference.check(result, image, &learned, 0);
        }
    }
}

#[tokio::test]
async fn many_clients_at_once_each_get_their_own_answer() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let paths = ["policy", "full", "mask:011010", "first_k:3", "distribute_k:2"];
    let asked: Vec<(Vec<u8>, &str)> = (0..60).map(|seed| (png(seed), paths[seed as usize % paths.len()])).collect();
    let queries = asked.iter().map(|(image, path)| (format!("?path={path}"), image.clone()));
    let answers =
        futures_util::future::join_all(queries.map(async |(query, image)| server.classify(&query, image).await));
    for (answer, (image, path)) in answers.await.iter().zip(&asked) {
        reference.check(only(answer), image, &reference.selection(path), 0);
    }
}

#[tokio::test]
async fn a_bad_image_among_good_ones_has_an_error_of_its_own() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let learned = reference.selection("policy");
    let (first, last) = (png(1), png(2));
    let cut = first[..first.len() / 2].to_vec();
    let images = [first.clone(), b"not an image".to_vec(), cut, Vec::new(), last.clone()];
    let mut encoded: Value = serde_json::from_str(&as_json(&images)).unwrap();
    encoded["images"].as_array_mut().unwrap().push(json!({"b64": "&&&"}));

    let form = server.classify_all("", &images).await;
    let answer = classify_json(&server, "", encoded.to_string()).await;
    assert_eq!((results(&form).len(), results(&answer).len()), (5, 6));
    for found in [&form, &answer] {
        reference.check(&results(found)[0], &first, &learned, 0);
        reference.check(&results(found)[4], &last, &learned, 0);
    }
    let bad = [
        (1, "unsupported_image_type", "JPEG, PNG, WebP, BMP or GIF"),
        (2, "invalid_image", "the PNG image is damaged"),
        (3, "empty_body", "the image is empty"),
        (5, "invalid_image", "b64: "),
    ];
    for (index, code, part) in bad {
        for found in [&form, &answer].into_iter().filter_map(|found| results(found).get(index)) {
            let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["error", "code"]);
            assert_eq!(found["code"], code, "{found}");
            assert!(found["error"].as_str().unwrap().contains(part), "{found}");
        }
    }
}

#[tokio::test]
async fn every_path_runs_its_blocks() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let image = wanting(&reference, 3);
    let learned = reference.learned(&image).to_string();
    let cases = [
        ("policy", learned.as_str()),
        ("full", "111111"),
        ("mask:111111", "111111"),
        ("mask:101001", "101001"),
        ("mask:000000", "000000"),
        ("first_k:0", "000000"),
        ("first_k:4", "111100"),
        ("first_k:6", "111111"),
        // Dealt to the three segments in turn.
        ("distribute_k:1", "100000"),
        ("distribute_k:3", "101010"),
        ("distribute_k:4", "111010"),
    ];
    for (path, mask) in cases {
        let answer = server.classify(&format!("?path={path}"), image.clone()).await;
        assert_eq!(only(&answer)["path"]["mask"], mask, "{path}");
        reference.check(only(&answer), &image, &reference.selection(path), 0);
    }

    let full = server.classify("?path=full", image.clone()).await;
    assert_eq!(only(&full)["flops"]["policy"], 0);
    assert_eq!(only(&full)["flops"]["ratio"], 1.0);
    assert_eq!(only(&full)["flops"]["full"], Net::tiny(5).full_flops());
    let by_policy = server.classify("", image.clone()).await;
    assert_eq!(only(&by_policy)["flops"]["policy"], Net::tiny(5).policy_flops());
    assert_eq!(only(&by_policy)["path"]["mask"], learned, "the policy is what runs by default");
}

#[tokio::test]
async fn random_paths_are_the_same_for_the_same_seed_only() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let images: Vec<Vec<u8>> = (0..16).map(png).collect();
    let masks = async |path: &str| {
        let answer = server.classify_all(&format!("?path={path}"), &images).await;
        let masks = results(&answer).iter().map(|result| result["path"]["mask"].as_str().unwrap().to_owned());
        masks.collect::<Vec<String>>()
    };
    let seeded = reference.selection("random_k:3:42");
    let answer = server.classify_all("?path=random_k:3:42", &images).await;
    for (index, (result, image)) in results(&answer).iter().zip(&images).enumerate() {
        reference.check(result, image, &seeded, index as u64);
    }
    assert_eq!(masks("random_k:3:42").await, masks("random_k:3:42").await);
    assert_ne!(masks("random_k:3:42").await, masks("random_k:3:43").await);
    let (first, second) = (masks("random_k:3").await, masks("random_k:3").await);
    assert_ne!(first, second, "1 in 20 to the power of 16");
    assert!(first.iter().chain(&second).all(|mask| mask.matches('1').count() == 3), "{first:?} {second:?}");
}

#[tokio::test]
async fn threshold_and_budgets_change_what_the_policy_keeps() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let image = wanting(&reference, 4);
    let free = reference.learned(&image);
    let ask = async |query: &str, choice: Choice| {
        let answer = server.classify(query, image.clone()).await;
        reference.check(only(&answer), &image, &reference.select(choice), 0);
        only(&answer).clone()
    };
    let with = Choice::default;

    let all = ask("?threshold=0", Choice { threshold: Some(0.0), ..with() }).await;
    assert_eq!(all["path"]["mask"], "111111");
    assert!(all["flops"]["ratio"].as_f64().unwrap() > 1.0, "all blocks and the policy cost more than the full net");
    let none = ask("?threshold=1", Choice { threshold: Some(1.0), ..with() }).await;
    assert_eq!(none["path"]["blocks_kept"], 0);
    for threshold in [0.2, 0.5, 0.8] {
        ask(&format!("?threshold={threshold}"), Choice { threshold: Some(threshold), ..with() }).await;
    }

    for most in 0..=6 {
        let result = ask(&format!("?max_blocks={most}"), Choice { max_blocks: Some(most), ..with() }).await;
        assert_eq!(result["path"]["blocks_kept"], most.min(free.kept()));
    }

    let costs = reference.costs();
    let (dearest, cheapest) = (costs.policy + costs.executed(&free), none["flops"]["executed"].as_u64().unwrap());
    let least = costs.policy + cheapest;
    for most in [least, u64::midpoint(least, dearest), dearest - 1, dearest, i64::MAX as u64] {
        let result = ask(&format!("?max_flops={most}"), Choice { max_flops: Some(most), ..with() }).await;
        let spent = result["flops"]["policy"].as_u64().unwrap() + result["flops"]["executed"].as_u64().unwrap();
        assert!(spent <= most, "{result}");
        assert_eq!(result["path"]["mask"] == free.to_string(), most >= dearest, "{result}");
    }
    let both = Choice { threshold: Some(0.1), max_blocks: Some(2), max_flops: Some(dearest), ..with() };
    ask(&format!("?threshold=0.1&max_blocks=2&max_flops={dearest}"), both).await;
}

#[tokio::test]
async fn top_k_says_how_many_classes_are_shown() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let image = png(3);
    let expected = reference.answer(&image, &reference.selection("policy"), 0);
    for (query, shown) in [("", 5), ("?top_k=1", 1), ("?top_k=10", 10), ("?top_k=1000", 10)] {
        let answer = server.classify(query, image.clone()).await;
        let predictions = &only(&answer)["predictions"];
        assert_eq!(predictions.as_array().unwrap().len(), shown, "{query}");
        reference.check_predictions(predictions, &expected.logits);
    }
    let all = server.classify("?top_k=10", image).await;
    let predictions = only(&all)["predictions"].as_array().unwrap();
    let sum: f64 = predictions.iter().map(|prediction| prediction["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

#[tokio::test]
async fn a_request_keeps_its_id_or_gets_one() {
    let (server, _) = started(&Net::tiny(5), &[]);
    let ask = async |path: &str, id: Option<&[u8]>| {
        let mut post = server.client.post(server.url(path)).body(png(1));
        if let Some(id) = id {
            post = post.header("x-request-id", reqwest::header::HeaderValue::from_bytes(id).unwrap());
        }
        let response = post.send().await.unwrap();
        let header = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["request_id"], header, "header and body agree");
        header
    };
    let longest = "x".repeat(128);
    for id in ["a", "7b1f-42", "~!@#$%^&*()", longest.as_str()] {
        for path in ["/v1/classify", "/v1/classify?top_k=0", "/nowhere"] {
            assert_eq!(ask(path, Some(id.as_bytes())).await, id);
        }
    }
    let too_long = "x".repeat(129);
    let unusable = ["".as_bytes(), b"two words", too_long.as_bytes(), b"caf\xc3\xa9", b"tab\there"];
    let mut made_up = HashSet::new();
    for id in unusable.into_iter().map(Some).chain([None, None]) {
        for path in ["/v1/classify", "/v1/classify?top_k=0", "/nowhere"] {
            let found = ask(path, id).await;
            assert!((1..=128).contains(&found.len()) && found.bytes().all(|byte| byte.is_ascii_graphic()), "{found}");
            assert!(made_up.insert(found.clone()), "{found} was given out twice");
        }
    }
    // Whatever is asked for has an id, on both listeners.
    for url in [server.url("/v1/models"), server.admin_url("/metrics"), server.admin_url("/nowhere")] {
        let response = server.client.get(url).header("x-request-id", "mine").send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine");
    }
}

#[tokio::test]
async fn the_first_frame_of_an_animation_is_classified() {
    let (server, reference) = started(&Net::tiny(5), &[]);
    let frames = [1, 2].map(|seed| image::load_from_memory(&png(seed)).unwrap().into_rgba8());
    let mut gif = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut gif);
    encoder.encode_frames(frames.clone().map(image::Frame::new)).unwrap();
    drop(encoder);
    let mut first = std::io::Cursor::new(Vec::new());
    frames[0].write_to(&mut first, ImageFormat::Gif).unwrap();
    let answer = server.classify("?path=full", gif).await;
    reference.check(only(&answer), first.get_ref(), &reference.selection("full"), 0);
}
