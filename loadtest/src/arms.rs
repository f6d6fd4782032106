//! What is compared, as people write it: `path=full`, `first_k:7`, `name=new url=http://localhost:8090`.

use std::str::FromStr;

use crate::plan::{Arm, Protocol};
use crate::settings::Settings;
use crate::values::{ValueError, text};

/// An arm's words, read but not yet complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    name: Option<String>,
    url: Option<String>,
    grpc_url: Option<String>,
    model: Option<String>,
    version: Option<String>,
    parameters: Vec<(String, String)>,
}

const PARAMETERS: [&str; 4] = ["path", "threshold", "max_blocks", "max_flops"];
const EXPECTED: &str = "words such as name=fast, url=http://host:8080, grpc-url=http://host:9000, model=, version=, path=full, \
                        threshold=0.7, max_blocks=5, max_flops=5e7 or first_k:7, each at most once";

impl FromStr for Words {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::new(text, EXPECTED);
        let mut words = Self::default();
        let mut once = std::collections::BTreeSet::new();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or(("path", word));
            let wrong = || ValueError::new(word, EXPECTED);
            if value.is_empty() || !once.insert(key) {
                return Err(wrong());
            }
            let value = value.to_owned();
            match key {
                "name" => words.name = Some(value),
                "url" => words.url = Some(value),
                "grpc-url" => words.grpc_url = Some(value),
                "model" => words.model = Some(value),
                "version" => words.version = Some(value),
                _ if PARAMETERS.contains(&key) => {
                    words.parameters.push((key.to_owned(), parameter(key, value).ok_or_else(wrong)?));
                }
                _ => return Err(wrong()),
            }
        }
        if words == Self::default() { Err(wrong()) } else { Ok(words) }
    }
}

text!(Words);

/// A parameter's value as it is sent, if it can be one. Whether it fits the model is for the server to say.
fn parameter(key: &str, value: String) -> Option<String> {
    match key {
        "path" => value.parse::<blockdrop::policy::Path>().is_ok().then_some(value),
        "threshold" => value.parse::<f64>().is_ok_and(|threshold| (0.0..=1.0).contains(&threshold)).then_some(value),
        // 5e7 is a whole number to people.
        _ => {
            let number: f64 = value.parse().ok()?;
            (number.fract() == 0.0 && (0.0..1e18).contains(&number)).then(|| format!("{number:.0}"))
        }
    }
}

impl Words {
    /// What it is called where it has no name of its own: what sets it apart.
    fn title(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let mut words: Vec<String> = self
            .parameters
            .iter()
            .map(|(key, value)| if key == "path" { value.clone() } else { format!("{key}={value}") })
            .collect();
        words.extend([&self.model, &self.version].into_iter().flatten().cloned());
        if words.is_empty() {
            words.extend(self.url.iter().chain(&self.grpc_url).cloned());
        }
        words.join(" ")
    }
}

/// Where a server that the run started listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub url: String,
    pub grpc_url: String,
}

/// The arms of a run, and which of them is the baseline.
pub(crate) fn arms(
    settings: &Settings,
    protocol: Protocol,
    started: Option<&Started>,
    problems: &mut Vec<String>,
) -> (Vec<Arm>, usize) {
    let alone = [Words { name: Some("all".to_owned()), ..Words::default() }];
    let words = if settings.arm.is_empty() { &alone } else { settings.arm.as_slice() };
    let mut arms: Vec<Arm> = Vec::new();
    for words in words {
        let name = words.title();
        if arms.iter().any(|arm| arm.name == name) {
            problems.push(format!("--arm: found two named '{name}', expected names of their own, name=..."));
        }
        if name.chars().count() > 60 || name.contains('.') && words.name.is_some() {
            problems
                .push(format!("--arm: found the name '{name}', expected one of at most 60 characters, without dots"));
        }
        let (flag, own, common, of_started, default) = if protocol.is_grpc() {
            let of_started = started.map(|started| &started.grpc_url);
            ("grpc-url", &words.grpc_url, &settings.grpc_url, of_started, "http://localhost:9000")
        } else {
            ("url", &words.url, &settings.url, started.map(|started| &started.url), "http://localhost:8080")
        };
        let url = own.as_ref().or(of_started).or(common.as_ref()).map_or(default, String::as_str);
        if !is_plain_http(url) {
            problems.push(format!("--{flag}: found '{url}', expected http://host:port and nothing after it"));
        }
        arms.push(Arm {
            name,
            url: url.trim_end_matches('/').to_owned(),
            model: words.model.clone().or_else(|| settings.model.clone()),
            version: words.version.clone().or_else(|| settings.model_version.clone()),
            parameters: words.parameters.clone(),
        });
    }
    let named = |name: &str| arms.iter().position(|arm| arm.name == name);
    let baseline = match &settings.baseline {
        Some(name) => named(name).unwrap_or_else(|| {
            let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
            problems.push(format!("--baseline: found '{name}', expected one of: {}", names.join(", ")));
            0
        }),
        None => named("full").unwrap_or(arms.len() - 1),
    };
    (arms, baseline)
}

