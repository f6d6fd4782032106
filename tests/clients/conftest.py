"""The server under test, the clients, and the answers to compare with."""

import pytest
import requests

from server import MODEL, PATIENCE, Server
from triton_clients import CLIENTS


@pytest.fixture(scope="session")
def server():
    with Server("--workers=1") as server:
        yield server


@pytest.fixture(params=CLIENTS)
def client(request, server):
    """Each of tritonclient's clients in turn."""
    kind, binary = CLIENTS[request.param]
    client = kind(server, binary)
    yield client
    client.close()


@pytest.fixture(scope="session")
def classify(server):
    """Classifies by `POST /v1/classify`: what every other protocol has to answer too."""
    return Classify(server)


class Classify:
    def __init__(self, server):
        self.url = server.url("/v1/classify")

    def __call__(self, image, **query):
        """The result of a file."""
        [result] = self.post(query, data=image)
        return result

    def batch(self, *images, **query):
        """The results of several files in one request."""
        return self.post(query, files=[("image", image) for image in images])

    def post(self, query, **body):
        answer = requests.post(self.url, params={"top_k": 1000, **query}, timeout=PATIENCE, **body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["model"], found["version"]) == (MODEL, "1")
        return [Result(result) for result in found["results"]]


class Result:
    """What `/v1/classify` says of an image."""

    def __init__(self, result):
        self.json = result
        predictions, path = result["predictions"], result["path"]
        # The most probable first.
        self.classes = [entry["class"] for entry in predictions]
        self.labels = [entry["label"] for entry in predictions]
        # In the order of the classes.
        by_class = {entry["class"]: entry["probability"] for entry in predictions}
        self.probabilities = [by_class[index] for index in sorted(by_class)]
        self.policy, self.mask, self.kept = path["policy"], path["mask"], path["blocks_kept"]
        self.flops = result["flops"]
        self.spent = self.flops["policy"] + self.flops["executed"]
