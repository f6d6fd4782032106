//! Settings into a plan: defaults, limits, and what does not go together.

use std::path::PathBuf;
use std::time::Duration;

use crate::arms;
use crate::objective::{Condition, Metric};
use crate::plan::{Arm, Arrivals, Datatype, Faults, Format, Images, Load, Plan, Protocol, Request};
use crate::record::Fault;
use crate::settings::{Kind, Settings};
use crate::values::{Pixels, Size, Span, Three};

/// A whole number in this range.
fn within<T: PartialOrd + Copy + std::fmt::Display>(
    problems: &mut Vec<String>,
    name: &str,
    value: T,
    (low, high): (T, T),
) -> T {
    if !(low <= value && value <= high) {
        problems.push(format!("--{name}: found {value}, expected {low} to {high}"));
    }
    value
}

/// A time in this range of seconds.
fn span(
    problems: &mut Vec<String>,
    name: &str,
    value: Option<Span>,
    default: Duration,
    (low, high): (f64, f64),
) -> Duration {
    let value = value.map_or(default, |span| span.0);
    if !(low..=high).contains(&value.as_secs_f64()) {
        let [found, low, high] = [value, Duration::from_secs_f64(low), Duration::from_secs_f64(high)];
        let [found, low, high] = [found, low, high].map(|span| Span(span).to_string());
        problems.push(format!("--{name}: found {found}, expected {low} to {high}"));
    }
    value
}

impl Settings {
    /// The run that these settings are. A server that was `started` is driven by the arms that name no
    /// other.
    ///
    /// # Errors
    /// All that is wrong with the settings, a sentence each.
    pub fn plan(&self, started: Option<&arms::Started>) -> Result<Plan, Vec<String>> {
        let mut problems = Vec::new();
        let protocol = self.protocol.unwrap_or(Protocol::Classify);
        let slo = self.slo;
        let load = self.load(&mut problems);
        let measure = span(&mut problems, "measure", self.measure, Duration::from_secs(20), (0.1, 864_000.0));
        let slice = (measure / 20).clamp(Duration::from_millis(100), Duration::from_secs(2));
        let faults = Faults {
            share: self.faults.map_or(0.0, |share| share.0),
            kinds: if self.fault_kinds.is_empty() { Fault::ALL.to_vec() } else { self.fault_kinds.clone() },
        };
        let bad = self.bad.map_or(0.0, |share| share.0);
        if bad + faults.share > 1.0 {
            problems.push(format!("--bad and --faults: found {bad} and {}, expected 1 together at most", faults.share));
        }
        if self.start.is_none() {
            let useless = [
                ("server-args", self.server_args.is_some()),
                ("server-binary", self.server_binary.is_some()),
                ("models", self.models.is_some()),
            ];
            for (name, _) in useless.into_iter().filter(|(_, said)| *said) {
                problems.push(format!("--{name}: is for a server that this run starts, expected --start beside it"));
            }
        }
        let (arms, baseline) = arms::arms(self, protocol, started, &mut problems);
        self.conditions(&arms, baseline, &mut problems);
        let batch = self.batch.unwrap_or(1);
        if batch > 1 && !protocol.takes_several() {
            let several = "1, or --protocol classify-multipart or one of the inference protocol";
            problems.push(format!("--batch: found {batch}, expected {several}"));
        }
        if self.new_connections == Some(true) && protocol.is_grpc() {
            problems.push("--new-connections: is for HTTP, expected a protocol that is not over gRPC".to_owned());
        }
        for (name, said) in [("input", self.input.is_some()), ("output", self.output.is_some())] {
            if said && !protocol.is_oip() {
                problems.push(format!(
                    "--{name}: is of the inference protocol, expected --protocol oip-... or grpc-oip..."
                ));
            }
        }
        if self.start == Some(true) && (self.url.is_some() || self.grpc_url.is_some()) {
            let either = "expected one of them (--start=false for a scenario that starts its own)";
            problems.push(format!("--url and --start: found a server to drive and one to start, {either}"));
        }
        let plan = Plan {
            title: self.title.clone().unwrap_or_else(|| "Load test".to_owned()),
            seed: self.seed.unwrap_or(1),
            arms,
            baseline,
            request: Request {
                protocol,
                images: within(&mut problems, "batch", batch, (1, 512)),
                timeout: span(&mut problems, "timeout", self.timeout, Duration::from_secs(5), (0.001, 3600.0)),
                new_connections: self.new_connections.unwrap_or(false),
                api_key: self.api_key(&mut problems),
                input: self.input.clone().unwrap_or_else(|| "image".to_owned()),
                datatype: self.datatype(protocol, &mut problems),
                output: self.output.clone(),
            },
            images: Images {
                from: self.images.clone().unwrap_or_else(|| PathBuf::from("samples")),
                limit: within(&mut problems, "limit", self.limit.unwrap_or(512), (1, 100_000)),
                sizes: self.sizes.iter().map(|size| (size.width, size.height)).collect(),
                format: self.format.unwrap_or(Format::Png),
                bad,
            },
            load,
            warm_up: span(&mut problems, "warm-up", self.warm_up, Duration::from_secs(2), (0.0, 3600.0)),
            measure,
            slice: span(&mut problems, "slice", self.slice, slice, (0.05, 3600.0)),
            slo,
            faults,
            fail_if: self.fail_if.clone(),
        };
        if problems.is_empty() { Ok(plan) } else { Err(problems) }
    }