/// `http://` with a host and a port, and no path.
fn is_plain_http(url: &str) -> bool {
    let Ok(url) = url.parse::<hyper::Uri>() else { return false };
    url.scheme_str() == Some("http") && url.host().is_some() && url.path() == "/" && url.query().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Words {
        text.parse().expect("words")
    }

    #[test]
    fn arms_are_named_by_what_sets_them_apart() {
        for (text, name) in [
            ("path=policy", "policy"),
            ("full", "full"),
            ("first_k:7", "first_k:7"),
            ("threshold=0.7", "threshold=0.7"),
            ("path=policy threshold=0.7", "policy threshold=0.7"),
            ("url=http://a:1 name=a", "a"),
            ("url=http://a:1", "http://a:1"),
            ("model=net version=2 path=full", "full net 2"),
            ("max_flops=5e7", "max_flops=50000000"),
        ] {
            assert_eq!(words(text).title(), name, "{text}");
        }
    }

    #[test]
    fn words_that_are_not_known_are_refused() {
        for wrong in [
            "",
            "paths=full",
            "path=",
            "path=most",
            "first_k:x",
            "threshold=2",
            "max_blocks=-1",
            "full policy",
            "colour=red",
        ] {
            let error = wrong.parse::<Words>().expect_err(wrong).to_string();
            let word = wrong.split(' ').next_back().unwrap_or(wrong);
            assert!(error.starts_with(&format!("found '{word}', expected words")), "{error}");
        }
    }

    #[test]
    fn full_is_the_baseline_unless_another_is_named() {
        let baseline = |arms: &[&str], named: Option<&str>| {
            let settings = Settings {
                arm: arms.iter().map(|arm| words(arm)).collect(),
                baseline: named.map(str::to_owned),
                ..Settings::default()
            };
            let mut problems = Vec::new();
            let (_, baseline) = super::arms(&settings, Protocol::Classify, None, &mut problems);
            if problems.is_empty() { Ok(baseline) } else { Err(problems.join("; ")) }
        };
        assert_eq!(baseline(&["full", "policy"], None), Ok(0));
        assert_eq!(baseline(&["first_k:7", "policy"], None), Ok(1));
        assert_eq!(baseline(&["first_k:7", "policy"], Some("first_k:7")), Ok(0));
        assert_eq!(
            baseline(&["first_k:7", "policy"], Some("all")),
            Err("--baseline: found 'all', expected one of: first_k:7, policy".to_owned())
        );
        baseline(&["full", "full"], None).expect_err("the same twice");
    }

    #[test]
    fn an_arm_drives_its_own_server_before_the_one_started_before_the_one_of_all() {
        let started = Started { url: "http://127.0.0.1:1".to_owned(), grpc_url: "http://127.0.0.1:2".to_owned() };
        let urls = |protocol, started: Option<&Started>| -> Vec<String> {
            let settings = Settings {
                arm: vec![words("policy"), words("full url=http://a:1 grpc-url=http://a:2")],
                url: Some("http://b:1/".to_owned()),
                ..Settings::default()
            };
            let mut problems = Vec::new();
            let (arms, _) = super::arms(&settings, protocol, started, &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
            arms.into_iter().map(|arm| arm.url).collect()
        };
        assert_eq!(urls(Protocol::Classify, None), ["http://b:1", "http://a:1"]);
        assert_eq!(urls(Protocol::Grpc, None), ["http://localhost:9000", "http://a:2"]);
        assert_eq!(urls(Protocol::OipJson, Some(&started)), ["http://127.0.0.1:1", "http://a:1"]);
        assert_eq!(urls(Protocol::GrpcStream, Some(&started)), ["http://127.0.0.1:2", "http://a:2"]);
    }

    #[test]
    fn only_plain_http_is_driven() {
        for right in ["http://localhost:8080", "http://10.0.0.1:80/", "http://[::1]:8080"] {
            assert!(is_plain_http(right), "{right}");
        }
        for wrong in ["https://localhost:8080", "localhost:8080", "http://a:1/v1", "http://a:1/?x=y", "http://", ""] {
            assert!(!is_plain_http(wrong), "{wrong}");
        }
    }
}
