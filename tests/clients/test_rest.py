"""The Open Inference Protocol over HTTP by plain `requests`, as its specification has it."""

import base64
import gzip
import json
import struct
import zlib

import numpy as np
import pytest
import requests

from pictures import BLOCKS, CLASSES, FILES, SAMPLES, TENSORS
from server import MODEL, PATIENCE
from test_infer import check, check_summary
from triton_clients import OUTPUTS

INFER = f"/v2/models/{MODEL}/infer"
HEADER = "Inference-Header-Content-Length"
TYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}


@pytest.fixture
def get(server):
    return lambda path, **options: requests.get(server.url(path), timeout=PATIENCE, **options)


@pytest.fixture
def post(server):
    return lambda path, **options: requests.post(server.url(path), timeout=PATIENCE, **options)


def arrays(outputs):
    """The tensors of a JSON answer."""
    return {
        output["name"]: np.array(output["data"], TYPES[output["datatype"]]).reshape(output["shape"])
        for output in outputs
    }


def check_error(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "code", "request_id"}
    assert body["code"] == code, body
    assert body["request_id"] == answer.headers["x-request-id"]
    return body["error"]


def test_health_has_the_bodies_that_kserves_client_reads(get):
    live, ready = get("/v2/health/live"), get("/v2/health/ready")
    assert (live.status_code, live.json()["live"]) == (200, True)
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    for path in (f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}/versions/1/ready"):
        answer = get(path)
        assert (answer.status_code, answer.json()) == (200, {"name": MODEL, "ready": True})


@pytest.mark.parametrize("body", [None, b"{}", b'{"ready": true}'])
def test_the_repository_index_takes_any_body(post, body):
    answer = post("/v2/repository/index", data=body)
    assert answer.status_code == 200
    assert answer.json() == [{"name": MODEL, "version": "1", "state": "READY", "reason": ""}]