    fn load(&self, problems: &mut Vec<String>) -> Load {
        let kind = self.load.unwrap_or(Kind::Closed);
        let of = |kinds: &[Kind]| kinds.contains(&kind);
        let open = of(&[Kind::Open, Kind::Ramp, Kind::Overload]);
        let closed = of(&[Kind::Closed, Kind::Overload]);
        for (name, said, meant) in [
            ("clients", self.clients.is_some(), closed),
            ("think", self.think.is_some(), of(&[Kind::Closed])),
            ("rate", self.rate.is_some(), of(&[Kind::Open])),
            ("arrivals", self.arrivals.is_some(), open),
            ("connections", self.connections.is_some(), open),
            ("from", self.from.is_some(), of(&[Kind::Ramp])),
            ("to", self.to.is_some(), of(&[Kind::Ramp])),
            ("step", self.step.is_some(), of(&[Kind::Ramp])),
            ("factor", self.factor.is_some(), of(&[Kind::Overload])),
        ] {
            if said && !meant {
                let name_of = format!("{kind:?}").to_lowercase();
                problems.push(format!("--{name}: says nothing of a load that is {name_of}; see --load in --help"));
            }
        }
        let rates = (0.1, 1_000_000.0);
        let arrivals = self.arrivals.unwrap_or(Arrivals::Poisson);
        let connections = within(problems, "connections", self.connections.unwrap_or(256), (1, 16_384));
        let clients = within(problems, "clients", self.clients.unwrap_or(4), (1, 16_384));
        match kind {
            Kind::Closed => {
                Load::Closed { clients, think: span(problems, "think", self.think, Duration::ZERO, (0.0, 3600.0)) }
            }
            Kind::Open => {
                if self.rate.is_none() {
                    problems.push("--rate: is missing, expected the requests a second of an open load".to_owned());
                }
                Load::Open { rate: within(problems, "rate", self.rate.unwrap_or(1.0), rates), arrivals, connections }
            }
            Kind::Ramp => {
                if self.slo.is_none() {
                    problems.push("--slo: is missing, expected what a ramp looks for, such as p99=20ms".to_owned());
                }
                let from = within(problems, "from", self.from.unwrap_or(50.0), rates);
                let to = within(problems, "to", self.to.unwrap_or(100_000.0), (from, rates.1));
                let step = within(problems, "step", self.step.unwrap_or(1.3), (1.05, 10.0));
                Load::Ramp { from, to, step, arrivals, connections }
            }
            Kind::Overload => {
                let factor = within(problems, "factor", self.factor.unwrap_or(10.0), (0.1, 1000.0));
                Load::Overload { factor, clients, arrivals, connections }
            }
        }
    }

    fn datatype(&self, protocol: Protocol, problems: &mut Vec<String>) -> Datatype {
        if self.datatype != Some(Pixels::Fp32) {
            for (name, said) in
                [("input-size", self.input_size.is_some()), ("mean", self.mean.is_some()), ("std", self.std.is_some())]
            {
                if said {
                    problems.push(format!("--{name}: is for pixels, expected --datatype FP32 beside it"));
                }
            }
            return Datatype::Bytes;
        }
        if !protocol.is_oip() {
            problems.push(
                "--datatype: FP32 is for the inference protocol, expected --protocol oip-... or grpc-oip...".to_owned(),
            );
        }
        let said = [self.input_size.is_some(), self.mean.is_some(), self.std.is_some()];
        if said.contains(&true) && said.contains(&false) {
            let all = "expected all three, or none to take them from blockdrop's model";
            problems.push(format!("--input-size, --mean and --std: found some of them, {all}"));
        } else if said == [false; 3] && protocol.is_grpc() {
            let why = "over gRPC no server says how it wants its pixels";
            problems.push(format!("--input-size, --mean and --std: are missing, expected them: {why}"));
        }
        let Size { width, height } = self.input_size.unwrap_or(Size { width: 0, height: 0 });
        let Three(mean) = self.mean.unwrap_or(Three([0.0; 3]));
        let Three(std) = self.std.unwrap_or(Three([1.0; 3]));
        Datatype::Fp32 { height, width, mean, std }
    }

