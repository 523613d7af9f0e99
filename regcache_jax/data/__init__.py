"""Datasets by name, and batches of one shape."""

from regcache_jax.data.batches import Batch, Missing, Share, batches, load_images
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.data.sources import open_dataset

__all__ = ["Batch", "Dataset", "Example", "Missing", "Share", "batches", "load_images", "open_dataset"]
