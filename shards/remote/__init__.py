"""Shards behind a URL: an object store, a bounded cache, and downloads ahead of use."""
