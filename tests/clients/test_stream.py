"""`ModelStreamInfer` by tritonclient.grpc and its aio form."""

import asyncio
import queue

import pytest
from tritonclient.utils import InferenceServerException

from pictures import FILES, SAMPLES
from server import MODEL, PATIENCE
from test_infer import check
from triton_clients import Grpc, GrpcAio, files

# In the middle, two that fail: the stream goes on.
ORDER = [*range(len(SAMPLES)), "model", "image", *reversed(range(len(SAMPLES)))]


def request(client, one, id):
    content = b"no image" if one == "image" else FILES[0 if one == "model" else one]
    model = "nope" if one == "model" else MODEL
    inputs = [client.input(files(content), "image", None)]
    return {"model_name": model, "inputs": inputs, "request_id": id}


def check_all(client, classify, found):
    """Checks a stream's answers, (result, error) each, by `ORDER`."""
    assert len(found) == len(ORDER)
    for index, (one, (result, error)) in enumerate(zip(ORDER, found, strict=True)):
        if isinstance(one, str):
            assert result is None
            assert isinstance(error, InferenceServerException)
            assert {"model": "nope", "image": "JPEG"}[one] in error.message()
        else:
            assert error is None
            answer = client.answer(result)
            assert answer.id == str(index)
            check(answer.outputs, [classify(FILES[one])])


def test_a_stream_answers_in_order_and_survives_errors(server, classify):
    client = Grpc(server)
    answers = queue.Queue()
    client.client.start_stream(lambda result, error: answers.put((result, error)))
    for index, one in enumerate(ORDER):
        client.client.async_stream_infer(**request(client, one, str(index)))
    found = [answers.get(timeout=PATIENCE) for _ in ORDER]
    client.client.stop_stream()
    client.close()
    assert answers.empty()
    check_all(client, classify, found)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_stream(server, classify, algorithm):
    client = Grpc(server)
    answers = queue.Queue()
    client.client.start_stream(
        lambda result, error: answers.put((result, error)), compression_algorithm=algorithm
    )
    for index, one in enumerate(ORDER):
        client.client.async_stream_infer(**request(client, one, str(index)))
    found = [answers.get(timeout=PATIENCE) for _ in ORDER]
    client.client.stop_stream()
    client.close()
    check_all(client, classify, found)


def test_an_aio_stream(server, classify):
    client = GrpcAio(server)

    async def requests():
        for index, one in enumerate(ORDER):
            yield request(client, one, str(index))

    async def run():
        return [pair async for pair in client.client.stream_infer(requests())]

    found = client.runner.run(asyncio.wait_for(run(), PATIENCE))
    client.close()
    check_all(client, classify, found)


def test_a_stream_that_takes_turns(server, classify):
    # Each request is sent once the one before it is answered: nothing waits for the end.
    client = GrpcAio(server)

    async def run():
        answered = asyncio.Queue()

        async def requests():
            for index in range(4):
                yield request(client, index, str(index))
                await answered.get()

        found = []
        async for pair in client.client.stream_infer(requests()):
            found.append(pair)
            answered.put_nowait(None)
        return found

    found = client.runner.run(asyncio.wait_for(run(), PATIENCE))
    client.close()
    for index, (result, error) in enumerate(found):
        assert error is None
        check(client.answer(result).outputs, [classify(FILES[index])])


def test_a_cancelled_stream_leaves_the_server_well(server, classify):
    client = Grpc(server)
    client.client.start_stream(lambda result, error: None)
    for index in range(32):
        client.client.async_stream_infer(**request(client, index % len(FILES), str(index)))
    client.client.stop_stream(cancel_requests=True)
    check(client.infer(files(FILES[0])).outputs, [classify(FILES[0])])
    client.close()


def test_requests_side_by_side(server, classify):
    """`async_infer`, many at a time over one connection."""
    client = Grpc(server)
    answers = queue.Queue()
    for index in range(24):
        one = request(client, index % len(FILES), str(index))
        client.client.async_infer(
            callback=lambda result, error: answers.put((result, error)), **one
        )
    found = [answers.get(timeout=PATIENCE) for _ in range(24)]
    seen = set()
    for result, error in found:
        assert error is None
        answer = client.answer(result)
        seen.add(answer.id)
        check(answer.outputs, [classify(FILES[int(answer.id) % len(FILES)])])
    assert len(seen) == 24
    client.close()
