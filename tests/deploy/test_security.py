"""SECURITY.md names the limits that the binary has."""

import re
import subprocess

from binary import binary
from files import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()


def table(heading):
    """The rows of the table whose head begins with these cells."""
    lines = TEXT[TEXT.index(heading) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_defaults_are_those_of_the_binary(options):
    rows = table("| limit | default |")
    for flag, default, _ in rows:
        name = flag.strip("`")
        assert name in options, f"serve has no {name}"
        assert options[name][1] == default or defaults_of(name) == default, name
    named = {flag.strip("`") for flag, *_ in rows}
    limits = {flag for flag in options if re.match(r"--max-|.*-timeout$|.*-bytes$|.*-rate$", flag)}
    assert limits <= named, "limits of serve that SECURITY.md lacks"


def defaults_of(flag):
    """The default that the text of an option's help has in front of its variable."""
    shown = subprocess.run(
        [binary(), "serve", "--help"], capture_output=True, text=True, check=True
    )
    part = re.sub(r"\s+", " ", shown.stdout.split(f"\n      {flag} ")[1].split("\n      --")[0])
    return re.search(r"\[default: ([^\]]+)\]", part)[1]


def value(expression):
    """The value of a constant: a number, a product or a shift of numbers, or seconds."""
    expression = re.sub(r"Duration::from_secs\((\d+)\)", r"\1", expression).replace("_", "")
    found = re.fullmatch(r"(\d+)(?:\s*(<<|\*)\s*(\d+))?", expression)
    assert found, f"a constant that is not understood: {expression}"
    first, operator, second = found.groups()
    if operator is None:
        return int(first)
    return int(first) << int(second) if operator == "<<" else int(first) * int(second)


def test_the_fixed_limits_are_those_of_the_sources():
    rows = table("| limit | value |")
    assert len(rows) > 5
    for what, stated, where in rows:
        name, path = re.fullmatch(r"`(\w+)` in (\S+)", where).groups()
        found = re.findall(rf"const {name}: [\w:]+ = ([^;]+);", (ROOT / path).read_text())
        assert int(stated) in [value(each) for each in found], f"{what}: {found}"


def test_what_all_blocks_cost_is_what_inspect_says():
    shown = subprocess.run(
        [binary(), "inspect", "models/cifar10-resnet32/1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [
        line
        for line in shown.stdout.splitlines()
        if "full net" in line and "policy" in line and "blocks;" in line
    ]
    assert line in TEXT
    full, policy = re.search(r"full net (\S+); policy (\S+) ", line).groups()
    assert f"Of this model {1 + float(policy) / float(full):.3f} full nets" in TEXT


def test_the_targets_it_names_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)", TEXT):
        assert f"\n{target}:" in makefile, target
    headings = re.findall(r"^## (.+)$", (ROOT / "deploy" / "RUNBOOK.md").read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for anchor in re.findall(r"RUNBOOK\.md#([\w-]+)", TEXT):
        assert anchor in anchors, anchor
    for alert in re.findall(r"\bBlockdrop\w+", TEXT):
        assert alert in headings, alert
