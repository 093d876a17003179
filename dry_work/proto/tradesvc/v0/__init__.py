"""Messages of `tradesvc.v0`."""

from google.protobuf.message import DecodeError

__all__ = ["DecodeError"]
