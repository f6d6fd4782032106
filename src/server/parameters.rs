//! What a request may ask for beside its images: the same parameters in every protocol.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use utoipa::IntoParams;

use super::classify::{Request, Service};
use super::error::{Error, Kind};
use crate::policy::{Choice, Costs, Selection};
use crate::registry::Model;
use crate::scheduler::Flow;
use crate::telemetry::RequestContext;
use crate::text::shortened;

/// Parameters as they came, as text, so that each value's error can name it.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// The model. By default the server's default model.
    pub(super) model: Option<String>,
    /// The model's version. By default the newest.
    pub(super) version: Option<String>,
    /// Classes to answer with, the most probable first.
    #[param(value_type = Option<u64>, minimum = 1)]
    pub(super) top_k: Option<String>,
    /// Which blocks run: policy, full, mask:1011..., first_k:N, random_k:N[:SEED] or distribute_k:N. By default policy.
    #[param(example = "policy")]
    pub(super) path: Option<String>,
    /// Keep a block from this probability on. By default the model's own.
    #[param(value_type = Option<f64>, minimum = 0, maximum = 1)]
    pub(super) threshold: Option<String>,
    /// Drop the least wanted blocks until at most this many are kept.
    #[param(value_type = Option<u64>)]
    pub(super) max_blocks: Option<String>,
    /// Drop the least wanted blocks until policy and path cost at most this many FLOPs.
    #[param(value_type = Option<u64>)]
    pub(super) max_flops: Option<String>,
    /// Microseconds that the request may take, within the server's own limit.
    #[param(value_type = Option<u64>)]
    pub(super) timeout: Option<String>,
}

/// Parameters that the protocol or its clients reserve and that say nothing here.
const RESERVED: [&str; 6] = ["sequence_id", "sequence_start", "sequence_end", "priority", "headers", "content_type"];

impl Parameters {
    /// Takes the parameter called `name` of an inference request.
    ///
    /// # Errors
    /// There is no such parameter.
    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), Error> {
        let place = match name {
            "top_k" => &mut self.top_k,
            "path" => &mut self.path,
            "threshold" => &mut self.threshold,
            "max_blocks" => &mut self.max_blocks,
            "max_flops" => &mut self.max_flops,
            "timeout" => &mut self.timeout,
            _ if RESERVED.contains(&name) || name.starts_with("triton_") => return Ok(()),
            _ => {
                let name = shortened(name);
                return Err(Error::new(
                    Kind::InvalidParameter,
                    format!(
                        "parameters: found '{name}', expected some of path, threshold, max_blocks, max_flops, top_k, \
                         timeout and binary_data_output"
                    ),
                ));
            }
        };
        *place = Some(value);
        Ok(())
    }

    /// Classes to answer with, where that is said.
    ///
    /// # Errors
    /// It is no number, or 0.
    pub(super) fn top_k(&self) -> Result<Option<usize>, Error> {
        const CLASSES: &str = "a number of classes from 1";
        let top_k = count("top_k", self.top_k.as_deref(), CLASSES)?;
        if top_k == Some(0) {
            return Err(Error::new(Kind::InvalidParameter, format!("top_k: found 0, expected {CLASSES}")));
        }
        Ok(top_k.map(|classes| usize::try_from(classes).unwrap_or(usize::MAX)))
    }

    /// The request that the parameters ask for, which was `received` then over the connection of `flow`.
    ///
    /// # Errors
    /// There is no such model, or a parameter does not fit it.
    pub(super) fn request(
        self,
        service: &Service,
        context: Arc<RequestContext>,
        flow: &Arc<Flow>,
        received: Instant,
    ) -> Result<Request, Error> {
        let model = service.registry.get(self.model.as_deref(), self.version.as_deref())?;
        self.request_for(model, service, context, flow, received)
    }

    /// [`request`](Self::request) for a model that was found already.
    ///
    /// # Errors
    /// A parameter does not fit the model.
    pub(super) fn request_for(
        self,
        model: Arc<Model>,
        service: &Service,
        context: Arc<RequestContext>,
        flow: &Arc<Flow>,
        received: Instant,
    ) -> Result<Request, Error> {
        let selection = self.selection(model.engine.costs(), model.engine.bundle().manifest.policy.threshold)?;
        let most = service.limits.time.min(model.bounds.time);
        let time = self.timeout()?.map_or(most, |time| most.min(time));
        Ok(Request { model, selection, context, flow: Arc::clone(flow), deadline: received + time })
    }

    /// How masks are chosen, for a model with these `costs` and this keep `threshold` of its own.
    ///
    /// # Errors
    /// A parameter does not fit the model.
    pub(super) fn selection(&self, costs: &Costs, threshold: f64) -> Result<Selection, Error> {
        let choice = Choice {
            path: self.path.as_deref().map_or(Ok(Default::default()), str::parse)?,
            threshold: number("threshold", self.threshold.as_deref(), "a probability from 0 to 1")?,
            max_blocks: count("max_blocks", self.max_blocks.as_deref(), "a number of blocks")?
                .map(|blocks| usize::try_from(blocks).unwrap_or(usize::MAX)),
            max_flops: count("max_flops", self.max_flops.as_deref(), "a number of FLOPs")?,
        };
        Ok(choice.check(costs, threshold)?)
    }

    /// The time that the request may take, where that is said.
    ///
    /// # Errors
    /// It is no number.
    pub(super) fn timeout(&self) -> Result<Option<Duration>, Error> {
        let timeout = count("timeout", self.timeout.as_deref(), "a number of microseconds")?;
        // 0 is what Triton's clients send where no time was asked for.
        Ok(timeout.filter(|time| *time > 0).map(Duration::from_micros))
    }
}

/// Checks an id that comes back in the answer: one may wait for its client as long as that likes.
///
/// # Errors
/// It is too long.
pub(super) fn check_id(name: &str, id: &str) -> Result<(), Error> {
    const MOST: usize = 1024;
    if id.len() <= MOST {
        return Ok(());
    }
    let found = id.len();
    Err(Error::new(Kind::InvalidParameter, format!("{name}: found {found} bytes, expected at most {MOST}")))
}

fn number<T: FromStr>(name: &str, value: Option<&str>, expected: &str) -> Result<Option<T>, Error> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let found = shortened(text);
            Error::new(Kind::InvalidParameter, format!("{name}: found '{found}', expected {expected}"))
        })
    };
    value.map(parse).transpose()
}

/// A number of something: what 63 bits hold, as every protocol's integers can.
fn count(name: &str, value: Option<&str>, expected: &str) -> Result<Option<u64>, Error> {
    let bounded: Option<Bounded> = number(name, value, expected)?;
    Ok(bounded.map(|Bounded(count)| count))
}

struct Bounded(u64);

impl FromStr for Bounded {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().filter(|count| i64::try_from(*count).is_ok()).map(Self).ok_or(())
    }
}
