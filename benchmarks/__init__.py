"""Measurements of Dry Work, each beside what it is compared with in the same run."""