def bytes_input(*images):
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": data}


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream"])
def test_json_both_ways(post, classify, content_type):
    body = json.dumps({"id": "a", "inputs": [bytes_input(FILES[0], FILES[1])]})
    headers = {"content-type": content_type} if content_type else {}
    answer = post(INFER, data=body, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert HEADER not in answer.headers
    found = answer.json()
    assert (found["model_name"], found["model_version"], found["id"]) == (MODEL, "1", "a")
    assert [output["name"] for output in found["outputs"]] == list(OUTPUTS)
    # A parameters object without binary_data_size is more than Triton's C++ client can read.
    assert all("parameters" not in output for output in found["outputs"])
    check(arrays(found["outputs"]), [classify(FILES[0]), classify(FILES[1])])


@pytest.mark.parametrize("nested", [False, True])
def test_data_may_be_flat_or_nested(post, classify, nested):
    batch = np.stack(TENSORS[:2])
    data = (batch if nested else batch.reshape(-1)).tolist()
    tensor = {"name": "image", "shape": list(batch.shape), "datatype": "FP32", "data": data}
    answer = post(INFER, json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    check(arrays(answer.json()["outputs"]), [classify(FILES[0]), classify(FILES[1])])


def test_the_response_sums_one_image_up(post, classify):
    found = post(INFER, json={"inputs": [bytes_input(FILES[3])]}).json()

    class Answer:
        parameters = found["parameters"]

    check_summary(Answer, classify(FILES[3]))


@pytest.mark.parametrize("query", ["", "?path=full", "?max_blocks=4&threshold=0.4"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.suffix)
def test_a_body_that_is_the_image(post, classify, query, sample):
    """`curl --data-binary @cat.jpg -H 'Inference-Header-Content-Length: 0'`"""
    answer = post(INFER + query, data=sample.read_bytes(), headers={HEADER: "0"})
    assert answer.status_code == 200, answer.text
    parameters = dict(pair.split("=") for pair in query[1:].split("&") if pair)
    # Nothing asked for binary tensors, so nothing but JSON comes.
    outputs = answer.json()["outputs"]
    check(arrays(outputs), [classify(sample.read_bytes(), **parameters)])


def test_binary_outputs_lie_behind_the_json_in_its_order(post, classify):
    content = struct.pack("<I", len(FILES[2])) + FILES[2]
    tensor = bytes_input(FILES[2]) | {"parameters": {"binary_data_size": len(content)}}
    del tensor["data"]
    wanted = [
        {"name": "flops", "parameters": {"binary_data": True}},
        {"name": "class"},
        {"name": "mask", "parameters": {"binary_data": True}},
    ]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    answer = post(INFER, data=head + content, headers={HEADER: str(len(head))})
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[HEADER])
    outputs, rest = json.loads(answer.content[:length])["outputs"], answer.content[length:]
    assert [output["name"] for output in outputs] == ["flops", "class", "mask"]
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in outputs]
    assert sizes == [8, None, BLOCKS]
    assert len(rest) == 8 + BLOCKS
    expected = classify(FILES[2])
    assert struct.unpack("<q", rest[:8]) == (expected.spent,)
    assert "".join(map(str, rest[8:])) == expected.mask
    assert outputs[1]["data"] == [expected.classes[0]]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_are_compressed_as_asked(post, classify, encoding):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    body = pack(json.dumps({"inputs": [bytes_input(*FILES)]}).encode())
    headers = {"content-encoding": encoding, "accept-encoding": encoding}
    answer = post(INFER, data=body, headers=headers)
    assert answer.headers["content-encoding"] == encoding
    check(arrays(answer.json()["outputs"]), [classify(file) for file in FILES])
    headers = {"content-encoding": encoding}
    answer = post("/v1/classify", data=pack(FILES[0]), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["path"]["mask"] == classify(FILES[0]).mask


def test_an_encoding_it_does_not_know_is_refused(post):
    answer = post(INFER, data=b"x", headers={"content-encoding": "br"})
    assert "br" in check_error(answer, 415, "unsupported_encoding")


def test_a_damaged_compressed_body_is_refused(post):
    body = gzip.compress(json.dumps({"inputs": [bytes_input(FILES[0])]}).encode())
    for damaged in (body[:-20], b"no gzip"):
        answer = post(INFER, data=damaged, headers={"content-encoding": "gzip"})
        check_error(answer, 400, "invalid_body")


def test_a_compressed_body_counts_by_its_content(post):
    # 64 MiB of zeros fit in 64 KiB; the limit is 16 MiB.
    answer = post(INFER, data=gzip.compress(bytes(64 << 20)), headers={"content-encoding": "gzip"})
    check_error(answer, 413, "body_too_large")


IMAGE = bytes_input(FILES[0])
HALF = {"name": "image", "shape": [2], "datatype": "BYTES", "data": IMAGE["data"]}
NUMBERS = {"name": "image", "shape": [1, 3, 32, 32], "datatype": "FP32"}
BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no inputs": b"{}",
    "no list of inputs": b'{"inputs": {}}',
    "two inputs": {"inputs": [IMAGE, IMAGE]},
    "less data than its shape": {"inputs": [HALF]},
    "no base64": {"inputs": [IMAGE | {"data": ["#"]}]},
    "a number for an image": {"inputs": [IMAGE | {"data": [1]}]},
    "no data": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]},
    "a negative shape": {"inputs": [IMAGE | {"shape": [-1]}]},
    "a shape that overflows": {"inputs": [NUMBERS | {"shape": [1 << 62, 3, 1 << 62, 32]}]},
    "text for numbers": {"inputs": [NUMBERS | {"data": ["a"] * 3072}]},
    "a ragged array": {"inputs": [NUMBERS | {"data": [[1, 2], [3]]}]},
    "numbers that are none in 32 bits": {"inputs": [NUMBERS | {"data": [1e39] * 3072}]},
    "a size without the bytes": {"inputs": [IMAGE | {"parameters": {"binary_data_size": 10}}]},
    "an output twice": {"inputs": [IMAGE], "outputs": [{"name": "mask"}, {"name": "mask"}]},
    "classes of what has none": {
        "inputs": [IMAGE],
        "outputs": [{"name": "flops", "parameters": {"classification": 2}}],
    },
    "a parameter of no simple type": {"inputs": [IMAGE], "parameters": {"path": ["full"]}},
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_does_not_fit_is_refused(post, case):
    body = BODIES[case]
    if not isinstance(body, bytes):
        body = json.dumps(body)
    answer = post(INFER, data=body)
    assert answer.status_code == 400, answer.text
    assert check_error(answer, 400, answer.json()["code"])


