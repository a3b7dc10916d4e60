"""in21k: raw ImageNet-21K archives to shards, batches and pretrained networks.

The folders beside this file are its subpackages; importing `in21k` itself imports none of them.
"""

__version__ = "0.1.0"
