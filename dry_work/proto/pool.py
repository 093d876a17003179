"""A descriptor pool of our own, so that a program may have other stubs of the same packages beside ours.

In protobuf's default pool a name exists once: a strategy that brings stubs generated from its own copy of a .proto file
could not be imported together with the hub's modules, or the other way round.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool, timestamp_pb2

POOL = descriptor_pool.DescriptorPool()
POOL.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
