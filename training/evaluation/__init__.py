"""Validation: predictions collected over a split, and the metrics of them."""
