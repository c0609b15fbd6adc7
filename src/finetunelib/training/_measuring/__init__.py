"""Metrics, and the evaluation that updates them."""
