//! The report as a page: one HTML file that asks no other host for anything, with plotly.js in it.

mod figures;
mod series;

use std::fmt::Write as _;

use plotly::Plot;

use super::terminal::{absent, in_time, of_peak};
use super::words::{self, accuracy, amount, interval, latency, plain, ratio, share};
use super::{ArmReport, Ratio, Report};

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

/// The page keeps its browser from asking anybody for anything, whatever stands in it.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; \
                      base-uri 'none'; form-action 'none'";

/// The page. What stands in the report is text to it, never markup. About 5 MB, nearly all of it plotly.js.
pub fn page(report: &Report) -> String {
    let title = Text(&report.plan.title);
    let mut page = String::with_capacity(6 << 20);
    page += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    put(&mut page, format_args!("<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n"));
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    page += "<meta name=\"color-scheme\" content=\"light dark\">\n";
    put(&mut page, format_args!("<title>Load test: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"));
    header(&mut page, report);
    page += "<main>\n";
    arms(&mut page, report);
    let figures = figures::figures(report);
    page += "<noscript><p class=\"note\">The plots need JavaScript.</p></noscript>\n";
    // Cards stand in pairs; the last of an odd number has a row of its own, as those have that need one.
    let halves = figures.iter().filter(|figure| !figure.wide).count() + usize::from(!crowded(report));
    let odd = figures.iter().rfind(|figure| !figure.wide).filter(|_| halves % 2 == 1).map(|figure| figure.id);
    for figure in &figures {
        let (id, name, note) = (figure.id, figure.name, Text(&figure.note));
        let class = if figure.wide || odd == Some(id) { " class=\"wide\"" } else { "" };
        put(&mut page, format_args!("<section{class}>\n<h2>{name}</h2>\n<p class=\"note\">{note}</p>\n"));
        if id == "cdf" {
            page += "<button id=\"tail\" type=\"button\" aria-pressed=\"false\">Stretch the tail</button>\n";
        }
        put(&mut page, format_args!("<div class=\"plot\" id=\"{id}\" role=\"img\" aria-label=\"{name}\"></div>\n"));
        if id == "ratios" {
            ratios(&mut page, report);
        }
        page += "</section>\n";
    }
    causes(&mut page, report);
    plan(&mut page, report);
    page += "</main>\n";
    if !figures.is_empty() {
        put(&mut page, format_args!("<script>{}</script>\n", plotly_js()));
        let data = figures::data(report, &figures).to_string().replace('<', "\\u003c");
        put(&mut page, format_args!("<script type=\"application/json\" id=\"data\">{data}</script>\n"));
        put(&mut page, format_args!("<script>\n{SCRIPT}</script>\n"));
    }
    page += "</body>\n</html>\n";
    page
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string never fails.
    let _ = page.write_fmt(text);
}

/// A text of the report's in HTML, also within quotes.
struct Text<'a>(&'a str);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The library's source out of the script elements that the crate makes: plotly.js, and MathJax, which is left out.
fn plotly_js() -> String {
    let sources = Plot::offline_js_sources();
    let scripts =
        sources.split("</script>").filter_map(|element| Some(element.split_once("<script")?.1.split_once('>')?.1));
    scripts.into_iter().find(|script| script.contains("plotly.js v")).unwrap_or_default().to_owned()
}

