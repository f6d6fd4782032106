"""The parameters of a request, by tritonclient's four clients, as `/v1/classify` takes them."""

import pytest

from pictures import CLASSES, FILES
from test_infer import check, check_summary, close
from triton_clients import files


@pytest.mark.parametrize(
    "parameters",
    [
        {"path": "policy"},
        {"path": "full"},
        {"path": "mask:101101101101101"},
        {"path": "first_k:7"},
        {"path": "random_k:6:11"},
        {"path": "distribute_k:5"},
        {"threshold": 0.9},
        {"threshold": "0.9"},
        {"threshold": 1},
        {"max_blocks": 3},
        {"max_blocks": "3"},
        {"max_flops": 60_000_000},
        {"path": "policy", "threshold": 0.25, "max_blocks": 6, "max_flops": 100_000_000},
    ],
    ids=str,
)
def test_parameters_choose_the_blocks(client, classify, parameters):
    expected = classify.batch(FILES[0], FILES[3], **parameters)
    answer = client.infer(files(FILES[0], FILES[3]), parameters=parameters)
    check(answer.outputs, expected)
    check_summary(client.infer(files(FILES[0]), parameters=parameters), expected[0])


@pytest.mark.parametrize("top_k", [1, 3, "3", 1000])
def test_top_k_orders_classes(client, classify, top_k):
    answer = client.infer(files(FILES[0], FILES[3]), parameters={"top_k": top_k})
    most = min(int(top_k), CLASSES)
    classes, probabilities = answer.outputs["class"], answer.outputs["probabilities"]
    assert classes.shape == probabilities.shape == (2, most)
    for row, index in enumerate((0, 3)):
        expected = classify(FILES[index])
        assert list(classes[row]) == expected.classes[:most]
        ordered = [expected.probabilities[index] for index in expected.classes[:most]]
        close(probabilities[row], ordered)
    # The rest is as without it.
    rest = {name: answer.outputs[name] for name in ("logits", "mask", "blocks", "flops")}
    check(rest, [classify(FILES[0]), classify(FILES[3])])


def test_a_timeout_that_is_long_enough_changes_nothing(client, classify):
    check(client.infer(files(FILES[0]), timeout=9_000_000).outputs, [classify(FILES[0])])


def test_what_the_protocol_reserves_is_ignored(client, classify):
    answer = client.infer(
        files(FILES[0]), priority=3, sequence_id=7, sequence_start=True, sequence_end=True
    )
    check(answer.outputs, [classify(FILES[0])])
