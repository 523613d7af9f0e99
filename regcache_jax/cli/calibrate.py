"""`regcache calibrate` and `regcache calibration`: what passes an encoder's sites, kept in a file, and that file looked at."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from regcache_jax.cli.arguments import CalibrationData, JsonArgs, read_images, read_plan
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import digits, print_table, progress, say, write_json
from regcache_jax.core.counted import counted
from regcache_jax.core.options import option

if TYPE_CHECKING:
    from regcache_jax.core.scheme import Estimator
    from regcache_jax.quantization.calibration import Calibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateArgs:
    """What is counted, and where it goes."""

    registers: str | None = option("Plan to have in place; it changes the ranges.", None, path="file")
    groups: bool = option("Count class token, trained registers and patches apart (group scales).", False)
    integer_attention: bool = option("Count queries, keys and values too.", False)
    out: str = option("File to write; must not exist.", path="file")


@click.command()
@click.argument("model", type=click.Path())
@takes(data=CalibrationData, chosen=CalibrateArgs)
def calibrate(model: str, data: CalibrationData, chosen: CalibrateArgs) -> None:
    """Count what passes every site of MODEL, and keep it in a file.

    `regcache quantize --calibration FILE` then needs no pictures, `regcache calibration FILE` shows what is in it.
    """
    from regcache_jax.core.scheme import INPUTS, SITES
    from regcache_jax.data.cut import in_batches
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.quantization.calibration import observe

    refuse_existing(chosen.out)
    loaded = checkpoints.load(model)
    plan = read_plan(chosen.registers, loaded)
    encoder = loaded.encoder if plan is None else loaded.encoder.with_plan(plan)
    images = read_images(loaded, data.open())
    with progress("calibrating"):
        batches = in_batches(images, data.batch_size, fill=False)
        inputs = INPUTS if chosen.integer_attention else SITES
        found = observe(encoder, batches, groups=chosen.groups, inputs=inputs)
    found.belonging_to(encoder).save(chosen.out)
    say(f"{model} -> {chosen.out}: {counted(found.num_images, 'picture')}, {'with' if plan else 'no'} registers")


@dataclasses.dataclass(frozen=True)
class BitsArgs:
    """What ranges are shown for."""

    bits: int = option("Bits of the activations.", 8, unit="bits", least=2, most=8)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@takes(chosen=BitsArgs, shown=JsonArgs)
def calibration(file: str, chosen: BitsArgs, shown: JsonArgs) -> None:
    """Show a calibration FILE: ranges by block, site and estimator."""
    from regcache_jax.quantization.calibration import Calibration

    found = Calibration.load(file)
    columns, rows = ranges_of(found, chosen.bits)
    lines = [(*row[:3], *map(digits, row[3:])) for row in rows]
    print_table(f"{file}: {counted(found.num_images, 'picture')}, {chosen.bits} bits", columns, lines)
    sites = [dict(zip(columns, row, strict=True)) for row in rows]
    tree = {"images": found.num_images, "groups": found.groups, "bits": chosen.bits, "sites": sites}
    write_json(shown.json, tree)


def ranges_of(found: Calibration, bits: int) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: extremes, and the largest magnitude that each estimator keeps, a block, site and token group."""
    import numpy as np

    from regcache_jax.core.scheme import Scheme
    from regcache_jax.quantization.calibration import site_bounds

    estimators: tuple[Estimator, ...] = ("absmax", "percentile", "mse", "entropy")
    schemes = [Scheme(activation_bits=bits, estimator=each) for each in estimators]
    rows: list[tuple[Any, ...]] = []
    for site, histogram in found.sites.items():
        ends = [site_bounds(histogram, scheme, site)[1] for scheme in schemes]
        for block, group in np.argwhere(histogram.counts.any(axis=2)):  # an encoder may have no class token
            who = ("class token", "registers", "patches")[group] if histogram.lower.shape[1] == 3 else "all"
            extremes = (histogram.lower[block, group], histogram.upper[block, group])
            kept = [end[block, group] for end in ends]
            rows.append((int(block), site, who, *map(float, [*extremes, *kept])))
    rows.sort(key=lambda row: row[0])  # stable: block after block, sites as they were counted
    return ("block", "site", "tokens", "lowest", "highest", *estimators), rows