fn header(page: &mut String, report: &Report) {
    let machine = &report.machine;
    put(page, format_args!("<header>\n<h1>{}</h1>\n", Text(&report.plan.title)));
    for finding in words::findings(report) {
        let rest = finding.rest.join(", ");
        let (subject, claim, rest) = (Text(&finding.subject), Text(&finding.claim), Text(&rest));
        put(page, format_args!("<p class=\"finding\">{subject}: <strong>{claim}</strong> <span>{rest}</span></p>\n"));
    }
    put(page, format_args!("<p class=\"quiet\">{}</p>\n", Text(&words::plan(&report.plan))));
    put(
        page,
        format_args!(
            "<p class=\"quiet\"><time>{}</time> · {} for {} · {}, {} cores · {} · blockdrop-loadtest {}</p>\n",
            Text(&report.started),
            if report.interrupted { "interrupted after" } else { "ran" },
            humantime::format_duration(std::time::Duration::from_secs(report.seconds.max(0.0) as u64)),
            Text(&machine.cpu),
            machine.cores,
            Text(&machine.system),
            Text(&report.harness),
        ),
    );
    if !report.verdicts.is_empty() {
        let failed = report.verdicts.iter().filter(|verdict| verdict.failed).count();
        let (class, all) = (if failed > 0 { "bad" } else { "good" }, report.verdicts.len());
        put(page, format_args!("<div class=\"banner {class}\">\n<p><strong>"));
        match (failed, all) {
            (0, 1) => put(page, format_args!("Passed: the condition did not come true")),
            (0, _) => put(page, format_args!("Passed: none of the {all} conditions came true")),
            _ => put(page, format_args!("Failed: {failed} of {all} conditions came true")),
        }
        *page += "</strong></p>\n<ul>\n";
        for verdict in &report.verdicts {
            let (mark, said) = if verdict.failed { ("✗", "failed") } else { ("✓", "passed") };
            put(
                page,
                format_args!(
                    "<li><span aria-label=\"{said}\">{mark}</span> <code>{}</code> {}</li>\n",
                    Text(&verdict.condition),
                    Text(&verdict.found)
                ),
            );
        }
        *page += "</ul>\n</div>\n";
    }
    let warnings = words::warnings(report);
    if !warnings.is_empty() {
        *page += "<div class=\"banner warn\">\n<ul>\n";
        for warning in warnings {
            put(page, format_args!("<li><span aria-hidden=\"true\">!</span> {}</li>\n", Text(&warning)));
        }
        *page += "</ul>\n</div>\n";
    }
    *page += "</header>\n";
}

/// Whether the arms' table needs the page's width.
fn crowded(report: &Report) -> bool {
    report.arms.len() > 3
}

/// A head, what it is of, an arm's value, and whether any arm has one that is worth a row.
type Row = (&'static str, &'static str, fn(&ArmReport) -> Option<String>, bool);

fn arms(page: &mut String, report: &Report) {
    let any = |has: fn(&ArmReport) -> bool| report.arms.iter().any(has);
    fn quantile(arm: &ArmReport, quantile: f64) -> Option<String> {
        (!arm.latency.is_empty()).then(|| latency(arm.latency.quantile(quantile)))
    }
    let rows: Vec<Row> = vec![
        ("images/s", "answered", |arm| Some(plain(arm.throughput)), true),
        ("p50", "ms, from due to answered", |arm| quantile(arm, 0.5), true),
        ("p95", "ms", |arm| quantile(arm, 0.95), true),
        ("p99", "ms", |arm| quantile(arm, 0.99), true),
        ("p99.9", "ms", |arm| quantile(arm, 0.999), true),
        ("max", "ms", |arm| quantile(arm, 1.0), true),
        ("sent", "requests", |arm| Some(amount(arm.counts.sent)), true),
        ("answered", "requests", |arm| Some(amount(arm.counts.answered)), true),
        ("refused", "requests", |arm| Some(amount(arm.counts.refused)), true),
        ("failed", "requests", |arm| Some(amount(arm.counts.failed)), true),
        ("timed out", "requests", |arm| Some(amount(arm.counts.timed_out)), true),
        (
            "broken",
            "requests broken on purpose",
            |arm| Some(amount(arm.counts.broken)),
            any(|arm| arm.counts.broken > 0),
        ),
        ("changed", "answers unlike the image's first", |arm| Some(amount(arm.changed)), any(|arm| arm.changed > 0)),
        ("in time", "of the good requests", in_time, any(|arm| arm.in_time < arm.good)),
        ("of peak", "goodput to what the closed load before reached", of_peak, any(|arm| arm.peak.is_some())),
        ("accuracy", "of the images with a label", |arm| arm.accuracy().map(accuracy), any(|arm| arm.labelled > 0)),
        ("blocks", "kept, the mean over images", |arm| arm.mean_blocks().map(plain), any(|arm| !arm.blocks.is_empty())),
        (
            "FLOPs",
            "of the full net, policy included",
            |arm| arm.flops_share().map(share),
            any(|arm| arm.flops.is_some()),
        ),
        (
            "refused within",
            "ms, p99",
            |arm| (!arm.refusal.is_empty()).then(|| latency(arm.refusal.quantile(0.99))),
            any(|arm| !arm.refusal.is_empty()),
        ),
        (
            "sent late",
            "ms, p99, by the harness itself",
            |arm| (!arm.delay.is_empty()).then(|| latency(arm.delay.quantile(0.99))),
            any(|arm| !arm.delay.is_empty()),
        ),
    ];
    let class = if crowded(report) { " class=\"wide\"" } else { "" };
    put(page, format_args!("<section{class}>\n"));
    *page += "<h2>Arms</h2>\n<div class=\"scroll\"><table id=\"arms\">\n<thead><tr><td></td>";
    for (at, arm) in report.arms.iter().enumerate() {
        put(page, format_args!("<th scope=\"col\">{}", Arm(report, at)));
        if !arm.server.is_empty() {
            put(page, format_args!("<small>{}</small>", Text(&arm.server)));
        }
        *page += "</th>";
    }
    *page += "</tr></thead>\n<tbody>\n";
    for (head, of, cell, _) in rows.iter().filter(|(.., shown)| *shown) {
        put(page, format_args!("<tr><th scope=\"row\">{head} <small>{of}</small></th>"));
        for arm in &report.arms {
            put(page, format_args!("<td>{}</td>", Text(&cell(arm).unwrap_or_else(absent))));
        }
        *page += "</tr>\n";
    }
    *page += "</tbody></table></div>\n</section>\n";
}

