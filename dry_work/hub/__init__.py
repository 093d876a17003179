"""The hub: one upstream connection for any number of programs."""
