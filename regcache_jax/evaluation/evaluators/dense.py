"""Dense features: how near every patch is to its float self, and what a linear probe on patches says of every pixel.

A probe (`linear_probe`) is fitted to patches of the training pictures, each of the class that most of its pixels have; its logits are
spread over the picture's pixels (bilinear, as DINOv2's linear segmentation does, arXiv 2304.07193, section 7.4), and intersection
and union of every class are counted over the pixels of all pictures, in integers.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Preprocessing
from regcache_jax.data.annotations import IGNORED
from regcache_jax.data.batches import threads
from regcache_jax.data.dataset import Dataset
from regcache_jax.encoders.encoder import Encoder, encode
from regcache_jax.encoders.outputs import patch_tokens
from regcache_jax.encoders.preprocess import preprocess_map
from regcache_jax.evaluation.evaluators.linear_probe import HELD_OUT, Probe, fit_probe
from regcache_jax.evaluation.job import Found, Job, refuse_sheets
from regcache_jax.evaluation.measure import Measured, compared
from regcache_jax.evaluation.metrics import predictions


def run(job: Job) -> Found:
    """Segmentation by a linear probe on the patches of the training pictures. Features are those of single patches, predictions
    their classes. Raises UserError for pictures without a map of classes."""
    assert job.bank is not None
    refuse_sheets(job, "dense")
    spec, preparation = job.encoder.spec.image, job.encoder.spec.preprocessing
    training, rows = job.encode(patch_features, job.bank), job.encode(patch_features, job.data)
    known, truth = load_maps(job.bank, training.places, preparation), load_maps(job.data, rows.places, preparation)
    count = 1 + max(int(maps[maps != IGNORED].max(initial=0)) for maps in (known, truth))
    probe = fit_segmentation(training.features, patch_classes(known, spec.grid, spec.patch_size, count), count)
    metrics = segmentation_metrics(confusion(probe, rows.features, truth, spec.patch_size))
    patches = rows.features.reshape(-1, rows.features.shape[-1])
    found = compared(Measured(metrics, patches, predictions(probe.scores(patches))), job.reference)
    return Found(found, len(rows.places), [*training.missing, *rows.missing])


MOST_PATCHES = 40_000
"""Training patches that a probe is fitted to at most: those of every picture alike, drawn with a fixed seed."""


def patch_features(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B P D"]:
    """The patch tokens after the final norm, in float32, one for every place of the grid: deleted ones are filled in."""
    return patch_tokens(encode(encoder, images), encoder.spec.image)


def load_maps(
    dataset: Dataset, places: Sequence[int] | Int[np.ndarray, "n"], spec: Preprocessing
) -> UInt8[np.ndarray, "n S S"]:
    """The maps of classes of some pictures, each where `preprocess` puts its picture. Raises UserError for one that has none."""

    def load(place: int) -> UInt8[np.ndarray, "S S"]:
        found = dataset.segmentation(place)
        if found is None:
            raise UserError(f"{dataset[place].name} has no map of classes; --masks FOLDER says where they are")
        classes = np.asarray(found, np.uint8)
        return preprocess_map(classes[..., 0] if classes.ndim == 3 else classes, spec)

    with concurrent.futures.ThreadPoolExecutor(threads()) as pool:
        return np.stack(list(pool.map(load, map(int, places))))


def patch_classes(
    maps: UInt8[np.ndarray, "n S S"], grid: int, patch_size: int, num_classes: int
) -> Int[np.ndarray, "n P"]:
    """The class that most pixels of each patch have (ties: the lower); -1 where most are ignored."""
    side = grid * patch_size
    cut = maps[:, :side, :side].reshape(-1, grid, patch_size, grid, patch_size)
    cut = np.swapaxes(cut, 2, 3).reshape(len(maps), grid * grid, -1)
    counts = np.stack([np.sum(cut == number, axis=-1) for number in range(num_classes)], axis=-1)
    ignored = np.sum(cut == IGNORED, axis=-1)
    return np.where(ignored > counts.sum(axis=-1), -1, counts.argmax(axis=-1)).astype(np.int32)


def fit_segmentation(patches: Float[np.ndarray, "n P D"], classes: Int[np.ndarray, "n P"], num_classes: int) -> Probe:
    """The probe on training patches; its weight decay is chosen on the patches of every fifth picture.

    Raises UserError where no patch has a class."""
    rng = np.random.default_rng(0)
    counted = np.argwhere(classes >= 0)
    if not len(counted):
        raise UserError("no patch of the training pictures has a class")
    if len(counted) > MOST_PATCHES:
        counted = counted[np.sort(rng.choice(len(counted), MOST_PATCHES, replace=False))]
    picture, place = counted.T
    held_out = picture % HELD_OUT == 0
    return fit_probe(patches[picture, place], classes[picture, place], num_classes, held_out=held_out)


def confusion(
    probe: Probe,
    patches: Float[np.ndarray, "n P D"],
    maps: UInt8[np.ndarray, "n S S"],
    patch_size: int,
    rows: int = 32,
) -> Int[np.ndarray, "C K"]:
    """How many pixels of each class (first axis) are taken for each and, last, for none (K = C + 1: a logit is not a number); ignored
    pixels are left out. `rows` pictures at a time.

    Pixels beyond the last whole patch are seen by no patch and left out."""
    num_classes = probe.weights.shape[1]
    grid = round(patches.shape[1] ** 0.5)
    side = grid * patch_size
    totals = np.zeros(
        (num_classes, num_classes + 1), np.int64
    )  # a device's int32 holds the pixels of some pictures, not of all
    for first in range(0, len(patches), rows):
        part, own = patches[first : first + rows], maps[first : first + rows, :side, :side]
        logits = probe.scores(part.reshape(-1, part.shape[-1])).astype(np.float32)
        totals += np.asarray(_count_pixels(jnp.asarray(logits.reshape(len(part), grid, grid, -1)), jnp.asarray(own)))
    return totals


@jax.jit
def _count_pixels(logits: Float[Array, "B G G C"], maps: UInt8[Array, "B S S"]) -> Int[Array, "C K"]:
    num_classes = logits.shape[-1]
    spread = jax.image.resize(logits, (*maps.shape, num_classes), "linear")
    found = jnp.where(jnp.isnan(spread).any(axis=-1), num_classes, jnp.argmax(spread, axis=-1)).astype(jnp.int32)
    truth, columns = maps.astype(jnp.int32), num_classes + 1
    cell = jnp.where(truth < num_classes, truth * columns + found, num_classes * columns)
    counts = jnp.bincount(cell.reshape(-1), length=num_classes * columns + 1)
    return counts[:-1].reshape(num_classes, columns)


def segmentation_metrics(counts: Int[np.ndarray, "C K"]) -> dict[str, float]:
    """`mIoU`, over the classes that occur or are found anywhere, and `pixel_accuracy`, as fractions.

    Raises UserError where no pixel has a class."""
    if not counts.sum():
        raise UserError("no pixel has a class")
    both = np.diag(counts)
    either = counts.sum(axis=0)[: len(counts)] + counts.sum(axis=1) - both
    seen = either > 0
    return {"mIoU": float(np.mean(both[seen] / either[seen])), "pixel_accuracy": float(both.sum() / counts.sum())}
