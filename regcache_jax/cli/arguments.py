"""What several commands are told, as frozen dataclasses: which pictures, scheme, words, costs, and how devices share the work.

No JAX is imported before something is read, so that `--help` answers at once; Python can fill them as well as the command line.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import LabelFree
from regcache_jax.core.options import like, option
from regcache_jax.core.scheme import Scheme, Weights
from regcache_jax.studies.recipes import RECIPES

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.core.plan import RegisterPlan
    from regcache_jax.data import Dataset
    from regcache_jax.models.folder import Model
    from regcache_jax.studies.cost import Price


@dataclasses.dataclass(frozen=True)
class DataArgs:
    """Which pictures. The bundled ones take the command's own split where none is given."""

    default_split: ClassVar[str]

    dataset: str = option("emoji (bundled), folder, wds/NAME (shards), dummy, a TFDS or CLIP_benchmark name.")
    data_dir: str | None = option("Folder of pictures or shards, or where TFDS keeps its data.", None)
    split: str | None = option("Split of the dataset.", None)
    limit: int | None = option(
        "Only so many pictures: the first, of a folder evenly spread ones.", None, unit="pictures", least=1
    )
    batch_size: int = option("Pictures a step.", 32, unit="pictures", least=1)

    def open(self) -> Dataset:
        """The dataset that is named."""
        return self.other(self.split or (self.default_split if self.dataset == "emoji" else None), self.limit)

    def other(self, split: str | None, limit: int | None) -> Dataset:
        """Another split of the same dataset. What was left out of it is told."""
        from regcache_jax.cli.screen import tell
        from regcache_jax.data import open_dataset

        data = open_dataset(self.dataset, self.data_dir, split, limit)
        for note in data.notes:
            tell(note)
        return data


@dataclasses.dataclass(frozen=True)
class ReferenceData(DataArgs):
    """Pictures that are looked at and searched with."""

    default_split: ClassVar[str] = "train"

    split: str | None = like(DataArgs, "split", help="Split of the dataset; train by default.")
    limit: int | None = like(DataArgs, "limit", default=256)


@dataclasses.dataclass(frozen=True)
class InspectedData(ReferenceData):
    """Pictures whose norms are looked at: the verdict is the same on more (docs/searching.md)."""

    limit: int | None = like(DataArgs, "limit", default=128)


@dataclasses.dataclass(frozen=True)
class CalibrationData(ReferenceData):
    """Pictures that give scales."""

    limit: int | None = like(DataArgs, "limit", default=512)


@dataclasses.dataclass(frozen=True)
class TestedData(DataArgs):
    """Pictures that are measured on."""

    default_split: ClassVar[str] = "test"

    split: str | None = like(DataArgs, "split", help="Split of the dataset; test by default.")


@dataclasses.dataclass(frozen=True)
class SchemeArgs:
    """Bits, and who shares a scale."""

    scheme: str = option("Bits of weights and activations: w8a8, w6a6, w4a4, any w2..w8 with a2..a8.", "w8a8")
    activations: Literal["static", "group", "tensor", "token"] = like(Scheme, "activations")
    weights: Weights = like(Scheme, "weights")

    def read(self) -> Scheme | None:
        """The scheme; None for `float`. Raises UserError for what is none."""
        return Scheme.named(self.scheme, activations=self.activations, weights=self.weights)


@dataclasses.dataclass(frozen=True)
class SchemeOrFloat(SchemeArgs):
    """The same of a command that takes encoders as they are unless told otherwise."""

    scheme: str = like(
        SchemeArgs,
        "scheme",
        default="float",
        help="Bits of weights and activations: w8a8, w6a6, w4a4, any w2..w8 with a2..a8, or float.",
    )


@dataclasses.dataclass(frozen=True)
class LabelFreeArgs:
    """What an error is, where no labels are."""

    objective: LabelFree = option("What an error is of: the pooled feature, the patch tokens, or both.", "pooled")


@dataclasses.dataclass(frozen=True)
class ObjectiveArgs:
    """What an error is, where labels may be."""

    objective: str = option(
        "What an error is of: the pooled feature (once called features), the patch tokens, both, or top-1 (labels and a text tower).",
        "pooled",
        words=("pooled", "patches", "both", "accuracy", "features"),
        open_to="objective",
    )


@dataclasses.dataclass(frozen=True)
class WordArgs:
    """The names of the classes and the sentences around them."""

    classnames: str | None = option("JSON list of class names (or one a dataset).", None, path="any")
    templates: str | None = option("JSON list of templates with {c} (or one a dataset).", None, path="any")


@dataclasses.dataclass(frozen=True)
class ParallelArgs:
    """How devices share the work."""

    parallel: Literal["jit", "pmap"] = option("How devices share the work.", "jit")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Whether this process is one of several."""

    distributed: bool = option(
        "This process is one of several, often one a host, that share the work; the first of them writes and speaks.",
        False,
    )

    def join(self) -> None:
        """Joins the others, before any device is used. What other libraries print goes to standard error from then on."""
        if not self.distributed:
            return
        from regcache_jax.files import distributed

        own = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = os.fdopen(own, "w", buffering=1)
        distributed.initialize()


@dataclasses.dataclass(frozen=True)
class CostArgs:
    """What costs are."""

    cost: str | None = option(
        "What costs are: `model`, or a TPU (v5e:2x2, say), whose compiler is asked (extra `tpu`).", None
    )

    def price(self, default: str = "model") -> Price:
        """What gives an encoder's cost. Raises UserError for what is neither `model` nor a TPU that can be asked about."""
        from regcache_jax.studies.cost import price_of

        return price_of(self.cost or default)


@dataclasses.dataclass(frozen=True)
class JsonArgs:
    """Where what is shown is written as well."""

    json: str | None = option("Also write what is shown to FILE.", None, path="file")


def read_images(model: Model, dataset: Dataset, preprocess: Callable[[Any], np.ndarray] | None = None) -> np.ndarray:
    """All pictures of a dataset as one preprocessed array, as the model takes them or as a protocol does. It is told where they
    teach nothing."""
    from regcache_jax.cli.screen import progress, tell
    from regcache_jax.data import load_images
    from regcache_jax.data.batches import dullness

    with progress(f"reading {counted(len(dataset), 'picture')} of {dataset.name}"):
        images = load_images(dataset, preprocess or model.preprocess)
    if (dull := dullness(images)) is not None:
        tell(f"{dataset.name}: {dull}")
    return images


def read_plan(path: str | None, model: Model) -> RegisterPlan | None:
    """A plan from its file, checked to belong to the model; None without a file."""
    return None if path is None else read_plan_file(path, model)[0]


def read_plan_file(path: str, model: Model) -> tuple[RegisterPlan, dict[str, Any]]:
    """A plan from its file, checked to belong to the model, and its metadata."""
    from regcache_jax.models.plan_file import check_plan, load_plan

    plan, metadata = load_plan(path)
    check_plan(path, metadata, model.encoder)
    return plan, metadata


def recipes_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The recipes that were named, or `all` of them."""
    return tuple(RECIPES) if names == ("all",) else names


def read_texts(path: str) -> list[str]:
    """The lines of a file that hold something. Raises UserError where none does."""
    from regcache_jax.data.folders import lines
    from regcache_jax.files.bounded import read_text

    found = list(lines(read_text(path)))
    if not found:
        raise UserError(f"{path} holds no texts; give one a line")
    return found
