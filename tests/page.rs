//! The page's files as they are served. What the page does is tested in tests/page/.

mod common;

use std::path::Path;

use blockdrop_testkit::Net;
use common::server::Server;
use common::{contains, models};
use serde_json::Value;

/// Every relative `page/...` and `./...` in quotes, as a path of the server.
fn references(text: &str) -> impl Iterator<Item = String> {
    let quoted = text.split(['"', '\'']);
    quoted.filter_map(|part| match part.strip_prefix("./") {
        Some(module) => Some(format!("/page/{module}")),
        None => part.starts_with("page/").then(|| format!("/{part}")),
    })
}

#[tokio::test]
async fn the_page_and_all_that_it_names_are_served_from_the_binary() {
    let server = Server::start(models("one", &Net::tiny(5)).path(), &[]);
    let mut left = vec!["/".to_owned()];
    let mut seen = Vec::new();
    while let Some(path) = left.pop() {
        let response = server.get(&path).await;
        assert_eq!(response.status(), 200, "{path}");
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let kind = match path.rsplit('.').next().unwrap() {
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(header("content-type"), kind, "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-cache");
        let policy: Vec<String> = header("content-security-policy").split("; ").map(str::to_owned).collect();
        for directive in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"] {
            assert!(policy.iter().any(|found| found == directive), "{directive}: {policy:?}");
        }
        assert!(!policy.iter().any(|directive| directive.contains("unsafe")), "{policy:?}");

        let text = response.text().await.unwrap();
        for wrong in ["https://", "style=\"", "<script>", "<style>", " onclick=", "innerHTML"] {
            assert!(!text.contains(wrong), "{path} has {wrong}");
        }
        // The one address of another host is a name, not a place: the namespace of SVG.
        assert_eq!(text.matches("http://").count(), text.matches("http://www.w3.org/2000/svg").count(), "{path}");
        seen.push(path);
        left.extend(references(&text).filter(|path| !path.contains('$')));
        left.retain(|path| !seen.contains(path));
    }
    for module in ["api", "card", "live", "net", "page", "plot", "text"] {
        assert!(seen.contains(&format!("/page/{module}.js")), "{module} is not among {seen:?}");
    }
}

#[tokio::test]
async fn the_page_offers_the_repositorys_samples() {
    let server = Server::start(models("one", &Net::tiny(5)).path(), &[]);
    let script = server.get("/page/page.js").await.text().await.unwrap();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let kinds = [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")];
    let mut offered = 0;
    for entry in std::fs::read_dir(samples).unwrap() {
        let file = entry.unwrap().path();
        let Some((_, kind)) = kinds.iter().find(|(suffix, _)| file.extension().is_some_and(|found| found == *suffix))
        else {
            continue;
        };
        let name = file.file_name().unwrap().to_str().unwrap();
        contains(&script, &[&format!("\"{name}\"")]);
        let response = server.get(&format!("/page/samples/{name}")).await;
        assert_eq!(response.status(), 200, "{name}");
        assert_eq!(response.headers()["content-type"], *kind);
        assert_eq!(response.bytes().await.unwrap(), std::fs::read(&file).unwrap(), "{name}");
        offered += 1;
    }
    assert_eq!(offered, 5);
}

#[tokio::test]
async fn what_is_no_file_of_the_page_is_an_error_like_any_other() {
    let server = Server::start(models("one", &Net::tiny(5)).path(), &[]);
    for path in ["/page", "/page/", "/page/index.html", "/page/samples/", "/page/../Cargo.toml", "/page/%2e%2e/x"] {
        let response = server.get(path).await;
        assert_eq!(response.status(), 404, "{path}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "not_found");
    }
    let response = server.client.post(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "GET,HEAD");
    let head = server.client.head(server.url("/")).send().await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-type"], "text/html; charset=utf-8");
}
