"""Packages `tradesvc`."""
