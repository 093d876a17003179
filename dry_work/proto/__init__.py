"""Protocol buffers of the hub: .proto files, and the Python modules generated from them."""
