"""The server under test, the browser, and pages in it.

Chromium is what CHROMIUM names, else the first one on the path. A page fails its test
when it asks another host for anything, or when the browser reports an error or a breach
of the page's security policy.
"""

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
MODEL = "cifar10-resnet32"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Guards against hanging; never a measure of speed.
PATIENCE = 60

expect.set_options(timeout=PATIENCE * 1000)


class Server:
    """`blockdrop serve` as a child process."""

    def __init__(self, models: Path):
        # Cargo becomes the server that it runs.
        command = [os.environ.get("CARGO", "cargo"), "run", "--quiet", "--locked"]
        command += ["--bin", "blockdrop", "--", "serve", "--models", str(models)]
        for listener in ("http", "grpc", "admin"):
            command += [f"--{listener}-addr", "127.0.0.1:0"]
        command += ["--default-model", MODEL, "--workers", "1", "--log-format", "json"]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.url = self.until_ready()

    def until_ready(self) -> str:
        log = []
        for line in self.process.stderr:
            log.append(line)
            if line.startswith("{") and json.loads(line).get("message") == "ready":
                return f"http://{json.loads(line)['address']}"
        raise AssertionError(f"the server ended with {self.process.wait()}:\n{''.join(log)}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stderr.read()
        assert self.process.wait(timeout=PATIENCE) == 0

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            return json.load(response)

    def classify(self, image: Path, **query) -> dict:
        """What the API says of an image."""
        url = f"{self.url}/v1/classify?{urlencode({'model': MODEL, 'top_k': 10, **query})}"
        request = urllib.request.Request(url, data=image.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.load(response)["results"][0]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    for name in (MODEL, "another"):
        shutil.copytree(ROOT / "models" / MODEL, models / name)
    running = Server(models)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser():
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, "no Chromium on the path: install Debian's package chromium, or set CHROMIUM"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found)
        yield launched
        launched.close()


@pytest.fixture
def window(browser):
    """Opens an address in a window of its own; options are those of a browser's context."""
    contexts, complaints = [], []

    def complain(message):
        # That an answer was an error is what some tests are about.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_window(url, prepare=None, **options):
        def ask(request):
            address = urlsplit(request.url)
            if address.scheme in ("http", "https") and address.netloc != urlsplit(url).netloc:
                complaints.append(f"asked for {request.url}")

        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", ask)
        if prepare:
            prepare(page)
        page.goto(url)
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def visit(server, window):
    """Opens the server's page."""

    def open_page(prepare=None, **options):
        return window(server.url + "/", prepare, **options)

    return open_page
