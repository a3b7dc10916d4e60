"""The backends: loaders that decode and augment samples in different ways."""
