"""Every query of the rules and the dashboard names what a server exports, and a real Prometheus answers it."""

import math
import re
import subprocess
import time

import pytest

from conftest import POD
from exported import NOT_EXPORTED_YET, OF_THE_TARGET, series, waits
from files import DEPLOY, alerts, dashboard, in_grafana, load, panels, recorded, rules, tool
from promql import always, grouped_by, selectors
from server import PATIENCE

RECORDED = recorded()


def of_dashboard():
    """Each query of the dashboard: where, the query, the labels that its legend shows."""
    for panel in panels():
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            yield f"{panel['title']} {target['refId']}", in_grafana(target["expr"]), shown


def of_rules():
    for rule in rules():
        # What a summary shows of the alert.
        shown = set(re.findall(r"\$labels\.(\w+)", rule.get("annotations", {}).get("summary", "")))
        yield rule.get("alert") or rule["record"], rule["expr"], shown


def of_autoscaler():
    """What the autoscaler's adapter asks."""
    [rule] = load(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")
    name = rule["name"]["matches"]
    assert selectors(rule["seriesQuery"])[0].name == name
    query = rule["metricsQuery"]
    for placeholder, text in {
        "<<.Series>>": name,
        "<<.LabelMatchers>>": ", ".join(f'{label}="{value}"' for label, value in POD.items()),
        "<<.GroupBy>>": "pod",
    }.items():
        assert placeholder in query
        query = query.replace(placeholder, text)
    yield "prometheus-adapter.yaml", query, {"pod"}


def variables():
    """The queries of the dashboard's variables: (metric with matchers, label)."""
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["query"]["query"] == variable["definition"]
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            yield variable["name"], in_grafana(found[1]), {found[2]}


QUERIES = [*of_rules(), *of_dashboard(), *of_autoscaler(), *variables()]


@pytest.mark.parametrize(("where", "query", "shown"), QUERIES, ids=[where for where, *_ in QUERIES])
def test_queries_name_what_is_exported(where, query, shown, exported):
    found = series(exported)
    known = {"up": OF_THE_TARGET}
    for name in RECORDED:
        known[name] = grouped_by(RECORDED[name])
    for name, labels in NOT_EXPORTED_YET.items():
        known[name] = labels | OF_THE_TARGET
    for name, labels in found.items():
        known[name] = set(labels) | OF_THE_TARGET | set(POD)
    used = selectors(query)
    assert used, query
    for selector in used:
        assert selector.name in known, (
            f"{selector.name} is exported by no server and made by no rule"
        )
        for label, value in selector.values():
            assert label in known[selector.name], f"{selector.name} has no label {label}"
            values = found.get(selector.name, {}).get(label)
            if values and value != ".+":
                assert value in values, f"{selector.name} has {label} {sorted(values)}, not {value}"
    labels = set().union(*(known[selector.name] for selector in used))
    assert grouped_by(query) | shown <= labels, f"labels that no metric of the query has: {query}"


def test_what_is_not_exported_yet_is_not_exported(exported):
    there = NOT_EXPORTED_YET.keys() & series(exported).keys()
    assert not there, f"take {sorted(there)} out of NOT_EXPORTED_YET in exported.py"


def test_what_is_not_exported_yet_is_used():
    texts = " ".join(query for _, query, _ in QUERIES)
    assert all(name in texts for name in NOT_EXPORTED_YET)


def test_promtool_finds_nothing_wrong_with_the_metrics(exported):
    command = [tool("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=exported, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture(scope="session")
def answers(prometheus):
    """The samples of each query, asked until all that can be have a number."""
    queries = {where: query for where, query, _ in QUERIES}
    queries.update({name: always(rule["expr"]) for name, rule in alerts().items()})
    waiting = {where: query for where, query in queries.items() if not waits(query, RECORDED)}
    found = {where: [] for where in queries}
    deadline = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < deadline:
        for where, query in list(waiting.items()):
            found[where] = prometheus.ask(query)
            if any(math.isfinite(value) for _, value in found[where]):
                del waiting[where]
        time.sleep(0.5)
    return found


@pytest.mark.parametrize(("where", "query", "shown"), QUERIES, ids=[where for where, *_ in QUERIES])
def test_prometheus_answers(where, query, shown, answers):
    samples = answers[where]
    if waits(query, RECORDED):
        assert samples == [], (
            "it waits for metrics that are not exported yet, or so exported.py says"
        )
        return
    assert any(math.isfinite(value) for _, value in samples), f"found {samples} for {query}"
    for labels, _ in samples:
        assert shown <= labels.keys(), f"a legend or a summary shows labels that {labels} lacks"


def test_every_rule_is_evaluated_and_none_fires(answers, prometheus):
    found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {where for where, *_ in of_rules()}
    for rule in found:
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
        assert rule.get("state") != "firing", rule


def test_the_target_is_known_by_its_job(answers, prometheus):
    [target] = prometheus.get("targets")["activeTargets"]
    assert (target["labels"]["job"], target["health"]) == ("blockdrop", "up")
    assert target["scrapeUrl"].endswith("/metrics")
