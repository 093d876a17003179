"""Protocol buffers of the hub's gRPC interface."""
