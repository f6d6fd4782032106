"""The load test's report as a page, drawn from report.json and from what is left of it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from conftest import ROOT

REPORT = json.loads(Path(__file__).with_name("report.json").read_text())
PLOTS = ["ratios", "cdf", "ramp", "blocks", "by_blocks", "stages", "series"]
PHONE = {"width": 360, "height": 740}


def draw(report: dict, out: Path) -> subprocess.CompletedProcess:
    """`blockdrop-loadtest html`."""
    source = out.with_suffix(".json")
    source.write_text(json.dumps(report))
    command = [os.environ.get("CARGO", "cargo"), "run", "--quiet", "--locked"]
    command += ["--package", "blockdrop-loadtest", "--", "html", str(source), "--out", str(out)]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def show(window, tmp_path):
    """Opens a report's page from its file."""

    def open_report(report: dict, **options) -> Page:
        out = tmp_path / "report.html"
        done = draw(report, out)
        assert done.returncode == 0, done.stderr
        return window(out.as_uri(), **options)

    return open_report


def copy() -> dict:
    return json.loads(json.dumps(REPORT))


def drawn(page: Page) -> list[str]:
    """The plots, each with something in it."""
    plots = page.locator(".plot").all()
    for plot in plots:
        marks = plot.locator(".scatterlayer .trace, .barlayer .trace")
        expect(marks.first).to_be_attached()
    return [plot.get_attribute("id") for plot in plots]


def test_a_full_report_is_drawn_with_all_its_plots(show):
    page = show(REPORT)
    assert drawn(page) == PLOTS
    expect(page).to_have_title("Load test: Skipping against the full net")
    expect(page.locator(".finding")).to_contain_text("policy against full: 1.52 times")
    expect(page.locator(".banner.bad")).to_contain_text("1 of 3 conditions")
    expect(page.locator("#arms thead th")).to_have_count(2)
    for count in ("sent", "answered", "refused", "failed", "timed_out"):
        row = page.locator("#arms tr").filter(
            has=page.get_by_role("rowheader", name=f"{count.replace('_', ' ')} requests")
        )
        cells = [f"{arm['counts'][count]:,}" for arm in REPORT["arms"]]
        expect(row.locator("td")).to_have_text(cells)
    expect(page.locator("#causes")).to_contain_text("503 overloaded")
    expect(page.locator("#plan dl")).to_be_hidden()
    page.get_by_text("How it was run").click()
    expect(page.locator("#plan dl")).to_contain_text("closed loop of 8 clients")


def test_a_report_without_data_has_no_plots(show):
    report = copy()
    report["plan"]["arms"] = report["plan"]["arms"][:1]
    report |= {"arms": report["arms"][:1], "ratios": [], "ramp": None, "verdicts": []}
    nothing = {"latency": [], "blocks": {}, "by_blocks": {}, "stages": None, "series": []}
    report["arms"][0] |= nothing
    page = show(report)
    assert drawn(page) == []
    expect(page.locator("#arms")).to_contain_text("24,698")
    expect(page.locator(".banner")).to_have_count(0)


@pytest.mark.parametrize(
    ("plot", "lack"),
    [
        ("ratios", {"ratios": []}),
        ("ramp", {"ramp": None}),
        ("cdf", {"latency": []}),
        ("blocks", {"blocks": {}}),
        ("by_blocks", {"by_blocks": {}}),
        ("stages", {"stages": None}),
        ("series", {"series": []}),
    ],
)
def test_a_plot_without_data_is_left_out(show, plot, lack):
    report = copy()
    for part in [report, *report["arms"]]:
        part |= {name: value for name, value in lack.items() if name in part}
    assert drawn(show(report)) == [name for name in PLOTS if name != plot]


def test_nothing_in_a_report_is_markup(show):
    evil = "</script><img src=x onerror=\"alert(1)\"><a href='https://example.org'>$x$</a>"
    report = copy()
    report["plan"]["title"] = evil
    for arm in (report["arms"][1], report["plan"]["arms"][1]):
        arm["name"] = evil
    report["arms"][1]["causes"] = {evil: [1, evil]}
    page = show(report)
    assert drawn(page) == PLOTS
    expect(page.locator("h1")).to_have_text(evil)
    expect(page.locator("img, a")).to_have_count(0)
    expect(page.locator("#cdf .legendtext").last).to_have_text(evil)
    expect(page.locator("#stages .ytick").last).to_have_text(evil)


def test_the_tail_can_be_stretched(show):
    page = show(REPORT)
    ticks = page.locator("#cdf .ytick")
    expect(ticks.filter(has_text="99.9 %")).to_have_count(0)
    page.get_by_role("button", name="Stretch the tail").click()
    expect(page.get_by_role("button", name="Stretch the tail")).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(ticks.filter(has_text="99.9 %").first).to_be_attached()


def test_the_plots_follow_the_scheme(show):
    page = show(REPORT, color_scheme="light")
    line = page.locator("#cdf .scatterlayer .js-line").first
    expect(line).to_have_css("stroke", "rgb(0, 114, 178)")
    page.emulate_media(color_scheme="dark")
    expect(line).to_have_css("stroke", "rgb(86, 180, 233)")


def test_a_phone_shows_it_without_scrolling_sideways(show):
    page = show(REPORT, viewport=PHONE, has_touch=True, is_mobile=True)
    assert drawn(page) == PLOTS
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator(".scroll:has(#arms)").evaluate("of => of.scrollWidth <= of.clientWidth")
    for plot in page.locator(".plot").all():
        assert plot.locator(".main-svg").first.bounding_box()["width"] <= PHONE["width"]


def test_a_report_of_another_schema_is_refused(tmp_path):
    done = draw(REPORT | {"schema": 99}, tmp_path / "report.html")
    assert done.returncode != 0
    assert "its schema is 99" in done.stderr
    assert not (tmp_path / "report.html").exists()
