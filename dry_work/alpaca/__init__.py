"""I/O shells on alpaca-py."""
