"""What a task is given and what it gives: the one signature of the evaluators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from regcache_jax.core.errors import UserError
from regcache_jax.data.dataset import Dataset
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.evaluation.measure import Measured
from regcache_jax.evaluation.protocol import Prompts
from regcache_jax.evaluation.rows import Rows
from regcache_jax.files.store import Cache
from regcache_jax.models.folder import Model

Encode = Callable[[Callable[[Encoder, Any], Any], Dataset], Rows]
"""Runs a dataset through one encoder: `rows.encode_dataset` with all but these two given."""


class Options(NamedTuple):
    """What the tasks can be told: of k-NN how many vote and how sharply, what a linear probe is fitted to, the k of recall@k."""

    neighbours: int = 20
    temperature: float = 0.07
    features: str = "pooled"
    recall_at: tuple[int, ...] = (1, 5, 10)


class Job(NamedTuple):
    """One encoder on one dataset. `model` reads texts; `encode` runs `encoder`, which may be the model's own or made of it. `bank` are
    the training pictures, `prompts` the words of zero-shot classification; `cache` keeps features of texts; `reference` is what the float
    encoder gave on the same pictures."""

    model: Model
    encoder: Encoder
    encode: Encode
    data: Dataset
    bank: Dataset | None = None
    prompts: Prompts | None = None
    options: Options = Options()
    cache: Cache | None = None
    reference: Measured | None = None


def refuse_sheets(job: Job, task: str) -> None:
    """Raises UserError for an encoder of pictures of any shape, whose patches have no grid in common."""
    if job.encoder.spec.image.max_patches is not None:
        raise UserError(
            f"{job.encoder.spec.name} takes pictures of any shape (NaFlex); --task {task} needs the same places in all pictures"
        )


class Found(NamedTuple):
    """What a task gives: what was measured, on how many pictures, what is wrong with those that could not be read, and what else the
    user should know, a line each; `more` stands beside the description of the encoder in the results."""

    measured: Measured
    examples: int
    missing: list[str]
    notes: list[str] = []  # noqa: RUF012  never changed
    more: dict[str, Any] = {}  # noqa: RUF012  never changed


class Task(NamedTuple):
    """A task: its `run`, and whether it needs training pictures (`bank`) and words (`prompts`)."""

    run: Callable[[Job], Found]
    trained: bool = False
    worded: bool = False
