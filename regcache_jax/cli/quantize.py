"""`regcache quantize`."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from regcache_jax.cli.options import (
    cost_of,
    cost_option,
    data_options,
    json_option,
    read_data,
    read_images,
    read_plan,
    read_scheme,
    recipes_of,
    scheme_options,
)
from regcache_jax.cli.screen import digits, print_table, progress, say, write_json

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.core.scheme import Estimator, Softmax
    from regcache_jax.encoders.encoder import Encoder
    from regcache_jax.studies.auto import AutoConfig
    from regcache_jax.studies.grid import Entry


@click.command()
@click.argument("model", type=click.Path())
@data_options("train", 512, required=False)
@scheme_options()
@click.option("--registers", type=click.Path(dir_okay=False), help="Register plan from `regcache search`.")
@click.option("--method", default="rtn", show_default=True, help="Methods joined by +, such as smoothquant+gptq.")
@click.option("--asymmetric", is_flag=True, help="Static scales with zero points.")
@click.option(
    "--estimator",
    type=click.Choice(["absmax", "percentile", "mse", "entropy"]),
    default="absmax",
    show_default=True,
    help="How a static range is taken from what calibration saw.",
)
@click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(dir_okay=False),
    help="Take the scales from this file of `regcache calibrate`; no pictures are needed then.",
)
@click.option("--keep-float", type=click.IntRange(0), default=0, help="Leave so many most sensitive sites in float.")
@click.option("--integer-attention", is_flag=True, help="Integer q k^T and p v too.")
@click.option("--log-softmax", is_flag=True, help="Softmax in half octaves (RepQ-ViT); with --integer-attention.")
@click.option("--integer-head", is_flag=True, help="Integer attention pooling too (SigLIP).")
@click.option(
    "--texts", type=click.Path(dir_okay=False), help="Quantise the text tower too, calibrated on these lines."
)
@click.option("--auto", "choose", is_flag=True, help="Choose recipe and registers by label-free error instead.")
@click.option("--recipes", help="auto: what to try, with commas, or all; by default what is quick.")
@click.option("--no-registers", is_flag=True, help="auto: do not search for registers.")
@click.option("--static-only", is_flag=True, help="auto: no scales that are measured while running.")
@cost_option
@click.option("--max-cost", type=click.FloatRange(1), help="auto: at most so many times the cheapest recipe's cost.")
@click.option(
    "--work", type=click.Path(file_okay=False), help="auto: folder of its table; a run that was killed goes on in it."
)
@click.option("--out", required=True, type=click.Path(), help="Model folder to write; must not exist.")
@json_option
def quantize(
    model: str,
    dataset: str | None,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    scheme_name: str,
    activations: str,
    weights: str,
    registers: str | None,
    method: str,
    asymmetric: bool,
    estimator: Estimator,
    calibration_file: str | None,
    keep_float: int,
    integer_attention: bool,
    log_softmax: bool,
    integer_head: bool,
    texts: str | None,
    choose: bool,
    recipes: str | None,
    no_registers: bool,
    static_only: bool,
    cost_name: str | None,
    max_cost: float | None,
    work: str | None,
    out: str,
    json_file: str | None,
) -> None:
    """Quantise the image tower of MODEL, with or without registers.

    Weights become integers; static scales are calibrated on pictures, with the registers in place. With --auto, recipes and
    registers are tried on one half of the pictures and scored on the other, without labels; --scheme gives the bits.
    """
    from regcache_jax.core.errors import UserError
    from regcache_jax.core.scheme import most_sensitive
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.quantization.calibration import Calibration
    from regcache_jax.quantization.methods.table import methods_of
    from regcache_jax.quantization.quantize import quantize as run_quantize
    from regcache_jax.registers.sensitivity import sensitivity
    from regcache_jax.studies.auto import AutoConfig

    if dataset is None and calibration_file is None:
        raise click.UsageError("Missing option '--dataset' (or '--calibration').")
    if dataset is None and keep_float:
        raise click.UsageError("--keep-float measures on pictures; give --dataset as well")
    scheme = read_scheme(scheme_name, activations, weights)
    if scheme is None:
        raise UserError("scheme float quantises nothing; give w8a8, w6a6, w4a4 or the like")
    if choose and work is None:
        raise click.UsageError("--auto needs --work DIR, where its table is kept")
    if not choose and (no_registers or static_only or (recipes, cost_name, max_cost, work) != (None,) * 4):
        raise click.UsageError("--recipes, --no-registers, --static-only, --cost, --max-cost and --work go with --auto")
    also = (("head",) if integer_head else ()) + (("text",) if texts is not None else ())
    products = ("qk", "pv") if integer_attention else ()
    if log_softmax and not integer_attention:
        raise click.UsageError("--log-softmax goes with --integer-attention")
    softmax: Softmax = "log-sqrt2" if log_softmax else "uniform"
    asked = dataclasses.replace(
        scheme,
        method=method,
        symmetric=not asymmetric,
        estimator=estimator,
        products=products,
        softmax=softmax,
        also=also,
    )
    if choose and (registers is not None or calibration_file is not None or keep_float or asked != scheme):
        raise click.UsageError("--auto chooses the recipe and registers by itself; --scheme gives the bits")
    scheme = asked
    costs = cost_of(cost_name or ("v5e:2x2" if importlib.util.find_spec("libtpu") else "model"))
    methods_of(method)
    refuse_existing(out)
    loaded = checkpoints.load(model)
    plan = read_plan(registers, loaded)
    kept = None if calibration_file is None else Calibration.load(calibration_file)
    if kept is not None:
        kept.check(loaded.encoder if plan is None else loaded.encoder.with_plan(plan))
    data = None if dataset is None else read_data(dataset, data_dir, split, limit, "train")
    images = None if data is None else read_images(loaded, data)
    chosen = None
    if choose:
        assert work is not None and images is not None
        config = AutoConfig(
            (scheme.name,), recipes_of(recipes), max_cost=max_cost, static_only=static_only, registers=not no_registers
        )
        encoder, chosen = _auto(loaded.encoder, images, work, config, costs)
        plan, scheme = encoder.plan, encoder.scheme
        assert scheme is not None
    else:
        with progress(f"quantising to {scheme.name}"):
            if keep_float and images is not None:
                errors = sensitivity(loaded.encoder, images[:64], scheme)
                scheme = scheme.keep_in_float(most_sensitive(errors, keep_float))
            ids = None if texts is None else loaded.tokenize(read_texts(texts))
            encoder = run_quantize(loaded.encoder, images, scheme, plan, kept, texts=ids)
    pictures = None if data is None else {"dataset": data.name, "split": data.split, "images": len(data)}
    made_from = {
        "source": str(model),
        "calibration": calibration_file or pictures,
        "registers": registers,
        "auto": chosen,
    }
    tokenizers = [loaded.folder / name for name in checkpoints.tokenizer_files(loaded.folder)]
    checkpoints.save(out, encoder, metadata=made_from, tokenizer_files=tokenizers)
    say(
        f"{model} -> {out}: {scheme.name}, {scheme.method}, {scheme.activations} activations, {'with' if plan else 'no'} registers"
    )
    write_json(json_file, {**made_from, "scheme": scheme.to_json()})


def _auto(
    encoder: Encoder, images: np.ndarray, work: str, config: AutoConfig, costs: tuple[Callable[[Encoder], float], str]
) -> tuple[Encoder, str]:
    """The encoder that `auto` chooses and the name of its entry; prints the table."""
    from regcache_jax.studies.auto import auto

    with progress("trying recipes") as update:

        def report(number: int, total: int, entry: Entry) -> None:
            update(1, total=total, note=entry.name)

        result = auto(encoder, images, work, config, cost_of=costs[0], cost_unit=costs[1], progress=report)
    rows = [(e.name, digits(e.error), digits(e.cost), e.fault or e.note) for e in result.entries]
    print_table(f"Recipes, the best first; cost: {costs[1]}", ("recipe", "error", "cost", "note"), rows)
    say(f"chosen: {result.chosen.name}")
    return result.encoder, result.chosen.name


def read_texts(path: str) -> list[str]:
    """The lines of a file that hold something. Raises UserError where none does."""
    from regcache_jax.core.errors import UserError

    with open(path) as file:
        lines = [line.strip() for line in file if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no texts; give one a line")
    return lines
