"""What a quantised encoder costs, where no TPU compiler is at hand: a model of operations an image, not a measurement."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from regcache_jax.core.scheme import PRODUCT_INPUTS, SITES, Scheme
from regcache_jax.encoders.encoder import Encoder

FLOAT_COST = 2.0
"""A float multiply-add beside an int8 one: half the peak rate, as on TPU v5e and v6e."""
MEASURED_COST = 64.0
"""For every value whose scale is measured as it passes (the array is read twice, and not rounded where it is made). A guess."""


def cost(encoder: Encoder) -> float:
    """Int8 multiply-adds an image that the blocks are worth, everything counted in them: float products twice, attention in
    float unless the scheme says otherwise, twin ranges as two products, measured scales, a rotation, one row a register (in float),
    and the tokens that a plan deletes not at all."""
    spec, scheme, schedule = encoder.spec.image, encoder.scheme or Scheme(float_sites=SITES), encoder.schedule
    blocks, width = encoder.params.image.blocks, spec.blocks.width
    total = 0.0 if encoder.params.image.rotation is None else 2 * FLOAT_COST * spec.num_tokens * width**2
    for block in range(spec.blocks.num_blocks):
        tokens, registers = spec.num_tokens, 0
        if schedule is not None:
            tokens -= schedule.delete_count if block >= schedule.delete_block else 0
            seen = schedule.start <= block < schedule.stop and encoder.plan is not None
            registers = encoder.plan.key.shape[1] if seen and encoder.plan is not None else 0
        for product, inputs in PRODUCT_INPUTS.items():
            twice = blocks.grids.softmax_low is not None or scheme.softmax == "log-sqrt2"
            times = 2.0 if product == "pv" and twice else 1.0
            total += (times if product in scheme.products else FLOAT_COST) * tokens**2 * width
            total += FLOAT_COST * tokens * registers * width
            if product in scheme.products and not scheme.calibrated:
                total += MEASURED_COST * len(inputs) * tokens * width
        for site in SITES:
            layers = list(blocks.layers(site).values())
            sizes = [layer.kernel.shape for layer in layers]
            is_integer = scheme.at(site, block).quantized and scheme.activations != "float"
            times = 1.0 if blocks.grids.of(site).negative is None else 2.0
            total += tokens * sum(math.prod(size[1:]) for size in sizes) * (times if is_integer else FLOAT_COST)
            if is_integer and not scheme.calibrated:
                total += MEASURED_COST * tokens * math.prod(sizes[0][1 : 1 + layers[0].num_inputs])
    return total


class Price(NamedTuple):
    """What gives an encoder's cost, and its unit."""

    unit: str
    of: Callable[[Encoder], float]


MODEL = Price("int8 multiply-adds an image", cost)
"""The model above."""


def price_of(name: str) -> Price:
    """What gives an encoder's cost: the model, or the compiler of a TPU (v5e:2x2, say). Raises UserError for what is neither, and where the
    compiler is missing."""
    if name == "model":
        return MODEL
    from regcache_jax.tpu.ask import check_topology, encoder_cycles

    check_topology(name)
    return Price(f"{name} cycles an image, by the TPU compiler", functools.partial(encoder_cycles, topology=name))
