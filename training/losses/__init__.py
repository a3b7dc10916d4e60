"""The losses, each beside the formula that it computes."""
