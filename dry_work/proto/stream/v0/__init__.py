"""Messages and service of `stream.v0`."""
