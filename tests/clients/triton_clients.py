"""tritonclient's four clients behind one interface, so that one test runs with each."""

import asyncio
import base64
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from google.protobuf import json_format

from server import MODEL

OUTPUTS = ("logits", "probabilities", "class", "mask", "blocks", "flops")


@dataclass
class Answer:
    """What is in a response, whatever it came over."""

    model: str
    version: str
    id: str
    parameters: dict
    outputs: dict


def pixels(*tensors):
    """Images [3, H, W] as one tensor of a batch."""
    return np.stack(tensors)


def files(*contents):
    """Encoded images as one tensor of a batch."""
    tensor = np.empty(len(contents), object)
    tensor[:] = contents
    return tensor


class Http:
    """tritonclient.http. JSON stands for binary tensors where `binary` is false, both ways."""

    transport = "http"
    package = triton_http

    def __init__(self, server, binary=True):
        self.binary = binary
        self.client = self.open(server)

    def open(self, server):
        return self.package.InferenceServerClient(server.http)

    def close(self):
        self.client.close()

    def call(self, name, *arguments, **options):
        return getattr(self.client, name)(*arguments, **options)

    def json(self, name, *arguments, **options):
        """A call whose answer is a document."""
        return self.call(name, *arguments, **options)

    def infer(self, images, *, outputs=None, name="image", datatype=None, model=MODEL, **options):
        """Infers `images`: an array, FP32 or of bytes. `outputs` are names, or what `output` makes."""
        options = self.compressed(**options)
        request = {"inputs": [self.input(images, name, datatype)], **options}
        if (outputs := self.requested(outputs)) is not None:
            request["outputs"] = outputs
        return self.answer(self.call("infer", model, **request))

    def compressed(self, request_compression=None, response_compression=None, **options):
        options["request_compression_algorithm"] = request_compression
        options["response_compression_algorithm"] = response_compression
        return options

    def input(self, images, name, datatype):
        datatype = datatype or ("BYTES" if images.dtype == object else "FP32")
        tensor = self.package.InferInput(name, list(images.shape), datatype)
        return self.fill(tensor, images)

    def fill(self, tensor, images):
        if not self.binary and images.dtype == object:
            images = np.vectorize(base64.b64encode, otypes=[object])(images)
        return tensor.set_data_from_numpy(images, binary_data=self.binary)

    def requested(self, outputs):
        # No names are a request for everything, in binary.
        if outputs is None and not self.binary:
            outputs = OUTPUTS
        if outputs is None:
            return None
        return [self.output(output) if isinstance(output, str) else output for output in outputs]

    def output(self, name, class_count=0):
        return self.package.InferRequestedOutput(name, self.binary, class_count)

    def answer(self, result):
        response = result.get_response()
        names = [output["name"] for output in response["outputs"]]
        # Asked in binary, nothing comes as JSON, and the other way round.
        for output in response["outputs"]:
            assert ("data" not in output) == self.binary, output
        return Answer(
            response["model_name"],
            response["model_version"],
            response.get("id", ""),
            response.get("parameters", {}),
            {name: result.as_numpy(name) for name in names},
        )


class Grpc(Http):
    """tritonclient.grpc."""

    transport = "grpc"
    package = triton_grpc

    def open(self, server):
        return self.package.InferenceServerClient(server.grpc)

    def json(self, name, *arguments, **options):
        message = self.call(name, *arguments, **options)
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def compressed(self, request_compression=None, response_compression=None, **options):
        # One setting serves both ways.
        options["compression_algorithm"] = request_compression or response_compression
        return options

    def fill(self, tensor, images):
        return tensor.set_data_from_numpy(images)

    def output(self, name, class_count=0):
        return self.package.InferRequestedOutput(name, class_count)

    def answer(self, result):
        response = result.get_response()
        # as_numpy reads nothing else.
        assert len(response.raw_output_contents) == len(response.outputs)
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in response.parameters.items()
        }
        return Answer(
            response.model_name,
            response.model_version,
            response.id,
            parameters,
            {output.name: result.as_numpy(output.name) for output in response.outputs},
        )


class Waiting:
    """A client of coroutines, driven by a loop of its own."""

    def __init__(self, server, binary=True):
        self.runner = asyncio.Runner()
        super().__init__(server, binary)

    def open(self, server):
        async def opened():
            return super(Waiting, self).open(server)

        return self.runner.run(opened())

    def call(self, name, *arguments, **options):
        return self.runner.run(getattr(self.client, name)(*arguments, **options))

    def close(self):
        self.runner.run(self.client.close())
        self.runner.close()


class HttpAio(Waiting, Http):
    """tritonclient.http.aio"""

    package = triton_http_aio


class GrpcAio(Waiting, Grpc):
    """tritonclient.grpc.aio"""

    package = triton_grpc_aio


CLIENTS = {
    "http-binary": (Http, True),
    "http-json": (Http, False),
    "http-aio-binary": (HttpAio, True),
    "http-aio-json": (HttpAio, False),
    "grpc": (Grpc, True),
    "grpc-aio": (GrpcAio, True),
}
