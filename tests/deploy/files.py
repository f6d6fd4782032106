"""The files of deploy/, read."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

# Seconds that the server's end may take beyond --drain-timeout: LAST_BYTES in src/server/run.rs for connections and once more for
# operators, MOMENT for workers and once more for models.
ENDING = 5
ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "blockdrop.json"


def load(path):
    """The only document of a YAML file."""
    return yaml.safe_load(path.read_text())


def load_all(path):
    return list(yaml.safe_load_all(path.read_text()))


def tool(name):
    """A command of this environment, else one on the path."""
    beside = Path(sys.executable).parent / name
    found = beside if beside.is_file() else shutil.which(name)
    assert found, f"{name} is not on the path: install Debian's package prometheus"
    return str(found)


def run(*command, **options):
    """Runs a command that has to succeed, and returns what it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout + done.stderr


def rules():
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def recorded():
    """What the recording rules make: name to expression."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard():
    return json.loads(DASHBOARD.read_text())


def panels():
    """The panels that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def in_grafana(query):
    """A query as Grafana sends it where everything is selected."""
    query = query.replace("$__rate_interval", "1m")
    query = re.sub(r"\$(job|model)\b", ".+", query)
    assert "$" not in query, f"a variable of Grafana's that is not known here: {query}"
    return query
