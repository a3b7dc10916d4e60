"""Which classes and images are kept, and the semantic tree over them."""
