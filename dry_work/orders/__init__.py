"""Orders without I/O: their values, life cycle and rules."""
