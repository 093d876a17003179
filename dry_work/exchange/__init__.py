"""The simulated exchange: Alpaca's protocols on recorded or generated prices."""
