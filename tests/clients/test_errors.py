"""Errors as tritonclient's four clients raise them: the status, and a sentence that says why."""

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from pictures import FILES, PIXELS, TENSORS, encoded
from server import MODEL
from test_infer import check
from triton_clients import Grpc, Http, files, pixels

INVALID = ("400", "StatusCode.INVALID_ARGUMENT")
NOT_FOUND = ("404", "StatusCode.NOT_FOUND")


def image(*indices):
    return files(*(FILES[index] for index in indices or [0]))


def tensor(index=0):
    return pixels(TENSORS[index])


CUT_OFF = encoded(PIXELS[0], "JPEG")[:-40]

# What is sent, the statuses, and what the sentence has in it.
CASES = {
    "unknown model": ({"images": image(), "model": "nope"}, NOT_FOUND, ["nope", MODEL]),
    "unknown version": ({"images": image(), "model_version": "7"}, NOT_FOUND, ["7"]),
    "no number for a version": ({"images": image(), "model_version": "x"}, NOT_FOUND, ["x"]),
    "unknown input": ({"images": tensor(), "name": "input_0"}, INVALID, ["input_0", "image"]),
    "datatype": (
        {"images": tensor().astype(np.float64), "datatype": "FP64"},
        INVALID,
        ["FP64", "FP32", "BYTES"],
    ),
    "too few dimensions": ({"images": TENSORS[0]}, INVALID, ["3", "32"]),
    "another size": ({"images": tensor()[:, :, :31]}, INVALID, ["31", "32"]),
    "channels last": (
        {"images": np.ascontiguousarray(tensor().transpose(0, 2, 3, 1))},
        INVALID,
        ["32"],
    ),
    "no images": ({"images": tensor()[:0]}, INVALID, ["image"]),
    "BYTES in two dimensions": (
        {"images": image(0, 1).reshape(1, 2)},
        INVALID,
        ["[1,2]", "BYTES"],
    ),
    "unknown output": (
        {"images": image(), "outputs": ["softmax"]},
        INVALID,
        ["softmax", "probabilities"],
    ),
    "not an image": (
        {"images": files(b"GIF is what this is not")},
        ("415", "StatusCode.INVALID_ARGUMENT"),
        ["JPEG"],
    ),
    "a damaged image": ({"images": files(CUT_OFF)}, INVALID, ["JPEG", "damaged"]),
    "an empty image": ({"images": files(b"")}, INVALID, ["empty"]),
    "a bad image among others": (
        {"images": files(FILES[0], FILES[1], CUT_OFF, FILES[2])},
        INVALID,
        ["2", "damaged"],
    ),
    "unknown parameter": (
        {"images": image(), "parameters": {"treshold": 0.5}},
        INVALID,
        ["treshold", "threshold"],
    ),
    "unknown path": (
        {"images": image(), "parameters": {"path": "half"}},
        INVALID,
        ["half", "full"],
    ),
    "a mask of another net": (
        {"images": image(), "parameters": {"path": "mask:101"}},
        INVALID,
        ["3", "15"],
    ),
    "threshold": (
        {"images": image(), "parameters": {"threshold": 1.5}},
        INVALID,
        ["threshold", "1.5"],
    ),
    "a number that is a word": (
        {"images": image(), "parameters": {"max_blocks": "few"}},
        INVALID,
        ["max_blocks", "few"],
    ),
    "a negative number": (
        {"images": image(), "parameters": {"max_blocks": -1}},
        INVALID,
        ["max_blocks", "-1"],
    ),
    "a truth for a number": (
        {"images": image(), "parameters": {"max_blocks": True}},
        INVALID,
        ["max_blocks", "true"],
    ),
    "top_k of 0": ({"images": image(), "parameters": {"top_k": 0}}, INVALID, ["top_k", "0"]),
    "too little FLOPs": (
        {"images": image(), "parameters": {"max_flops": 1000}},
        INVALID,
        ["max_flops", "1000"],
    ),
    "no time": (
        {"images": image(), "timeout": 1},
        ("504", "StatusCode.DEADLINE_EXCEEDED"),
        ["time"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_says_why(client, classify, case):
    sent, (http, grpc), words = CASES[case]
    with pytest.raises(InferenceServerException) as raised:
        client.infer(**sent)
    error = raised.value
    assert error.status() == {"http": http, "grpc": grpc}[client.transport], error
    for word in words:
        assert word in error.message(), error
    # One sentence, which needs no line of its own.
    assert "\n" not in error.message()
    # The connection serves on.
    check(client.infer(image()).outputs, [classify(FILES[0])])


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_is_the_same_over_http_and_grpc(server, case):
    sent, _, _ = CASES[case]
    said = set()
    for client in (Http(server), Http(server, binary=False), Grpc(server)):
        with pytest.raises(InferenceServerException) as raised:
            client.infer(**sent)
        said.add(raised.value.message())
        client.close()
    assert len(said) == 1


def test_too_many_images(client):
    with pytest.raises(InferenceServerException) as raised:
        client.infer(image(*[0] * 65))
    statuses = {
        "http": ("413",),
        "grpc": ("StatusCode.INVALID_ARGUMENT", "StatusCode.RESOURCE_EXHAUSTED"),
    }
    assert raised.value.status() in statuses[client.transport]
    assert "64" in raised.value.message()


def test_shared_memory_is_refused(client):
    # There is none: a region is an answer that does not fit, never a wrong result.
    wanted = client.package.InferInput("image", [1, 3, 32, 32], "FP32")
    wanted.set_shared_memory("region", TENSORS[0].nbytes)
    with pytest.raises(InferenceServerException) as raised:
        client.call("infer", MODEL, inputs=[wanted])
    assert raised.value.status() in INVALID
