"""The loader benchmark: backends measured in alternating trials, and a summary of the figures."""
