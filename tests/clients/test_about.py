"""What the server says about itself and its models, to tritonclient's four clients."""

import pytest
from tritonclient.utils import InferenceServerException

from pictures import BLOCKS, CLASSES, FILES, MANIFEST
from server import MODEL
from triton_clients import OUTPUTS, files

SIZE = [3, MANIFEST["input"]["height"], MANIFEST["input"]["width"]]


def integers(values):
    return [int(value) for value in values]


def test_the_server_and_its_model_are_live_and_ready(client):
    assert client.call("is_server_live") is True
    assert client.call("is_server_ready") is True
    assert client.call("is_model_ready", MODEL) is True
    assert client.call("is_model_ready", MODEL, "1") is True


@pytest.mark.parametrize("name, version", [("nope", ""), (MODEL, "7")])
def test_a_model_that_is_not_there_is_not_ready(client, name, version):
    try:
        ready = client.call("is_model_ready", name, version)
    except InferenceServerException as error:
        # HTTP's clients make False of every status but 200; gRPC's raise.
        assert client.transport == "grpc"
        assert error.status() == "StatusCode.NOT_FOUND"
    else:
        assert ready is False


def test_the_server_says_what_it_is(client):
    found = client.json("get_server_metadata")
    assert found["name"] == "blockdrop"
    assert found["version"]
    expected = {"binary_tensor_data", "classification", "model_configuration", "statistics"}
    if client.transport == "http":
        assert expected <= set(found["extensions"])


@pytest.mark.parametrize("version", ["", "1"])
def test_metadata_names_every_tensor(client, version):
    found = client.json("get_model_metadata", MODEL, version)
    assert found["name"] == MODEL
    assert found["versions"] == ["1"]
    assert found["platform"] == "blockdrop_onnxruntime"
    [image] = found["inputs"]
    assert (image["name"], image["datatype"]) == ("image", "FP32")
    assert integers(image["shape"]) == [-1, *SIZE]
    outputs = {
        output["name"]: (output["datatype"], integers(output["shape"]))
        for output in found["outputs"]
    }
    assert outputs == {
        "logits": ("FP32", [-1, CLASSES]),
        "probabilities": ("FP32", [-1, CLASSES]),
        "class": ("INT32", [-1]),
        "mask": ("UINT8", [-1, BLOCKS]),
        "blocks": ("INT32", [-1]),
        "flops": ("INT64", [-1]),
    }


@pytest.mark.parametrize("version", ["", "1"])
def test_the_configuration_is_the_metadata_without_the_batch(client, version):
    found = client.json("get_model_config", MODEL, version)
    found = found.get("config", found)
    assert found["name"] == MODEL
    assert found["max_batch_size"] == 64
    [image] = found["input"]
    assert (image["name"], image["data_type"]) == ("image", "TYPE_FP32")
    assert integers(image["dims"]) == SIZE
    assert {output["name"] for output in found["output"]} == set(OUTPUTS)
    dims = {output["name"]: integers(output["dims"]) for output in found["output"]}
    assert dims["logits"] == [CLASSES]
    assert dims["mask"] == [BLOCKS]


def test_the_repository_lists_the_models(client):
    found = client.json("get_model_repository_index")
    [entry] = found.get("models", found) if isinstance(found, dict) else found
    assert (entry["name"], entry["version"], entry["state"]) == (MODEL, "1", "READY")
    assert entry.get("reason", "") == ""


def statistics(client, *arguments):
    [entry] = client.json("get_inference_statistics", *arguments)["model_stats"]
    assert (entry["name"], entry["version"]) == (MODEL, "1")
    durations = entry["inference_stats"]
    # perf_analyzer reads every one of them.
    stages = {"queue", "compute_input", "compute_infer", "compute_output"}
    assert set(durations) == {"success", "fail", "cache_hit", "cache_miss"} | stages
    counts = {name: int(duration["count"]) for name, duration in durations.items()}
    for name, duration in durations.items():
        assert int(duration["ns"]) >= 0
        assert (int(duration["ns"]) > 0) <= (counts[name] > 0), name
    return int(entry["inference_count"]), int(entry["execution_count"]), counts


@pytest.mark.parametrize("arguments", [(), (MODEL,), (MODEL, "1")])
def test_statistics_count_what_was_inferred(client, arguments):
    images, executions, before = statistics(client, *arguments)
    client.infer(files(*FILES[:3]))
    images_after, executions_after, after = statistics(client, *arguments)
    assert images_after == images + 3
    assert executions < executions_after <= executions + 3
    # One request.
    assert after["success"] == before["success"] + 1
    assert after["fail"] == before["fail"]
    assert after["cache_hit"] == after["cache_miss"] == 0


@pytest.mark.parametrize(
    "name",
    ["get_model_metadata", "get_model_config", "get_inference_statistics"],
)
@pytest.mark.parametrize("model, version", [("nope", ""), (MODEL, "7"), (MODEL, "x")])
def test_what_is_asked_of_an_unknown_model_is_an_error(client, name, model, version):
    with pytest.raises(InferenceServerException) as raised:
        client.call(name, model, version)
    statuses = {"http": "404", "grpc": "StatusCode.NOT_FOUND"}
    assert raised.value.status() == statuses[client.transport]
    assert (version or model) in raised.value.message()


@pytest.mark.parametrize("name", ["load_model", "unload_model"])
def test_models_are_not_loaded_by_applications(client, name):
    with pytest.raises(InferenceServerException) as raised:
        client.call(name, MODEL)
    assert raised.value.status() in {
        "404",
        "405",
        "StatusCode.UNIMPLEMENTED",
        "StatusCode.PERMISSION_DENIED",
    }
    assert client.call("is_model_ready", MODEL)
