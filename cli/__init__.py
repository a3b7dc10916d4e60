"""One thin module per command; `main` strings them together."""
