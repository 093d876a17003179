"""Packages `stream`."""
