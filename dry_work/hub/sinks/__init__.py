"""Where the hub sends what it receives, one module per transport."""
