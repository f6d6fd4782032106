"""A gRPC client that knows no service until it asks the server by reflection."""

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2

TIMEOUT = 60


class Unknown(Exception):
    """The server has no such symbol."""


class Reflected:
    """The services of `channel`. `version` is reflection's own: v1 or v1alpha."""

    def __init__(self, channel, version="v1"):
        self.channel = channel
        self.pool = descriptor_pool.DescriptorPool()
        self.added = set()
        # Both versions have the same messages.
        self.ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

    def query(self, **request):
        request = reflection_pb2.ServerReflectionRequest(**request)
        try:
            [answer] = list(self.ask(iter([request]), timeout=TIMEOUT))
        except grpc.RpcError as error:
            # An error may be an answer, or the stream's end.
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            raise Unknown(error.details()) from error
        if answer.HasField("error_response"):
            raise Unknown(answer.error_response.error_message)
        return answer

    def services(self):
        """The names of all services."""
        answer = self.query(list_services="")
        return [service.name for service in answer.list_services_response.service]

    def learn(self, **request):
        """Takes the files that answer a query into the pool, those they need first."""
        files = {}
        for content in self.query(**request).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(content)
            files[file.name] = file
        for name in list(files):
            self.add(name, files)

    def add(self, name, files):
        if name in self.added:
            return
        self.added.add(name)
        if name not in files:
            self.learn(file_by_filename=name)
            return
        for needed in files[name].dependency:
            self.add(needed, files)
        self.pool.Add(files[name])

    def service(self, name):
        """The descriptor of a service."""
        self.learn(file_containing_symbol=name)
        return self.pool.FindServiceByName(name)

    def symbol(self, name):
        """The descriptor of a service or a message."""
        self.learn(file_containing_symbol=name)
        for find in (self.pool.FindServiceByName, self.pool.FindMessageTypeByName):
            try:
                return find(name)
            except KeyError:
                pass
        raise Unknown(name)

    def method(self, path):
        """What calls the method `package.Service/Method`, its request class and its response class.

        What is called takes an iterator of requests and returns one of responses, however many the
        method has of each.
        """
        service, _, name = path.partition("/")
        found = self.service(service).methods_by_name.get(name)
        if found is None:
            raise Unknown(path)
        request = message_factory.GetMessageClass(found.input_type)
        response = message_factory.GetMessageClass(found.output_type)
        call = self.channel.stream_stream(
            f"/{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return call, request, response
