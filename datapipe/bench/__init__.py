"""The loader benchmark: backends measured in turns, and what the figures mean."""