/// The name of an arm beside its colour.
struct Arm<'a>(&'a Report, usize);

impl std::fmt::Display for Arm<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(report, at) = *self;
        write!(f, "<i class=\"arm arm-{}\"></i>{}", at % figures::COLOURS, Text(&report.arms[at].name))
    }
}

fn ratios(page: &mut String, report: &Report) {
    type Row = (&'static str, fn(&Ratio) -> Option<String>);
    let rows: [Row; 6] = [
        ("throughput", |of| Some(interval(&of.throughput))),
        ("p50", |of| Some(interval(&of.p50))),
        ("p95", |of| Some(interval(&of.p95))),
        ("p99", |of| Some(interval(&of.p99))),
        ("highest rate", |of| of.capacity.map(ratio)),
        ("FLOPs", |of| of.flops.map(ratio)),
    ];
    *page += "<div class=\"scroll\"><table>\n<thead><tr><td></td>";
    for of in &report.ratios {
        put(page, format_args!("<th scope=\"col\">{}</th>", Arm(report, of.arm)));
    }
    *page += "</tr></thead>\n<tbody>\n";
    for (head, cell) in rows {
        let cells: Vec<_> = report.ratios.iter().map(cell).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        put(page, format_args!("<tr><th scope=\"row\">{head}</th>"));
        for cell in cells {
            put(page, format_args!("<td>{}</td>", cell.unwrap_or_else(absent)));
        }
        *page += "</tr>\n";
    }
    *page += "</tbody></table></div>\n";
}

fn causes(page: &mut String, report: &Report) {
    if report.arms.iter().all(|arm| arm.causes.is_empty()) {
        return;
    }
    *page += "<section id=\"causes\" class=\"wide\">\n<h2>Why requests were not answered</h2>\n<div class=\"scroll\"><table>\n<thead><tr>\
              <th>arm</th><th>cause</th><th>requests</th><th class=\"words\">the first said</th></tr></thead>\n<tbody>\n";
    for (at, arm) in report.arms.iter().enumerate() {
        let mut causes: Vec<_> = arm.causes.iter().collect();
        causes.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (kind, (count, message)) in causes {
            put(
                page,
                format_args!(
                    "<tr><th scope=\"row\">{}</th><td class=\"words\">{}</td><td>{}</td><td class=\"words\">{}</td></tr>\n",
                    Arm(report, at),
                    Text(kind),
                    amount(*count),
                    Text(message)
                ),
            );
        }
    }
    *page += "</tbody></table></div>\n</section>\n";
}

fn plan(page: &mut String, report: &Report) {
    let plan = &report.plan;
    *page += "<section class=\"wide\">\n<details id=\"plan\">\n<summary>How it was run</summary>\n<dl>\n";
    let mut row = |name: &str, value: &str| {
        put(page, format_args!("<dt>{}</dt><dd>{}</dd>\n", Text(name), Text(value)));
    };
    for (at, arm) in plan.arms.iter().enumerate() {
        let mut said = arm.url.clone();
        for part in [&arm.model, &arm.version].into_iter().flatten() {
            said += &format!(" {part}");
        }
        for (name, value) in &arm.parameters {
            said += &format!(", {name}={value}");
        }
        if at == plan.baseline && plan.arms.len() > 1 {
            said += " (the baseline)";
        }
        row(&arm.name, &said);
    }
    let duration = |of: std::time::Duration| humantime::format_duration(of).to_string();
    row("load", &words::load(&plan.load));
    row("protocol", words::protocol(plan.request.protocol));
    row("images", &format!("at most {} of {}", amount(plan.images.limit as u64), plan.images.from.display()));
    row("warm-up, measured, turn", &[plan.warm_up, plan.measure, plan.slice].map(duration).join(", "));
    row("timeout", &duration(plan.request.timeout));
    row("seed", &plan.seed.to_string());
    *page += "</dl>\n<p class=\"note\">The whole plan:</p>\n";
    let whole = serde_json::to_string_pretty(plan).unwrap_or_default();
    put(page, format_args!("<pre>{}</pre>\n</details>\n</section>\n", Text(&whole)));
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    /// The page without plotly.js.
    fn own(report: &Report) -> String {
        page(report).replace(&plotly_js(), "")
    }

    #[test]
    fn plotly_is_in_it_and_mathjax_is_not() {
        let script = plotly_js();
        assert!(script.trim_start().starts_with("/**\n* plotly.js v"), "{}", &script[..80]);
        assert!(!script.contains("</script") && !script.contains("MathJax.loader"));
        let bytes = page(&made_up::full()).len();
        println!("{bytes} bytes");
        assert!(bytes < 6_000_000, "{bytes} bytes");
    }

    #[test]
    fn it_names_no_other_host() {
        let own = own(&made_up::full()).replace("http://127.0.0.1:8080", "");
        assert!(!own.contains("://") && !own.contains(" src=") && !own.contains("@import"), "{own}");
    }

    #[test]
    fn a_full_report_has_all_plots_and_a_poor_one_none() {
        let of = |page: &str| -> Vec<String> {
            let plots = page.split("class=\"plot\" id=\"").skip(1);
            plots.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
        };
        let full = own(&made_up::full());
        assert_eq!(of(&full), ["ratios", "cdf", "ramp", "blocks", "by_blocks", "stages", "series"]);
        assert!(full.contains("Failed: 1 of 3 conditions") && full.contains("503 overloaded"));
        assert!(full.contains("times the throughput"));
        let poor = own(&made_up::poor());
        assert_eq!(of(&poor), [""; 0]);
        assert!(!poor.contains("<script") && poor.contains("connection refused"));
    }

    #[test]
    fn nothing_in_a_report_is_markup() {
        let evil = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&";
        let mut report = made_up::full();
        report.plan.title = evil.to_owned();
        report.started = evil.to_owned();
        report.harness = evil.to_owned();
        report.machine.cpu = evil.to_owned();
        report.machine.system = evil.to_owned();
        for (arm, planned) in report.arms.iter_mut().zip(&mut report.plan.arms) {
            arm.name = evil.to_owned();
            arm.server = evil.to_owned();
            arm.causes.insert(evil.to_owned(), (1, evil.to_owned()));
            planned.name = evil.to_owned();
            planned.url = evil.to_owned();
            planned.parameters.push((evil.to_owned(), evil.to_owned()));
        }
        report.verdicts[0].condition = evil.to_owned();
        report.verdicts[0].found = evil.to_owned();
        report.plan.images.from = evil.into();
        let (evil, good) = (own(&report), own(&made_up::full()));
        assert!(!evil.contains("<img") && !evil.contains("<script>alert"));
        for mark in ["<script", "</script"] {
            assert_eq!(evil.matches(mark).count(), good.matches(mark).count(), "{mark}");
        }
    }
}