@pytest.mark.parametrize(
    "path, body",
    [
        (INFER, ["a", {}, [IMAGE], []]),
        (INFER, {"inputs": [list(IMAGE.values())]}),
        (INFER, {"inputs": [["image", "BYTES", [1], {}, IMAGE["data"]]]}),
        (INFER, {"inputs": [IMAGE], "outputs": [["mask", {}]]}),
        ("/v1/classify", [[{"b64": IMAGE["data"][0]}]]),
        ("/v1/classify", {"images": [[IMAGE["data"][0]]]}),
    ],
    ids=["request", "input", "input in order", "output", "images", "image"],
)
def test_a_list_is_no_object(post, path, body):
    check_error(post(path, json=body), 400, "invalid_body")


@pytest.mark.parametrize("length", ["x", "-1", "100000000", "1"])
def test_a_header_length_that_does_not_fit_is_refused(post, length):
    body = json.dumps({"inputs": [IMAGE]})
    answer = post(INFER, data=body, headers={HEADER: length})
    assert answer.status_code == 400, answer.text
    check_error(answer, 400, answer.json()["code"])


@pytest.mark.parametrize(
    "end", [b"", b"\0" * 7, b"\xff\xff\xff\xff"], ids=["less", "more", "no number"]
)
def test_binary_data_that_does_not_fit_is_refused(post, end):
    content = TENSORS[0].tobytes()[:-4] + end
    tensor = NUMBERS | {"parameters": {"binary_data_size": len(content)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = post(INFER, data=head + content, headers={HEADER: str(len(head))})
    check_error(answer, 400, "invalid_body")


def test_unknown_paths_and_methods(get, post):
    check_error(get("/v2/models/nope"), 404, "unknown_model")
    check_error(get("/v2/nope"), 404, "not_found")
    check_error(get(INFER), 405, "method_not_allowed")
    check_error(post("/v2"), 405, "method_not_allowed")
    for action in ("load", "unload"):
        answer = post(f"/v2/repository/models/{MODEL}/{action}", json={})
        assert answer.status_code in (404, 405)


def test_the_request_id_is_in_every_answer(post):
    headers = {"x-request-id": "mine"}
    answer = post(INFER, json={"inputs": [IMAGE]}, headers=headers)
    assert answer.headers["x-request-id"] == "mine"
    answer = post(INFER, data=b"{", headers=headers)
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"


def test_the_top_of_the_classes_of_a_body_that_is_the_image(post, classify):
    answer = post(INFER + "?top_k=3", data=FILES[4], headers={HEADER: "0"})
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    assert outputs["class"]["shape"] == outputs["probabilities"]["shape"] == [1, 3]
    assert outputs["class"]["data"] == classify(FILES[4]).classes[:3]
    assert outputs["logits"]["shape"] == [1, CLASSES]


@pytest.mark.parametrize(
    "more, of_input",
    [
        # KServe's client names the model once more.
        ({"model_name": MODEL}, {}),
        # MLServer's codecs say how to read the contents.
        (
            {"parameters": {"content_type": "base64", "headers": {"a": "b"}}},
            {"parameters": {"content_type": "base64"}},
        ),
        # Clients with types of their own write what is not there as null.
        ({"id": None, "parameters": None, "outputs": None}, {"parameters": None}),
    ],
    ids=["KServe", "MLServer", "nulls"],
)
def test_bodies_as_other_clients_write_them(post, classify, more, of_input):
    body = {"inputs": [bytes_input(FILES[0]) | of_input], **more}
    answer = post(INFER, json=body)
    assert answer.status_code == 200, answer.text
    check(arrays(answer.json()["outputs"]), [classify(FILES[0])])
