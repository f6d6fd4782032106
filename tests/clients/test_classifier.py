"""`blockdrop.v1.Classifier` over gRPC, by a client that learns the service from the server."""

import queue

import grpc
import pytest

from pictures import BLOCKS, CLASSES, FILES
from reflected import Reflected
from server import MODEL, PATIENCE
from test_infer import close

SERVICE = "blockdrop.v1.Classifier"


class Classifier:
    def __init__(self, server):
        self.channel = grpc.insecure_channel(server.grpc)
        reflected = Reflected(self.channel)
        self._classify, self.request, _ = reflected.method(f"{SERVICE}/Classify")
        self.stream, _, _ = reflected.method(f"{SERVICE}/ClassifyStream")

    def classify(self, timeout=PATIENCE, **fields):
        request = self.request(**fields)
        [answer] = self._classify(iter([request]), timeout=timeout)
        return answer


@pytest.fixture
def classifier(server):
    classifier = Classifier(server)
    yield classifier
    classifier.channel.close()


def check(answer, expected, top_k=5):
    """Checks an answer by what `/v1/classify` says of the same image."""
    assert (answer.model, answer.version) == (MODEL, "1")
    assert answer.request_id
    # `class` is a word of Python's.
    classes = [getattr(entry, "class") for entry in answer.predictions]
    assert classes == expected.classes[:top_k]
    assert [entry.label for entry in answer.predictions] == expected.labels[:top_k]
    probabilities = [entry.probability for entry in answer.predictions]
    close(probabilities, [expected.probabilities[index] for index in classes])
    path = answer.path
    assert (path.policy, path.mask) == (expected.policy, expected.mask)
    assert (path.blocks_kept, path.blocks_total) == (expected.kept, BLOCKS)
    flops = {name: getattr(answer.flops, name) for name in ("policy", "executed", "full", "ratio")}
    assert flops == expected.flops
    timing = answer.timing
    stages = [timing.decode_ms, timing.preprocess_ms, timing.queue_ms, timing.policy_ms]
    assert sum([*stages, timing.backbone_ms]) == pytest.approx(timing.total_ms, abs=0.01)


@pytest.mark.parametrize("index", range(len(FILES)))
def test_one_image(classifier, classify, index):
    check(classifier.classify(image=FILES[index]), classify(FILES[index]))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": MODEL},
        {"model": MODEL, "version": "1"},
        {"path": "full"},
        {"path": "mask:101101101101101"},
        {"path": "first_k:0"},
        {"path": "random_k:6:11"},
        {"threshold": 0.9},
        {"threshold": 0.0},
        {"max_blocks": 3},
        {"max_blocks": 0},
        {"max_flops": 60_000_000},
    ],
    ids=str,
)
def test_fields_are_the_parameters_of_v1_classify(classifier, classify, fields):
    check(classifier.classify(image=FILES[1], **fields), classify(FILES[1], **fields))


@pytest.mark.parametrize("top_k", [1, 3, CLASSES, 1000])
def test_top_k(classifier, classify, top_k):
    check(classifier.classify(image=FILES[2], top_k=top_k), classify(FILES[2]), top_k)


def test_the_requests_id_comes_back(classifier):
    assert classifier.classify(image=FILES[0], request_id="mine").request_id == "mine"


ERRORS = {
    "no image": ({}, "INVALID_ARGUMENT", "empty_body", "image"),
    "not an image": ({"image": b"text"}, "INVALID_ARGUMENT", "unsupported_image_type", "JPEG"),
    "a damaged image": ({"image": FILES[0][:99]}, "INVALID_ARGUMENT", "invalid_image", "PNG"),
    "unknown model": ({"image": FILES[0], "model": "nope"}, "NOT_FOUND", "unknown_model", "nope"),
    "unknown version": ({"image": FILES[0], "version": "7"}, "NOT_FOUND", "unknown_model", "7"),
    "path": ({"image": FILES[0], "path": "half"}, "INVALID_ARGUMENT", "invalid_parameter", "half"),
    "top_k": ({"image": FILES[0], "top_k": 0}, "INVALID_ARGUMENT", "invalid_parameter", "top_k"),
    "threshold": (
        {"image": FILES[0], "threshold": -0.5},
        "INVALID_ARGUMENT",
        "invalid_parameter",
        "threshold",
    ),
    "no number": (
        {"image": FILES[0], "threshold": float("nan")},
        "INVALID_ARGUMENT",
        "invalid_parameter",
        "threshold",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_has_a_status_and_a_sentence(classifier, case):
    fields, status, _, word = ERRORS[case]
    with pytest.raises(grpc.RpcError) as raised:
        classifier.classify(**fields)
    assert raised.value.code() == grpc.StatusCode[status], raised.value.details()
    assert word in raised.value.details()


def test_a_stream_answers_in_order_and_survives_errors(classifier, classify):
    sent = []
    for index, case in enumerate([None, *ERRORS, None]):
        fields = ERRORS[case][0] if case else {"image": FILES[index % len(FILES)]}
        sent.append((case, fields | {"request_id": f"r{index}"}))
    requests = (classifier.request(**fields) for _, fields in sent)
    answers = list(classifier.stream(requests, timeout=PATIENCE))
    assert len(answers) == len(sent)
    for (case, fields), answer in zip(sent, answers, strict=True):
        if case is None:
            assert answer.WhichOneof("result") == "response"
            assert answer.response.request_id == fields["request_id"]
            check(answer.response, classify(fields["image"]))
        else:
            _, _, code, word = ERRORS[case]
            assert answer.WhichOneof("result") == "error"
            assert answer.error.request_id == fields["request_id"]
            assert answer.error.code == code
            assert word in answer.error.message


def test_a_stream_answers_each_request_before_its_end(classifier, classify):
    waiting = queue.Queue()
    answers = classifier.stream(iter(waiting.get, None), timeout=PATIENCE)
    for index in (0, 3, 1):
        waiting.put(classifier.request(image=FILES[index]))
        check(next(answers).response, classify(FILES[index]))
    waiting.put(None)
    assert list(answers) == []


def test_a_client_that_leaves_its_stream_harms_nobody(classifier, classify):
    requests = iter([classifier.request(image=FILES[0])] * 64)
    answers = classifier.stream(requests, timeout=PATIENCE)
    next(answers)
    answers.cancel()
    check(classifier.classify(image=FILES[0]), classify(FILES[0]))
