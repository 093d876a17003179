"""Market data without I/O: messages, symbols, sequencing, the bar barrier, the session calendar."""
