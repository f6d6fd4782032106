"""The rules: correct, tested, and each alert explained."""

import re

import pytest

from files import DEPLOY, RULES, alerts, load, load_all, panels, rules, run, tool

PROMETHEUS = DEPLOY / "prometheus"
RUNBOOK = DEPLOY / "RUNBOOK.md"
ALERTS = alerts()
TITLES = {panel["title"] for panel in panels()}


def test_promtool_takes_the_configuration_and_the_rules():
    run(tool("promtool"), "check", "config", "prometheus.yml", cwd=PROMETHEUS)
    run(tool("promtool"), "check", "rules", "--lint-fatal", RULES)


def test_the_rules_do_what_their_tests_say():
    tests = sorted(path.name for path in PROMETHEUS.glob("*.test.yml"))
    assert tests
    run(tool("promtool"), "test", "rules", *tests, cwd=PROMETHEUS)


def test_each_alert_has_a_test_that_fires_it_and_one_that_does_not():
    fires, quiet = set(), set()
    for path in PROMETHEUS.glob("*.test.yml"):
        for test in load(path)["tests"]:
            for check in test["alert_rule_test"]:
                (fires if check["exp_alerts"] else quiet).add(check["alertname"])
    assert fires == quiet == set(ALERTS)


def sections():
    """The runbook's sections, by heading."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_explained(name):
    alert = ALERTS[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["annotations"].keys() == {"summary", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{name.lower()}"
    section = sections()[name]
    for part in ("**Means.**", "**Threshold.**", "**Look at.**", "**Do.**"):
        assert part in section, f"the runbook's section {name} lacks {part}"
    # The numbers of the expression, and how long it has to hold.
    threshold = section.split("**Threshold.**")[1].split("**Look at.**")[0]
    for number in [*re.findall(r"(?:[<>]=?|==) ([\d.]+)", alert["expr"]), alert["for"][:-1]]:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", threshold), (
            f"{number} is not explained"
        )
    # What it tells to look at is there.
    for title in re.findall(r"panel \*([^*]+)\*", section):
        assert title in TITLES, f"the dashboard has no panel {title}"


def test_the_runbook_has_no_alert_that_is_not_there():
    assert {name for name in sections() if name.startswith("Blockdrop")} == set(ALERTS)


def test_the_operator_gets_the_same_rules():
    [found] = load_all(DEPLOY / "kubernetes" / "monitoring" / "prometheusrule.yaml")
    assert found["spec"] == load(RULES), "copy the groups of rules.yml"


def test_ratios_of_counters_are_made_of_sums():
    for rule in rules():
        if "record" in rule and "/" in rule["expr"]:
            assert re.findall(r"rate\(", rule["expr"]), rule["record"]
            assert rule["expr"].count("sum by") == rule["expr"].count("rate("), rule["record"]
