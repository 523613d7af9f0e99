"""Patch features, at the end of an encoder or at any of its blocks: what reads pictures place by place (language models, dense heads).

A tap is an encoder that ends there: fewer blocks, the final norm or none, no pooling. So a quantised encoder, a plan and a serving
program are tapped like a float one, and nothing runs that is not read.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import Schedule
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block
from regcache_jax.core.spec import EncoderSpec, ImageSpec, Tap
from regcache_jax.encoders.encoder import Encoder, encode
from regcache_jax.encoders.outputs import patch_tokens


def encode_patches(
    encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"], tap: Tap | None = None
) -> Float[Array, "B P D"]:
    """Float32 features of the patches of preprocessed images, row by row, one for every place of the grid (of a sheet: one for every line,
    zeros where there is no patch): deleted ones are filled in from their neighbours. They are the encoder's own (the last block's, after
    the final norm where it has one), or those of `tap`, whose class token, where it is asked for, stands in front.

    Raises UserError for a block or a norm that the encoder does not have."""
    ended = encoder if tap is None else at_tap(encoder, tap)
    output, spec = encode(ended, images), ended.spec.image
    patches = patch_tokens(output, spec, jnp.asarray(images))
    if tap is None or not tap.class_token:
        return patches
    return jnp.concatenate([output.tokens[:, :1].astype(jnp.float32), patches], axis=1)


def spec_at_tap(spec: EncoderSpec, tap: Tap) -> EncoderSpec:
    """What an encoder is that ends at a tap. Raises UserError for a block, a norm or a class token that there is not."""
    image = spec.image
    count = num_blocks_until(image, tap)
    if tap.normed and not image.final_norm:
        raise UserError(f"{spec.name} has no final norm; its features are not normed (normed=False)")
    if tap.class_token and not image.class_token:
        raise UserError(f"{spec.name} has no class token to keep (class_token=False)")
    blocks = dataclasses.replace(image.blocks, num_blocks=count)
    ended = dataclasses.replace(
        image, blocks=blocks, pooling="none", projection=None, final_norm=tap.normed, further=None
    )
    return dataclasses.replace(spec, image=ended, num_classes=None)


def num_blocks_until(image: ImageSpec, tap: Tap) -> int:
    """How many blocks run until a tap. Raises UserError for a block that there is not."""
    total = image.blocks.num_blocks
    if not -total <= tap.block < total:
        raise UserError(f"a tap is at a block 0..{total - 1} (-1: the last), got {tap.block}")
    return tap.block % total + 1


def at_tap(encoder: Encoder, tap: Tap) -> Encoder:
    """The encoder that ends at a tap, its plan with it; it has its image tower alone. Raises UserError as `spec_at_tap` does."""
    spec, count = spec_at_tap(encoder.spec, tap), num_blocks_until(encoder.spec.image, tap)
    if encoder.serving is not None:
        raise UserError("tap the encoder first and prepare it then: a prepared one is a program already")
    tower = encoder.params.image
    tower = tower.replace(
        blocks=first_blocks(tower.blocks, count, encoder.scheme),
        final_norm=tower.final_norm if tap.normed else None,
        head=None,
        probe=None,
        further=None,
        projection=None,
    )
    params = encoder.params.replace(image=tower, text=None, logit_scale=None, logit_bias=None, classifier=None)
    spec = dataclasses.replace(spec, text=None, tokenization=None)
    return _with_first_rows(encoder.replace(params=params, spec=spec), count)


def first_blocks(blocks: Block, count: int, scheme: Scheme | None) -> Block:
    """The first blocks of a stack, with those of the packed float kernels (`Dense.float_kernel`) that are theirs."""
    layers = {name: (site, layer) for site in SITES for name, layer in blocks.layers(site).items()}
    packed = {
        name: (site, layer.float_kernel) for name, (site, layer) in layers.items() if layer.float_kernel is not None
    }
    bare = blocks.with_layers({name: layers[name][1].replace(float_kernel=None) for name in packed})
    cut = jax.tree.map(lambda leaf: leaf[:count], bare)
    if scheme is None or not packed:
        return cut
    again = {}
    for name, (site, kernels) in packed.items():
        held = sum(not scheme.at(site, block).quantized for block in range(count))
        again[name] = cut.layers(site)[name].replace(float_kernel=kernels[:held])
    return cut.with_layers(again)


def _with_first_rows(encoder: Encoder, count: int) -> Encoder:
    """The encoder with the part of its plan that its first blocks see."""
    plan, schedule = encoder.plan, encoder.schedule
    if plan is None or schedule is None:
        return encoder
    deletes = schedule.delete_block < count
    kept = Schedule(
        min(schedule.start, count),
        min(schedule.stop, count),
        schedule.delete_block if deletes else 0,
        schedule.delete_count if deletes else 0,
    )
    numbers = {name: jnp.asarray(number, jnp.int32) for name, number in dataclasses.asdict(kept).items()}
    copies = plan.copies[:count] if plan.copies.ndim else plan.copies
    plan = plan.replace(key=plan.key[:count], value=plan.value[:count], copies=copies, **numbers)
    return encoder.replace(plan=plan, schedule=kept)
