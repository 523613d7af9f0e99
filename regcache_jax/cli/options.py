"""Options that several commands share: which data, which scheme, which plan."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.core.plan import RegisterPlan
    from regcache_jax.core.scheme import Scheme
    from regcache_jax.data import Dataset
    from regcache_jax.models.folder import Model

Command = Callable[..., Any]


def stacked(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed by `--help` in the order given."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def data_options(split: str, limit: int | None, required: bool = True) -> Callable[[Command], Command]:
    """`--dataset` and its companions, with a command's own defaults."""
    return stacked(
        click.option(
            "--dataset",
            required=required,
            help="emoji (bundled), folder, wds/NAME (shards), dummy, a TFDS or CLIP_benchmark name.",
        ),
        click.option("--data-dir", help="Folder of pictures or shards, or where TFDS keeps its data."),
        click.option("--split", help=f"Split of the dataset; {split} by default."),
        click.option(
            "--limit",
            type=click.IntRange(1),
            default=limit,
            show_default=limit is not None,
            help="Only so many pictures: the first, of a folder evenly spread ones.",
        ),
        click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pictures a step."),
    )


def scheme_options(default: str = "w8a8") -> Callable[[Command], Command]:
    """`--scheme` and who shares a scale."""
    return stacked(
        click.option(
            "--scheme",
            "scheme_name",
            default=default,
            show_default=True,
            help="Bits of weights and activations: w8a8, w6a6, w4a4, any w2..w8 with a2..a8"
            + (", or float." if default == "float" else "."),
        ),
        click.option(
            "--activations",
            type=click.Choice(["static", "group", "tensor", "token"]),
            default="static",
            show_default=True,
            help="Who shares an activation's scale.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["channel", "tensor"]),
            default="channel",
            show_default=True,
            help="Who shares a weight's scale.",
        ),
    )


def _join(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from regcache_jax.files import distributed

    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", buffering=1)
    distributed.initialize()


distributed_option = click.option(
    "--distributed",
    is_flag=True,
    expose_value=False,
    callback=_join,
    help="This process is one of several, often one a host, that share the work; the first of them writes and speaks.",
)

parallel_option = click.option(
    "--parallel",
    type=click.Choice(["jit", "pmap"]),
    default="jit",
    show_default=True,
    help="How devices share the work.",
)


class MicroBatch(click.ParamType):
    """A number of rows, or `auto`."""

    name = "rows|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word."""
        return value if value == "auto" else click.IntRange(1).convert(value, param, ctx)


def loop_options() -> Callable[[Command], Command]:
    """How an evaluation's loop works: devices, processes, workers, and what is kept when it is killed."""
    return stacked(
        parallel_option,
        click.option(
            "--micro-batch",
            type=MicroBatch(),
            default="auto",
            show_default=True,
            help="Pictures a device works on at a time; auto: what is cheapest by a TPU's compiler, what fits a CPU's cache.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Processes that decode pictures; 0: threads, one a core.",
        ),
        click.option(
            "--allow-missing",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="So many pictures may be unreadable; they are listed and left out.",
        ),
        click.option(
            "--workdir",
            type=click.Path(),
            help="Folder (or gs://) that keeps what is done, so that an evaluation that was killed goes on.",
        ),
        click.option(
            "--keep-every",
            type=click.IntRange(1),
            default=1024,
            show_default=True,
            help="With --workdir: pictures, about, between two files.",
        ),
        distributed_option,
    )


json_option = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False), help="Also write what is shown to FILE."
)


def word_options() -> Callable[[Command], Command]:
    """The names of the classes and the sentences around them."""
    return stacked(
        click.option("--classnames", type=click.Path(), help="JSON list of class names (or one a dataset)."),
        click.option("--templates", type=click.Path(), help="JSON list of templates with {c} (or one a dataset)."),
    )


def prompt_options() -> Callable[[Command], Command]:
    """Whose words and which protocol a zero-shot evaluation takes."""
    return stacked(
        click.option(
            "--protocol",
            "protocol_name",
            type=click.Choice(["open_clip", "big_vision"]),
            default="open_clip",
            show_default=True,
            help="Whose cleaning of words and crop of pictures.",
        ),
        word_options(),
        click.option("--dump-classnames", is_flag=True, help="Also write the class names with the results."),
        click.option("--dump-templates", is_flag=True, help="Also write the templates with the results."),
    )


def read_scheme(name: str, activations: str, weights: str) -> Scheme | None:
    """The scheme of a command; None for `float`."""
    from regcache_jax.core.scheme import Scheme

    return Scheme.named(name, activations=activations, weights=weights)


def read_data(dataset: str, data_dir: str | None, split: str | None, limit: int | None, default_split: str) -> Dataset:
    """The dataset of a command. The bundled pictures take the command's own default split."""
    from regcache_jax.data import open_dataset

    return open_dataset(dataset, data_dir, split or (default_split if dataset == "emoji" else None), limit)


def read_images(model: Model, dataset: Dataset, preprocess: Callable[[Any], np.ndarray] | None = None) -> np.ndarray:
    """All pictures of a dataset as one preprocessed array, as the model takes them or as a protocol does."""
    from regcache_jax.cli.screen import progress
    from regcache_jax.data import load_images

    with progress(f"reading {len(dataset)} pictures of {dataset.name}"):
        return load_images(dataset, preprocess or model.preprocess)


def read_plan(path: str | None, model: Model) -> RegisterPlan | None:
    """A plan from its file, checked to belong to the model; None without a file."""
    if path is None:
        return None
    from regcache_jax.models.plan_file import check_plan, load_plan

    plan, metadata = load_plan(path)
    check_plan(path, metadata, model.encoder)
    return plan


cost_option = click.option(
    "--cost",
    "cost_name",
    help="What costs are: `model`, or a TPU (v5e:2x2, say), whose compiler is asked (extra `tpu`).",
)


def cost_of(name: str) -> tuple[Callable[[Any], float], str]:
    """What gives an encoder's cost, and its unit. Raises UserError for what is neither `model` nor a TPU that can be asked about."""
    if name == "model":
        from regcache_jax.studies.cost import cost
        from regcache_jax.studies.grid import COST_UNIT

        return cost, COST_UNIT
    from regcache_jax.tpu.ask import check_topology, encoder_cycles

    check_topology(name)
    return functools.partial(encoder_cycles, topology=name), f"{name} cycles an image, by the TPU compiler"


def recipes_of(text: str | None) -> tuple[str, ...]:
    """The recipes that were named, `all` of them, or (None) those that are quick."""
    from regcache_jax.studies.recipes import QUICK, RECIPES

    if text is None:
        return QUICK
    return tuple(RECIPES) if text == "all" else tuple(part for part in text.replace(" ", "").split(",") if part)
