"""Datasets by name, and batches of one shape."""

from regcache_jax.data.batches import Batch, Missing, Share, batches, load_images
from regcache_jax.data.sources import Dataset, Example, open_dataset

__all__ = ["Batch", "Dataset", "Example", "Missing", "Share", "batches", "load_images", "open_dataset"]
