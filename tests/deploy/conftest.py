"""A server under load, and a Prometheus that scrapes it by the rules of deploy/."""

import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import yaml

from binary import options as of_serve
from files import DEPLOY, ROOT, load, tool
from server import PATIENCE, Server

SAMPLES = ROOT / "samples"
PROMETHEUS = DEPLOY / "prometheus"
# As Kubernetes would tell of the target.
POD = {"namespace": "test", "pod": "blockdrop-0"}


@pytest.fixture(scope="session")
def server():
    with Server("--workers=1", "--shadow-rate=1") as server:
        yield server


@pytest.fixture(scope="session")
def options():
    """The options of `serve`: flag to (variable, default or None)."""
    return of_serve()


@pytest.fixture(scope="session")
def limits(options):
    """The defaults that are plain numbers, by flag."""
    return {
        flag: int(default)
        for flag, (_, default) in options.items()
        if default and default.isdigit()
    }


@pytest.fixture(scope="session")
def load_on(server):
    """Requests of all kinds, good and bad, as long as tests run."""
    images = [(SAMPLES / name).read_bytes() for name in ("ship.webp", "horse.jpg", "airplane.png")]
    over = threading.Event()

    def ask(worker):
        session = requests.Session()
        turn = worker
        while not over.is_set():
            image = images[turn % len(images)]
            query = ("", "?path=full", "?max_blocks=3", "?threshold=0.7")[turn % 4]
            session.post(server.url(f"/v1/classify{query}"), data=image, timeout=PATIENCE)
            if turn % 10 == 0:
                session.post(server.url("/v1/classify"), data=b"no image", timeout=PATIENCE)
            turn += 1
            over.wait(0.02)

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, worker) for worker in range(2)]
        yield
        over.set()
        for each in asked:
            each.result()


@pytest.fixture(scope="session")
def exported(server, load_on):
    """The text of /metrics under load."""
    answer = requests.get(f"http://{server.admin}/metrics", timeout=PATIENCE)
    assert answer.status_code == 200
    return answer.text


class Prometheus:
    def __init__(self, url):
        self.url = url

    def get(self, path, **parameters):
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def ask(self, query):
        """The samples of a query: (labels, value)."""
        result = self.get("query", query=query)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]


@pytest.fixture(scope="session")
def prometheus(server, load_on, tmp_path_factory):
    """A real Prometheus with the configuration of deploy/, only quicker, and with this server as its target."""
    home = tmp_path_factory.mktemp("prometheus")
    config = load(PROMETHEUS / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [job] = config["scrape_configs"]
    [static] = job["static_configs"]
    static.update(targets=[server.admin], labels=POD)
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        shutil.copy(PROMETHEUS / name, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (home / "log").open("w")
    command = [tool("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_ready(f"http://{address}"):
            said = (home / "log").read_text()
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(PATIENCE)
        log.close()


def is_ready(url):
    try:
        return requests.get(f"{url}/-/ready", timeout=PATIENCE).status_code == 200
    except requests.ConnectionError:
        return False
