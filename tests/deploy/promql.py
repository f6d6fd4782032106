"""What a PromQL query names: metrics, labels, and the values that it asks of them."""

import re
from dataclasses import dataclass, field

NAME = re.compile(
    r"(?<![\w:\"])(?:(?:blockdrop|process)_\w+|\w+:blockdrop_[\w:]+|up|ALERTS)(?![\w:(\"])"
)
MATCHER = re.compile(r'(\w+)\s*(=~|!~|=|!=)\s*"([^"]*)"')


@dataclass
class Selector:
    name: str
    # (label, operator, value)
    matchers: list = field(default_factory=list)

    def values(self):
        """Label to each value that is asked for or excluded; a pattern is taken apart at its bars."""
        for label, operator, text in self.matchers:
            for value in text.split("|") if "~" in operator else [text]:
                yield label, value


def selectors(query):
    found = []
    for match in NAME.finditer(query):
        rest = query[match.end() :]
        braces = re.match(r"\{([^}]*)\}", rest)
        matchers = MATCHER.findall(braces.group(1)) if braces else []
        found.append(Selector(match.group(), matchers))
    return found


def grouped_by(query):
    """The labels of `by (...)` and `on (...)`."""
    lists = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    return {label.strip() for text in lists for label in text.split(",")}


def always(query):
    """The query of an alert, made to answer whether it fires or not."""
    query = re.sub(r"\babsent\((.*)\)$", r"\1", query.strip())
    return re.sub(r"(<=|>=|==|<|>)\s*(?=\d)", r"\1 bool ", query)
