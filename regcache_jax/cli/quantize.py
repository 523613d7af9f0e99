"""`regcache quantize`."""

from __future__ import annotations

import click

from regcache_jax.cli.options import (
    data_options,
    json_option,
    read_data,
    read_images,
    read_plan,
    read_scheme,
    scheme_options,
)
from regcache_jax.cli.screen import progress, say, write_json


@click.command()
@click.argument("model", type=click.Path())
@data_options("train", 512)
@scheme_options()
@click.option("--registers", type=click.Path(dir_okay=False), help="Register plan from `regcache search`.")
@click.option("--out", required=True, type=click.Path(), help="Model folder to write; must not exist.")
@json_option
def quantize(
    model: str,
    dataset: str,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    scheme_name: str,
    activations: str,
    weights: str,
    registers: str | None,
    out: str,
    json_file: str | None,
) -> None:
    """Quantise the image tower of MODEL, with or without registers.

    Weights become integers; static scales are calibrated on pictures, with the registers in place.
    """
    from etils import epath

    from regcache_jax import checkpoints
    from regcache_jax.errors import UserError
    from regcache_jax.quantization.quantize import quantize as run_quantize

    scheme = read_scheme(scheme_name, activations, weights)
    if scheme is None:
        raise UserError("scheme float quantises nothing; give w8a8, w6a6, w4a4 or the like")
    if epath.Path(out).exists():
        raise UserError(f"{out} exists already; choose another folder or remove it first")
    loaded = checkpoints.load(model)
    plan = read_plan(registers, loaded)
    data = read_data(dataset, data_dir, split, limit, "train")
    images = read_images(loaded, data)
    with progress(f"quantising to {scheme.name}"):
        encoder = run_quantize(loaded.encoder, images, scheme, plan)
    made_from = {
        "source": str(model),
        "calibration": {"dataset": data.name, "split": data.split, "images": len(data)},
        "registers": registers,
    }
    tokenizers = [loaded.folder / name for name in checkpoints.tokenizer_files(loaded.folder)]
    checkpoints.save(out, encoder, metadata=made_from, tokenizer_files=tokenizers)
    say(f"{model} -> {out}: {scheme.name}, {scheme.activations} activations, {'with' if plan else 'no'} registers")
    write_json(json_file, {**made_from, "scheme": scheme.to_json()})
