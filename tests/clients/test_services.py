"""The gRPC listener's other services: health, reflection, and what it does not serve."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pictures import FILES
from reflected import Reflected, Unknown
from server import MODEL, PATIENCE

OIP = "inference.GRPCInferenceService"
SERVICES = {OIP, "blockdrop.v1.Classifier", "grpc.health.v1.Health"}


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.mark.parametrize("service", ["", OIP, "blockdrop.v1.Classifier"])
def test_health_is_serving(channel, service):
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health.Check(request, timeout=PATIENCE).status == serving
    watch = health.Watch(request, timeout=PATIENCE)
    assert next(watch).status == serving
    watch.cancel()


def test_the_health_of_an_unknown_service_is_not_found(channel):
    health = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=PATIENCE)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_the_services(channel, version):
    reflected = Reflected(channel, version)
    assert set(reflected.services()) >= SERVICES
    methods = {method.name for method in reflected.service("blockdrop.v1.Classifier").methods}
    assert methods == {"Classify", "ClassifyStream"}
    with pytest.raises(Unknown):
        reflected.service("blockdrop.v1.Nope")


def test_reflection_suits_the_usual_client(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) >= SERVICES
    service = DescriptorPool(database).FindServiceByName(OIP)
    assert {"ModelInfer", "ModelStreamInfer"} <= {method.name for method in service.methods}


def same(ours, theirs, seen):
    """Checks that a message is on the wire what tritonclient's is, where both have a field."""
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    numbers = {field.number: field for field in theirs.fields}
    names = {field.name: field for field in theirs.fields}
    for field in ours.fields:
        assert field.name in names and field.number in numbers, field.full_name
        other = numbers[field.number]
        kinds = [(one.name, one.type, one.is_repeated) for one in (field, other)]
        assert kinds[0] == kinds[1], field.full_name
        if field.message_type is not None:
            same(field.message_type, other.message_type, seen)


def test_the_inference_protocol_is_tritons_on_the_wire(channel):
    ours = Reflected(channel).service(OIP)
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    seen = set()
    for method in ours.methods:
        other = theirs[method.name]
        streams = [(one.client_streaming, one.server_streaming) for one in (method, other)]
        assert streams[0] == streams[1], method.full_name
        same(method.input_type, other.input_type, seen)
        same(method.output_type, other.output_type, seen)


def infer_request(**more):
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="image", datatype="BYTES", shape=[1]
    )
    return service_pb2.ModelInferRequest(model_name=MODEL, inputs=[tensor], **more)


def test_typed_contents_are_taken_in_place_of_raw_ones(channel, classify):
    request = infer_request()
    request.inputs[0].contents.bytes_contents.append(FILES[0])
    answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
        request, timeout=PATIENCE
    )
    assert answer.parameters["mask"].string_param == classify(FILES[0]).mask


def test_both_kinds_of_contents_are_refused(channel):
    length = len(FILES[0]).to_bytes(4, "little")
    request = infer_request(raw_input_contents=[length + FILES[0]])
    request.inputs[0].contents.bytes_contents.append(FILES[0])
    with pytest.raises(grpc.RpcError) as raised:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in raised.value.details()


@pytest.mark.parametrize("name", ["CudaSharedMemoryStatus", "TraceSetting", "LogSettings"])
def test_what_is_not_served_is_unimplemented(channel, name):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    request = request.methods_by_name[name].input_type._concrete_class()
    with pytest.raises(grpc.RpcError) as raised:
        getattr(stub, name)(request, timeout=PATIENCE)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