    /// Conditions on what the run cannot find.
    fn conditions(&self, arms: &[Arm], baseline: usize, problems: &mut Vec<String>) {
        let kind = self.load.unwrap_or(Kind::Closed);
        for Condition { text, arm, metric, .. } in &self.fail_if {
            let known = arms.iter().position(|known| Some(&known.name) == arm.as_ref());
            let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
            let expected = match (arm, known) {
                (Some(_), None) => format!("one of the arms {}", names.join(", ")),
                (_, known) if metric.relative() && (arms.len() == 1 || known == Some(baseline)) => {
                    "an arm beside the baseline for a ratio".to_owned()
                }
                _ if *metric == Metric::Capacity && kind != Kind::Ramp => "--load ramp beside it".to_owned(),
                _ if *metric == Metric::GoodputShare && kind != Kind::Overload => {
                    "--load overload beside it".to_owned()
                }
                _ => continue,
            };
            problems.push(format!("--fail-if: found '{text}', expected {expected}"));
        }
    }

    fn api_key(&self, problems: &mut Vec<String>) -> Option<String> {
        let path = self.api_key_file.as_ref()?;
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() && !text.trim().contains(char::is_whitespace) => {
                Some(text.trim().to_owned())
            }
            Ok(_) => {
                problems.push(format!("--api-key-file: {} holds no key, expected one line with one", path.display()));
                None
            }
            Err(reason) => {
                problems.push(format!("--api-key-file: {} cannot be read: {reason}", path.display()));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    fn flags(text: &[&str]) -> Settings {
        Flags::try_parse_from(["test"].iter().chain(text)).unwrap_or_else(|error| panic!("{error}")).settings
    }

    fn file(text: &str) -> Settings {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_key_of_a_file_is_the_flag_of_that_name() {
        let by_flags = flags(&[
            "--title=t",
            "--seed=7",
            "--start",
            "--server-args",
            "--workers 1",
            "--protocol=oip-json",
            "--datatype=FP32",
            "--input-size=32x32",
            "--mean=0.5,0.5,0.5",
            "--std=1,1,0.5",
            "--bad=5%",
            "--sizes=32x32,64x48",
            "--format=jpeg",
            "--load=ramp",
            "--slo=p99=20ms",
            "--from=100",
            "--warm-up=500ms",
            "--arm=name=a path=policy",
            "--arm=full",
            "--faults=0.1",
            "--fault-kinds=junk,half-close",
            "--fail-if=failed>0",
            "--new-connections",
            "--arrivals=constant",
        ]);
        let by_file = file(
            r#"
            title = "t"
            seed = 7
            start = true
            server-args = "--workers 1"
            protocol = "oip-json"
            datatype = "FP32"
            input-size = "32x32"
            mean = "0.5,0.5,0.5"
            std = "1,1,0.5"
            bad = "5%"
            sizes = ["32x32", "64x48"]
            format = "jpeg"
            load = "ramp"
            slo = "p99=20ms"
            from = 100
            warm-up = "500ms"
            arm = ["name=a path=policy", "full"]
            faults = 0.1
            fault-kinds = ["junk", "half-close"]
            fail-if = ["failed>0"]
            new-connections = true
            arrivals = "constant"
            "#,
        );
        assert_eq!(by_flags, by_file);
        by_flags.plan(None).expect("a plan");
    }

    #[test]
    fn flags_go_before_the_file() {
        let both =
            flags(&["--clients=9", "--arm=first_k:7"]).or(file("clients = 2\nseed = 5\narm = ['policy', 'full']"));
        assert_eq!((both.clients, both.seed, both.arm.len()), (Some(9), Some(5), 1));
    }

    #[test]
    fn keys_and_values_that_are_not_known_are_named() {
        for (text, named) in [
            ("client = 4", "unknown field `client`"),
            ("load = 'heavy'", "unknown variant `heavy`"),
            ("warm-up = 5", "found '5', expected a time such as 500ms, 20s or 2m"),
            ("arm = ['fastest']", "found 'fastest', expected words such as"),
            ("bad = 2", "found '2', expected a share"),
        ] {
            let error = toml::from_str::<Settings>(text).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let wrong = flags(&[
            "--load=open",
            "--clients=3",
            "--batch=0",
            "--timeout=2h",
            "--bad=60%",
            "--faults=60%",
            "--url=https://a:1",
            "--models=here",
            "--datatype=FP32",
            "--slice=1ms",
            "--api-key-file=/nowhere",
        ]);
        let problems = wrong.plan(None).expect_err("much is wrong");
        let named =
            ["clients", "rate", "timeout", "bad", "models", "url", "batch", "api-key-file", "datatype", "slice"];
        for name in named {
            assert!(problems.iter().any(|problem| problem.starts_with(&format!("--{name}"))), "{name}: {problems:#?}");
        }
        flags(&["--load=ramp"]).plan(None).expect_err("a ramp looks for something");
        flags(&["--load=closed", "--rate=5"]).plan(None).expect_err("clients have no rate");
        flags(&["--start", "--url=http://a:1"]).plan(None).expect_err("one server or the other");
        let elsewhere =
            flags(&["--start=false", "--url=http://a:1"]).or(file("start = true\nserver-args = '--workers 1'"));
        assert_eq!(elsewhere.plan(None).expect("a scenario for a server that runs").arms[0].url, "http://a:1");
        flags(&["--batch=2"]).plan(None).expect_err("a body is an image");
        flags(&["--input=x"]).plan(None).expect_err("of another protocol");
        let pixels = ["--datatype=FP32", "--protocol=oip-json"];
        flags(&pixels).plan(None).expect("the model is asked");
        flags(&[pixels[0], pixels[1], "--input-size=8x8"]).plan(None).expect_err("a part of it");
        flags(&[pixels[0], "--protocol=grpc-oip"]).plan(None).expect_err("nobody to ask");
    }

    #[test]
    fn conditions_that_nothing_can_be_found_for_are_wrong_before_the_run() {
        let arms = ["--arm=policy", "--arm=full"];
        for (condition, fits) in [
            ("p99>20ms", true),
            ("policy.speedup<1", true),
            ("speedup<1", true),
            ("full.speedup<1", false),
            ("first.p99>1s", false),
            ("capacity<1", false),
            ("goodput_share<0.9", false),
        ] {
            let condition = format!("--fail-if={condition}");
            let plan = flags(&[arms[0], arms[1], &condition]).plan(None);
            assert_eq!(plan.is_ok(), fits, "{condition}: {plan:?}");
        }
        flags(&["--fail-if=speedup<1"]).plan(None).expect_err("one arm has no ratio");
        flags(&["--fail-if=capacity<1", "--load=ramp", "--slo=p99=1s"]).plan(None).expect("a ramp has a capacity");
    }

    #[test]
    fn nothing_said_is_a_plan_too() {
        let plan = Settings::default().plan(None).expect("a plan");
        assert_eq!(plan.load, Load::Closed { clients: 4, think: Duration::ZERO });
        assert_eq!((plan.arms.len(), plan.arms[0].url.as_str()), (1, "http://localhost:8080"));
        assert!(plan.arms[0].parameters.is_empty());
        assert_eq!(plan.slice, Duration::from_secs(1));
    }

    #[test]
    fn the_key_is_read_and_never_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, "a-key-of-many-letters\n").expect("written");
        let path = file.path().to_str().expect("a path");
        let plan = flags(&["--api-key-file", path]).plan(None).expect("a plan");
        assert_eq!(plan.request.api_key.as_deref(), Some("a-key-of-many-letters"));
        let told = serde_json::to_string(&plan).expect("JSON");
        assert!(!told.contains("a-key"), "{told}");
    }

    #[test]
    fn every_scenario_is_a_plan() {
        let scenarios = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut seen = 0;
        for entry in std::fs::read_dir(scenarios).expect("scenarios") {
            let path = entry.expect("an entry").path();
            let settings = Settings::read(&path).unwrap_or_else(|error| panic!("{error}"));
            let plan = settings.plan(None).unwrap_or_else(|problems| panic!("{}: {problems:#?}", path.display()));
            assert!(!plan.fail_if.is_empty(), "{}: has no objective", path.display());
            seen += 1;
        }
        assert_eq!(seen, 7);
    }
}
