"""The clients in README.md do what it says: each block of code is run against the server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pictures import LABELS
from server import PATIENCE, ROOT, Server, built

HERE = Path(__file__).resolve().parent
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections():
    """Each section's name, and its blocks of code: (language, text)."""
    for section in README.split("\n## ")[1:]:
        name, _, text = section.partition("\n")
        yield name, FENCE.findall(text)


BLOCKS = [(name, *block) for name, blocks in sections() for block in blocks]
CLIENTS = [(language, text) for name, language, text in BLOCKS if name == "Clients"]
SHELL = [text for language, text in CLIENTS if language == "sh"]
PYTHON = [text for language, text in CLIENTS if language == "python"]
RUST = [text for language, text in CLIENTS if language == "rust"]

# Elsewhere, what asks a server something and nothing else; with the answer that follows it, if any.
CURL = [
    (text, after[2] if after[1] == "json" else None)
    for (name, language, text), after in zip(BLOCKS, [*BLOCKS[1:], ("", "", "")], strict=True)
    if name != "Clients" and language == "sh"
    if all(line.startswith(("curl", " ")) for line in text.splitlines())
]


@pytest.fixture(scope="module")
def server():
    """A server of all models, as `make serve` starts it."""
    with Server("--workers=1", models=ROOT / "models") as server:
        yield server


def title(text):
    """A block's first words, to tell a test by."""
    return text if text is None else " ".join(text.split())[:60]


def at(server, text):
    """A block with the addresses of the server that runs."""
    for port, address in ((8080, server.http), (9000, server.grpc)):
        text = text.replace(f"localhost:{port}", address)
    assert "localhost:" not in text
    return text


def run(command, **options):
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
    return done.stdout


def shell(text, folder):
    """Runs a block of shell. Without a grpcurl here, the one beside this file stands in for it."""
    environment = dict(os.environ)
    if shutil.which("grpcurl") is None:
        stand_in = folder / "grpcurl"
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -B "{HERE / "grpcurl"}" "$@"\n')
        stand_in.chmod(0o755)
        environment["PATH"] = f"{folder}:{environment['PATH']}"
    return run(["bash", "-euo", "pipefail", "-c", text], env=environment)


def check_classes(text, output):
    """Checks that the output names each sample's class: the samples are named after theirs."""
    samples = re.findall(r"samples/(\w+)\.\w+", text)
    assert samples, f"no sample is classified:\n{text}"
    found = output
    for document in documents(output):
        # A tensor has a class's number.
        for tensor in document.get("outputs", ()):
            if tensor["name"] == "class":
                found += " ".join(LABELS[index] for index in tensor["data"])
    for sample in samples:
        assert found.count(sample) >= samples.count(sample), output


def documents(text):
    """The JSON objects that `text` starts with."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        try:
            document, end = decoder.raw_decode(text)
        except json.JSONDecodeError:
            return
        yield document
        text = text[end:].strip()


def alike(found, shown):
    """Whether an answer is the one shown, but for the request's id, its times and rounding."""
    if isinstance(shown, dict):
        assert list(found) == list(shown)
        for name in shown:
            if name == "timing_ms":
                assert list(found[name]) == list(shown[name])
            elif name != "request_id":
                alike(found[name], shown[name])
    elif isinstance(shown, list):
        assert len(found) == len(shown)
        for pair in zip(found, shown, strict=True):
            alike(*pair)
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, abs=1e-5)
    else:
        assert found == shown


def test_every_kind_of_client_is_there():
    assert {language for language, _ in CLIENTS} >= {"sh", "python", "rust"}
    for word in ("curl ", "grpcurl "):
        assert any(word in text for text in SHELL)
    for word in ("import tritonclient", "import requests"):
        assert any(word in text for text in PYTHON)
    assert CURL


@pytest.mark.parametrize("text", SHELL, ids=title)
def test_shell(server, tmp_path, text):
    output = shell(at(server, text), tmp_path)
    if "samples/" in text:
        check_classes(text, output)


@pytest.mark.parametrize("text, answer", CURL, ids=title)
def test_the_other_sections_curl(server, tmp_path, text, answer):
    output = shell(at(server, text), tmp_path)
    check_classes(text, output)
    if answer is not None:
        alike(json.loads(output), json.loads(answer))


@pytest.mark.parametrize("text", PYTHON, ids=title)
def test_python(server, text):
    check_classes(text, run([sys.executable, "-B", "-c", at(server, text)]))


@pytest.mark.parametrize(
    "text", [text for text in PYTHON if "tritonclient.http" in text], ids=title
)
def test_python_over_grpc_by_two_words(server, text):
    text = text.replace("tritonclient.http", "tritonclient.grpc").replace(":8080", ":9000")
    check_classes(text, run([sys.executable, "-B", "-c", at(server, text)]))


def test_rust(server):
    [text] = RUST
    code = (ROOT / "examples" / "classify.rs").read_text()
    # All but what the repository's own lints need.
    code = "\n".join(line for line in code.splitlines() if not line.startswith(("//!", "#![")))
    assert text.strip() == code.strip()
    check_classes(text, run([built("examples", "classify"), server.url("")]))
