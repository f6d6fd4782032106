//! A request's id and its place in a trace: taken from its head, and told in its answer's.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::telemetry::Tracer;
use crate::telemetry::request::{Parent, RequestContext};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What `headers` say of a request; `tracer` records it, if any does.
///
/// A client's id is taken if it has 1 to 128 visible ASCII characters: it goes into logs and headers as it is. A caller's
/// span is taken if there is just one, and the state of its trace only beside that.
pub(super) fn context(headers: &HeaderMap, tracer: Option<&Arc<Tracer>>) -> Arc<RequestContext> {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    let id = given.filter(usable).map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = match (parents.next(), parents.next()) {
        (Some(only), None) => Parent::parse(only.as_bytes()),
        _ => None,
    };
    let states = || {
        let each = headers.get_all(TRACESTATE).iter().map(|value| value.to_str());
        each.collect::<Result<Vec<_>, _>>().ok()?.join(",").parse().ok()
    };
    let state = parent.and_then(|_| states()).unwrap_or_default();
    RequestContext::new(id, parent, state, tracer)
}

/// Tells the request's id and the server's span of it.
pub(super) fn tell(context: &RequestContext, headers: &mut HeaderMap) {
    let told = [
        (REQUEST_ID, Some(HeaderValue::from_str(context.id()))),
        (TRACEPARENT, Some(HeaderValue::try_from(context.traceparent()))),
        (TRACESTATE, context.tracestate().map(HeaderValue::try_from)),
    ];
    for (name, value) in told {
        if let Some(Ok(value)) = value {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// What is told to a request of these headers.
    fn told(headers: &[(HeaderName, &str)]) -> (String, Option<String>) {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value")));
        let mut answer = HeaderMap::new();
        tell(&context(&headers.collect(), None), &mut answer);
        let text = |name| answer.get(name).map(|value| value.to_str().expect("a text").to_owned());
        (text(TRACEPARENT).expect("always told"), text(TRACESTATE))
    }

    #[test]
    fn a_trace_goes_on() {
        let (traceparent, state) = told(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=1, b=2"), (TRACESTATE, "c@d=3")]);
        assert_eq!(traceparent[..36], PARENT[..36], "the same trace");
        assert_ne!(traceparent[36..52], PARENT[36..52], "the server's own span");
        assert_eq!(&traceparent[53..], "00", "nobody records it");
        assert_eq!(state.as_deref(), Some("a=1,b=2,c@d=3"));
        let (traceparent, state) = told(&[(TRACEPARENT, PARENT), (TRACESTATE, "A=1")]);
        assert_eq!((&traceparent[..36], state), (&PARENT[..36], None), "a state that is none is left out alone");
    }

    #[test]
    fn a_trace_begins() {
        for headers in [
            vec![],
            vec![(TRACESTATE, "a=1")],
            vec![(TRACEPARENT, "00-1-2-3"), (TRACESTATE, "a=1")],
            vec![(TRACEPARENT, PARENT), (TRACEPARENT, PARENT), (TRACESTATE, "a=1")],
        ] {
            let (traceparent, state) = told(&headers);
            assert_ne!(traceparent[3..35], PARENT[3..35], "{headers:?}");
            assert_eq!((&traceparent[53..], state), ("02", None), "its id is random: {headers:?}");
            assert_ne!(told(&headers).0[3..35], traceparent[3..35], "each its own");
        }
    }
}
