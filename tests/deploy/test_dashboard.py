"""The dashboard's structure, and how it is provisioned. Its queries are checked in test_exported.py."""

from collections import Counter

from files import DEPLOY, dashboard, load, panels

DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_panels_say_what_they_show_and_in_what_unit():
    for panel in panels():
        title = panel["title"]
        assert len(panel["description"]) > 20, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["datasource"] == DATA_SOURCE, title
        assert all(target["datasource"] == DATA_SOURCE for target in panel["targets"]), title
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references), title


def test_panels_have_places_of_their_own():
    every = dashboard()["panels"]
    assert not [
        ident for ident, count in Counter(panel["id"] for panel in every).items() if count > 1
    ]
    titles = Counter(panel["title"] for panel in every)
    assert not [title for title, count in titles.items() if count > 1]
    taken = {}
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{panel['title']} lies over {other}"


def test_what_operators_need_is_there():
    kinds = {panel["title"]: panel["type"] for panel in panels()}
    assert kinds["Keep share by block"] == kinds["Images by blocks kept"] == "heatmap"
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == [
        "At a glance",
        "What the policy saves",
        "What the policy keeps",
        "Latency",
        "Queue",
        "Compiled paths",
        "Answers and servers",
    ]


def test_the_variables_choose_source_job_and_model():
    variables = dashboard()["templating"]["list"]
    assert [(variable["name"], variable["type"]) for variable in variables] == [
        ("datasource", "datasource"),
        ("job", "query"),
        ("model", "query"),
    ]
    assert variables[0]["query"] == "prometheus"
    # Chosen by patterns, since several can be.
    for panel in panels():
        for target in panel["targets"]:
            assert 'job=~"$job"' in target["expr"], panel["title"]
            assert '="$' not in target["expr"], panel["title"]


def test_it_is_provisioned():
    compose = load(DEPLOY / "compose.yaml")["services"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    [provider] = load(DEPLOY / "grafana/provisioning/dashboards/blockdrop.yaml")["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/blockdrop.json"
    [source] = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    scraped = load(DEPLOY / "prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
