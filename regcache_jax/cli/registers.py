"""`regcache inspect` and `regcache search`."""

from __future__ import annotations

from typing import Any

import click

from regcache_jax.cli.options import data_options, json_option, read_data, read_images, read_scheme, scheme_options
from regcache_jax.cli.screen import print_table, progress, say, write_json


@click.command()
@click.argument("model", type=click.Path())
@data_options("train", 256)
@click.option("--scheme", "scheme_name", default="w8a8", show_default=True, help="Scheme for the sensitivity.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Also draw the norms by block (SVG).")
@json_option
def inspect(
    model: str,
    dataset: str,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    scheme_name: str,
    picture: str | None,
    json_file: str | None,
) -> None:
    """Show where the outliers of MODEL are, and what would help."""
    from regcache_jax import checkpoints
    from regcache_jax.errors import UserError
    from regcache_jax.quantization.scheme import SITES
    from regcache_jax.registers import inspect as inspection
    from regcache_jax.registers.sensitivity import sensitivity
    from regcache_jax.registers.verdict import judge

    scheme = read_scheme(scheme_name, "static", "channel")
    if scheme is None:
        raise UserError("sensitivity needs a quantised scheme, such as w8a8")
    loaded = checkpoints.load(model)
    images = read_images(loaded, read_data(dataset, data_dir, split, limit, "train"))
    with progress("norms by block and token"):
        profile = inspection.inspect(loaded.encoder, images, batch_size=batch_size)
    with progress("sensitivity by block and site"):
        errors = sensitivity(loaded.encoder, images[:64], scheme)
    verdict = judge(profile, errors)
    patch = inspection.GROUPS.index("patch")
    columns = (
        "block",
        "input max",
        "input median",
        "fc2 max",
        "fc2 median",
        "sinks/image",
        *(f"error {site}" for site in SITES),
    )
    fc2 = inspection.PLACES.index("fc2")
    rows = [
        (
            block,
            *(float(table[place, block, patch]) for place in (0, fc2) for table in (profile.maximum, profile.median)),
            float(profile.sinks_per_image[block]),
            *(f"{error:.2e}" for error in errors[block]),
        )
        for block in range(len(errors))
    ]
    print_table(f"l-inf norms of patches, and the features' error with one site at {scheme.name}", columns, rows)
    for finding in verdict.findings:
        say(finding.sentence())
    block, site = verdict.most_sensitive or (verdict.sensitive_block, "fc2")
    say(f"sensitive block: {verdict.sensitive_block} (sinks begin); largest error of one site: block {block}, {site}")
    if picture is not None:
        from regcache_jax.report.plots import norms_by_block

        with open(picture, "w") as file:
            file.write(norms_by_block({"no registers": profile}))
    write_json(json_file, {"profile": profile.to_json(), "sensitivity": errors.tolist(), "verdict": verdict.to_json()})


@click.command()
@click.argument("model", type=click.Path())
@data_options("train", 256)
@scheme_options()
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Register plan to write (.safetensors).")
@click.option("--table", type=click.Path(dir_okay=False), help="Trial table (JSONL); a killed search goes on from it.")
@click.option("--align", type=click.IntRange(1), help="Delete counts that leave whole tiles of so many rows (TPU: 8).")
@click.option("--max-trials", type=click.IntRange(1), help="Stop after so many trials with the best plan so far.")
@click.option("--max-minutes", type=float, help="Stop after so many minutes with the best plan so far.")
@json_option
def search(
    model: str,
    dataset: str,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    scheme_name: str,
    activations: str,
    weights: str,
    out: str,
    table: str | None,
    align: int | None,
    max_trials: int | None,
    max_minutes: float | None,
    json_file: str | None,
) -> None:
    """Find the registers of MODEL for a scheme, without labels.

    The error between float and quantised features on reference pictures decides; the answer may be that no plan helps.
    """
    from etils import epath

    from regcache_jax import checkpoints
    from regcache_jax.errors import UserError
    from regcache_jax.registers.plan_file import encoder_hash, save_plan
    from regcache_jax.registers.search import search as run_search
    from regcache_jax.registers.space import SearchConfig

    scheme = read_scheme(scheme_name, activations, weights)
    if scheme is None:
        raise UserError("a float encoder needs no registers; give a quantised scheme, such as w8a8")
    if epath.Path(out).exists():
        raise UserError(f"{out} exists already; choose another name or remove it first")
    loaded = checkpoints.load(model)
    data = read_data(dataset, data_dir, split, limit, "train")
    images = read_images(loaded, data)
    config = SearchConfig(chunk=batch_size, align=align, max_trials=max_trials, max_minutes=max_minutes)
    with progress("searching") as update:

        def tell(done: int, planned: int, best: float) -> None:
            update(1, total=planned, note=f"best error {best:.3g}")

        result = run_search(loaded.encoder, images, scheme, config, table=table, progress=tell)
    metadata: dict[str, Any] = {
        "encoder": loaded.encoder.spec.name,
        "encoder_hash": encoder_hash(loaded.encoder),
        "reference": {"dataset": data.name, "split": data.split, "images": len(data)},
        "scheme": scheme.to_json(),
        "objective": config.objective,
        **result.to_json(),
    }
    save_plan(out, result.plan, metadata)
    numbers = result.to_json()["numbers"]
    print_table("Register plan", ("what", "value"), list(numbers.items()))
    say(result.sentence())
    say(f"{len(result.trials)} trials, {result.seconds:.0f} s, {result.block_flops:.3g} block operations -> {out}")
    write_json(json_file, {**metadata, "trials": result.trials})
