"""The deploy service: from a zip of sources to a running pod by one HTTP call.

Stands alone: it imports neither `dry_work` nor Backtrader, so that it can be staged as a Cloud Function.
"""
