"""What the hub receives from, one module per protocol."""
