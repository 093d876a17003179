"""Backtests on recorded feeds."""
