"""Inference by tritonclient's four clients: the same answers as `/v1/classify` gives."""

import numpy as np
import pytest

from pictures import BLOCKS, CLASSES, FILES, LABELS, PIXELS, SAMPLES, TENSORS, encoded
from server import MODEL
from triton_clients import OUTPUTS, Http, files, pixels

KINDS = {
    "FP32": lambda indices: pixels(*(TENSORS[index] for index in indices)),
    "BYTES": lambda indices: files(*(FILES[index] for index in indices)),
}
TYPES = {
    "logits": np.float32,
    "probabilities": np.float32,
    "class": np.int32,
    "mask": np.uint8,
    "blocks": np.int32,
    "flops": np.int64,
}


def mask_of(row):
    return "".join(map(str, row))


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def check(outputs, expected):
    """Checks a batch's outputs by what `/v1/classify` said of each image. Some may be left out."""
    count = len(expected)
    shapes = {
        "logits": (count, CLASSES),
        "probabilities": (count, CLASSES),
        "class": (count,),
        "mask": (count, BLOCKS),
        "blocks": (count,),
        "flops": (count,),
    }
    for name, tensor in outputs.items():
        assert (tensor.shape, tensor.dtype) == (shapes[name], TYPES[name]), name
    for index, one in enumerate(expected):
        found = {name: tensor[index] for name, tensor in outputs.items()}
        if "logits" in found:
            close(softmax(found["logits"]), one.probabilities)
        if "probabilities" in found:
            close(found["probabilities"], one.probabilities)
        if "class" in found:
            assert found["class"] == one.classes[0]
        if "mask" in found:
            assert mask_of(found["mask"]) == one.mask
        if "blocks" in found:
            assert found["blocks"] == one.kept
        if "flops" in found:
            assert found["flops"] == one.spent


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def check_summary(answer, expected):
    """Checks what a response says of its only image."""
    summary = answer.parameters
    assert summary["path"] == expected.policy
    assert summary["mask"] == expected.mask
    assert summary["blocks_kept"] == expected.kept
    assert summary["blocks_total"] == BLOCKS
    for name in ("policy", "executed", "full"):
        assert summary[f"flops_{name}"] == expected.flops[name]
    stages = ("decode", "preprocess", "queue", "policy", "backbone", "total")
    times = [summary[f"{stage}_us"] for stage in stages]
    assert all(isinstance(time, int) and time >= 0 for time in times)
    # Each is rounded for itself.
    assert sum(times[:-1]) <= times[-1] + len(times)


def test_the_samples_are_what_their_names_say(classify):
    for path in SAMPLES:
        assert classify(path.read_bytes()).labels[0] == path.stem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_one_image(client, classify, kind, index):
    answer = client.infer(KINDS[kind]([index]))
    assert (answer.model, answer.version) == (MODEL, "1")
    assert tuple(answer.outputs) == OUTPUTS
    expected = classify(FILES[index])
    check(answer.outputs, [expected])
    check_summary(answer, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_keeps_its_order(client, classify, kind):
    # Repeats among them, so that an image in another's place would show.
    order = [3, 0, 4, 4, 1, 2, 0, 3, 3]
    answer = client.infer(KINDS[kind](order))
    assert tuple(answer.outputs) == OUTPUTS
    check(answer.outputs, [classify(FILES[index]) for index in order])


def test_files_of_any_type_and_size(client, classify):
    contents = [path.read_bytes() for path in SAMPLES]
    contents += [encoded(PIXELS[1], kind) for kind in ("JPEG", "WEBP", "BMP", "GIF")]
    answer = client.infer(files(*contents))
    check(answer.outputs, [classify(content) for content in contents])


def test_a_file_larger_than_grpcs_usual_limit(client, classify):
    # 5.8 MB; messages of gRPC end at 4 MiB where nothing else is set.
    pixels = np.kron(PIXELS[0], np.ones((44, 44, 1), np.uint8))
    content = encoded(pixels, "BMP")
    assert len(content) > 5 << 20
    check(client.infer(files(content)).outputs, [classify(content)])


def test_the_most_images_that_a_request_may_have(client, classify):
    # 64 are what the server allows where nothing else is set.
    order = [index % len(SAMPLES) for index in range(64)]
    answer = client.infer(KINDS["FP32"](order))
    check(answer.outputs, [classify(FILES[index]) for index in order])


@pytest.mark.parametrize("names", [("mask",), ("flops", "class"), tuple(reversed(OUTPUTS))])
def test_only_the_outputs_that_are_named_come_in_that_order(client, classify, names):
    answer = client.infer(KINDS["BYTES"]([0, 2]), outputs=names)
    assert tuple(answer.outputs) == names
    check(answer.outputs, [classify(FILES[0]), classify(FILES[2])])


@pytest.mark.parametrize("id", ["42", "a request of mine é"])
def test_the_requests_id_comes_back(client, id):
    assert client.infer(KINDS["BYTES"]([0]), request_id=id).id == id


def test_a_version_can_be_named(client, classify):
    answer = client.infer(KINDS["BYTES"]([1]), model_version="1")
    assert answer.version == "1"
    check(answer.outputs, [classify(FILES[1])])


@pytest.mark.parametrize("name", ["probabilities", "logits"])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_the_classification_extension_names_classes(client, classify, name, count):
    asked = [client.output(name, class_count=count), "mask"]
    answer = client.infer(KINDS["BYTES"]([0, 3]), outputs=asked)
    assert tuple(answer.outputs) == (name, "mask")
    found, most = answer.outputs[name], min(count, CLASSES)
    assert found.shape == (2, most)
    for row, index in zip(found, (0, 3), strict=True):
        expected = classify(FILES[index])
        entries = [entry if isinstance(entry, str) else entry.decode() for entry in row]
        values, classes, labels = zip(*(entry.split(":") for entry in entries), strict=True)
        assert [int(value) for value in classes] == expected.classes[:most]
        assert list(labels) == [LABELS[index] for index in expected.classes[:most]]
        values = [float(value) for value in values]
        assert values == sorted(values, reverse=True)
        if name == "probabilities":
            close(values, [expected.probabilities[index] for index in expected.classes[:most]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("way", ["request", "response", "both"])
def test_compressed_messages(client, classify, kind, algorithm, way):
    ways = ("request", "response") if way == "both" else (way,)
    options = {f"{name}_compression": algorithm for name in ways}
    answer = client.infer(KINDS[kind]([2, 4]), **options)
    check(answer.outputs, [classify(FILES[2]), classify(FILES[4])])


def test_http_requests_side_by_side(server, classify):
    """`async_infer` of tritonclient.http, which runs greenlets."""
    client = Http(server)
    pool = client.package.InferenceServerClient(server.http, concurrency=4)
    order = [index % len(FILES) for index in range(24)]
    pending = [
        pool.async_infer(MODEL, [client.input(files(FILES[index]), "image", None)])
        for index in order
    ]
    for index, one in zip(order, pending, strict=True):
        check(client.answer(one.get_result()).outputs, [classify(FILES[index])])
    pool.close()
    client.close()
