"""The live engine and the runner around it."""
