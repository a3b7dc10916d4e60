"""Measurements: a script each, and dated notes of what they gave on which hardware."""
