"""What a server exports, and what it will."""

import re

# Metrics that rules and panels use and no server exports yet, with their labels. One that is exported has to go from
# here, and from "What is not checked" in deploy/README.md: test_exported.py fails until it does. From then on its queries
# have to be answered with numbers, so that the server of conftest.py has to count it.
NOT_EXPORTED_YET = {}

# What Prometheus adds to each series of a target.
OF_THE_TARGET = {"job", "instance"}


def series(text):
    """Series by name to label to values, of the text that a server exports."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
        of_name = found.setdefault(name, {})
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels or ""):
            of_name.setdefault(label, set()).add(value)
    return found


def waits(query, recorded):
    """Whether a query needs what is not exported yet, be it through a recording rule."""
    expanded = [query] + [expr for name, expr in recorded.items() if name in query]
    return any(name in text for text in expanded for name in NOT_EXPORTED_YET)
