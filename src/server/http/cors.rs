//! Which web pages may use the HTTP interface from a browser.

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::oip::JSON_LENGTH;
use crate::server::arrived::{REQUEST_ID, TRACEPARENT, TRACESTATE};
use crate::text::shortened;

/// Origins of web pages that may read answers: none, these, or any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    #[default]
    None,
    These(Vec<HeaderValue>),
    Any,
}

/// How long a browser may go by an answer to what it asked before it asked.
const REMEMBERED: Duration = Duration::from_secs(3600);

impl Origins {
    /// Reads origins such as `https://example.org:8443`, or `*` alone.
    ///
    /// # Errors
    /// What was found and expected, for each that is none.
    pub fn read(given: &[String]) -> Result<Self, Vec<String>> {
        match given {
            [] => return Ok(Self::None),
            [any] if any == "*" => return Ok(Self::Any),
            _ => {}
        }
        let (mut origins, mut wrong) = (Vec::new(), Vec::new());
        for text in given {
            match origin(text) {
                Some(origin) => origins.push(origin),
                None => {
                    let found = shortened(text);
                    wrong.push(format!("found '{found}', expected an origin such as https://example.org, or * alone"));
                }
            }
        }
        if wrong.is_empty() { Ok(Self::These(origins)) } else { Err(wrong) }
    }

    /// Lets pages of these origins use `routes`. Outside of all else, so that errors can be read too; what a browser asks
    /// before it asks is answered here.
    pub(super) fn allowed(self, routes: Router) -> Router {
        let origins = match self {
            Self::None => return routes,
            Self::These(origins) => AllowOrigin::list(origins),
            Self::Any => AllowOrigin::any(),
        };
        let cors = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                header::AUTHORIZATION,
                REQUEST_ID,
                TRACEPARENT,
                TRACESTATE,
                JSON_LENGTH,
            ])
            .expose_headers([REQUEST_ID, TRACEPARENT, JSON_LENGTH, header::RETRY_AFTER])
            .max_age(REMEMBERED);
        routes.layer(cors)
    }
}

/// An origin as browsers send it: scheme and authority in small letters without the scheme's own port, nothing else.
fn origin(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let plain = format!("{scheme}://{authority}").eq_ignore_ascii_case(text) && !authority.as_str().contains('@');
    let small = text.to_ascii_lowercase();
    let shown = match scheme {
        "https" => small.strip_suffix(":443"),
        "http" => small.strip_suffix(":80"),
        _ => None,
    };
    HeaderValue::from_str(shown.unwrap_or(&small)).ok().filter(|_| plain && !authority.host().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Origins, Vec<String>> {
        Origins::read(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn origins_are_as_browsers_send_them() {
        assert_eq!(read(&[]), Ok(Origins::None));
        assert_eq!(read(&["*"]), Ok(Origins::Any));
        let given = ["https://Example.org", "http://localhost:3000", "http://[::1]:80", "app://page"];
        let sent = ["https://example.org", "http://localhost:3000", "http://[::1]", "app://page"];
        assert_eq!(read(&given), Ok(Origins::These(sent.map(HeaderValue::from_static).into())));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "null",
            "example.org",
            "https://",
            "https://example.org/",
            "https://a@b",
            "https://a/b?c",
            "/",
            "http:",
        ] {
            let wrong = read(&[text]).expect_err(text);
            assert!(wrong[0].starts_with(&format!("found '{text}', expected an origin such as")), "{wrong:?}");
        }
        assert_eq!(read(&["*", "https://example.org", "x"]).unwrap_err().len(), 2, "* and x");
    }
}
