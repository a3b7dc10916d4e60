"""The loaders, a backend each: how samples are decoded and augmented."""
