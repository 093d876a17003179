"""Servers that run inside the process, so that nothing has to be installed."""
