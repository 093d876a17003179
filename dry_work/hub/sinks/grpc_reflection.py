"""Reflection of the hub's gRPC server: descriptors of its services for tools such as grpcurl. Event-loop only.

The library serves `v1alpha`; `v1` is the same protocol under another name, which newer tools ask for first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from dry_work.proto.pool import POOL

NAMES = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")


class _Pools:
    """Our own pool of descriptors, and for the services of libraries protobuf's."""

    def __getattr__(self, name: str) -> Any:
        own, default = getattr(POOL, name), getattr(descriptor_pool.Default(), name)

        def find(*arguments: Any) -> Any:
            try:
                return own(*arguments)
            except KeyError:
                return default(*arguments)

        return find


def add_reflection(server: Any, services: Iterable[str]) -> None:
    """Let a server describe `services`, named in full."""
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=_Pools())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in NAMES:
        handlers = {"ServerReflectionInfo": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
