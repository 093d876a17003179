"""Backtrader feeds and what fills them."""
