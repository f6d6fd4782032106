"""What is built from: pinned by hash, checked against advisories, and listed."""

import os
import re
import subprocess

import pytest

from files import ROOT

ADVISORY = """```toml
[advisory]
id = "RUSTSEC-2020-0001"
package = "{package}"
date = "2020-01-01"

[versions]
patched = []
```

# A made-up hole
"""


def git(folder, *arguments, **environment):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, env=os.environ | environment
    )


@pytest.fixture
def database(tmp_path):
    """Makes an advisory database that has one advisory, about `package`."""

    def make(package, **environment):
        folder = tmp_path / "advisory-db"
        advisories = folder / "crates" / package
        advisories.mkdir(parents=True)
        (advisories / "RUSTSEC-2020-0001.md").write_text(ADVISORY.format(package=package))
        git(folder, "init", "--quiet", "--initial-branch=any")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message=one", **environment)
        return folder

    return make


def audit(folder, **environment):
    return subprocess.run(
        ["make", "--no-print-directory", "audit", f"ADVISORY_DB={folder}"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_audit_without_findings_passes(database):
    done = audit(database("a-crate-that-nobody-uses"))
    assert done.returncode == 0, done.stderr
    assert "advisories ok" in done.stdout + done.stderr


def test_an_audit_names_the_crate_and_the_advisory(database):
    done = audit(database("serde_json"))
    assert done.returncode != 0
    assert "RUSTSEC-2020-0001" in done.stderr
    assert "serde_json" in done.stderr


def test_an_audit_refuses_an_old_database(database):
    done = audit(database("serde_json", GIT_COMMITTER_DATE="2024-01-01T00:00:00Z"))
    assert done.returncode != 0
    assert "expected at most 90" in done.stderr
    assert "RUSTSEC-2020-0001" not in done.stderr


def test_an_audit_says_what_is_missing(tmp_path):
    done = audit(tmp_path / "none")
    assert done.returncode != 0
    assert "which is no folder" in done.stderr
    # Without a folder it asks the network, which is somewhere else here.
    nowhere = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/nowhere.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/RustSec/advisory-db",
    }
    done = audit("", **nowhere)
    assert done.returncode != 0
    assert "set ADVISORY_DB to its folder" in done.stderr


def requirements():
    files = [*ROOT.glob("scripts/*requirements*.txt"), ROOT / "training" / "requirements.lock"]
    return [*files, ROOT / "deploy" / "onnxruntime-cuda.txt"]


@pytest.mark.parametrize("path", requirements(), ids=lambda path: path.name)
def test_every_python_package_is_pinned_by_hash(path):
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE))
    packages = [line for line in text.splitlines() if line.strip()]
    assert packages
    for package in packages:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", package), package
        assert re.search(r"--hash=sha256:[0-9a-f]{64}(\s|$)", package), package


def test_python_packages_are_installed_by_hash_alone():
    installing = re.compile(r"pip[\s\",]+(?:--\S+[\s\",]+)*(?:install|download)\b")
    found = 0
    for path in [ROOT / "Makefile", ROOT / "Dockerfile", *ROOT.glob("scripts/*"), ROOT / ".ci/run"]:
        if not path.is_file() or path.name.startswith("test_"):
            continue
        text = path.read_text()
        for match in installing.finditer(text):
            found += 1
            assert "--require-hashes" in text[match.start() : match.start() + 400], path
    assert found >= 2, "the pattern finds no place that installs packages"
