"""Servers that are set up in other ways: with keys, with several models and versions."""

import re
import shutil
from types import SimpleNamespace

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from pictures import FILES
from reflected import Reflected
from server import MODEL, PATIENCE, ROOT, Server
from test_infer import check
from triton_clients import CLIENTS, files

KEYS = ["the-first-of-two-keys", "another-key-as-good"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who may ask\n{KEYS[0]}\n\n{KEYS[1]}\n")
    with Server("--workers=1", f"--api-keys-file={path}") as server:
        yield server


@pytest.fixture(params=["http-binary", "http-aio-binary", "grpc", "grpc-aio"])
def outsider(request, guarded):
    kind, binary = CLIENTS[request.param]
    client = kind(guarded, binary)
    yield client
    client.close()


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_lets_a_client_in(outsider, classify, key):
    answer = outsider.infer(files(FILES[0]), headers=bearer(key))
    check(answer.outputs, [classify(FILES[0])])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("a-key-that-is-not-there"),
        bearer(KEYS[0].upper()),
        bearer(KEYS[0][:-1]),
        bearer(""),
    ],
)
def test_without_a_key_a_client_is_told_so(outsider, headers):
    for call in (
        lambda: outsider.infer(files(FILES[0]), headers=dict(headers)),
        lambda: outsider.call("get_model_metadata", MODEL, headers=dict(headers)),
    ):
        with pytest.raises(InferenceServerException) as raised:
            call()
        assert raised.value.status() in ("401", "StatusCode.UNAUTHENTICATED")


def test_health_needs_no_key(guarded):
    for path in ("/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs", "/"):
        answer = requests.get(guarded.url(path), timeout=PATIENCE)
        assert answer.status_code == 200, path
    with grpc.insecure_channel(guarded.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            Reflected(channel).services()
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_every_documented_route_but_health_needs_a_key(guarded):
    document = requests.get(guarded.url("/openapi.json"), timeout=PATIENCE).json()
    routes = [(path, method) for path, entry in document["paths"].items() for method in entry]
    assert routes
    for path, method in routes:
        url = guarded.url(re.sub(r"\{\w+\}", "1", path))
        status = requests.request(method, url, timeout=PATIENCE).status_code
        assert (status == 401) != path.startswith("/v2/health/"), (path, method, status)


def test_http_names_what_it_wants(guarded):
    for path in ("/v2", "/v1/models", "/v2/models/nope"):
        answer = requests.get(guarded.url(path), timeout=PATIENCE)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "unauthenticated"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A server of one model in two versions, and of another model."""
    models = tmp_path_factory.mktemp("models")
    for place in ("nets/2", "nets/10", "other/1"):
        shutil.copytree(ROOT / "models" / MODEL / "1", models / place)
    with Server("--workers=1", models=models) as server:
        yield server


@pytest.fixture(params=["http-binary", "http-json", "grpc"])
def chooser(request, several):
    kind, binary = CLIENTS[request.param]
    client = kind(several, binary)
    yield client
    client.close()


def test_the_newest_version_answers_where_none_is_named(chooser, classify):
    for version, answers in (("", "10"), ("2", "2"), ("10", "10")):
        answer = chooser.infer(files(FILES[0]), model="nets", model_version=version)
        assert (answer.model, answer.version) == ("nets", answers)
        check(answer.outputs, [classify(FILES[0])])


def test_all_models_and_versions_are_told(chooser):
    index = chooser.json("get_model_repository_index")
    index = index["models"] if isinstance(index, dict) else index
    found = {(entry["name"], entry["version"], entry["state"]) for entry in index}
    assert found == {(*place, "READY") for place in (("nets", "2"), ("nets", "10"), ("other", "1"))}
    assert chooser.json("get_model_metadata", "nets")["versions"] == ["2", "10"]
    stats = chooser.json("get_inference_statistics")["model_stats"]
    assert len(stats) == 3


@pytest.mark.parametrize("kind", ["http", "http-aio"])
def test_models_come_and_go_by_the_admin_listener(tmp_path, classify, kind):
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models" / MODEL, models / "kept")
    shutil.copytree(ROOT / "models" / MODEL, models / "late")
    with Server("--workers=1", "--default-model=kept", models=models) as server:
        clients = [CLIENTS[name][0](server) for name in (f"{kind}-binary", "grpc")]
        operator = CLIENTS[f"{kind}-binary"][0](SimpleNamespace(http=server.admin))

        def states():
            index = operator.json("get_model_repository_index")
            return {entry["name"]: entry["state"] for entry in index}

        assert states() == {"kept": "READY", "late": "READY"}
        operator.call("unload_model", "late")
        assert states() == {"kept": "READY", "late": "UNAVAILABLE"}
        for client in clients:
            with pytest.raises(InferenceServerException) as raised:
                client.infer(files(FILES[0]), model="late")
            assert raised.value.status() in ("404", "StatusCode.NOT_FOUND")
            check(client.infer(files(FILES[0]), model="kept").outputs, [classify(FILES[0])])
        operator.call("load_model", "late")
        assert states() == {"kept": "READY", "late": "READY"}
        for client in clients:
            assert client.call("is_model_ready", "late")
            check(client.infer(files(FILES[0]), model="late").outputs, [classify(FILES[0])])
        with pytest.raises(InferenceServerException) as raised:
            operator.call("load_model", "nope")
        assert "nope" in raised.value.message()
        for client in (operator, *clients):
            client.close()
