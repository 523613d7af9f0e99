"""Image towers around the block stack: patches in, tokens through, one pooled feature out (`pooling`)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.plan import BlockRegister, RegisterPlan, Schedule
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import ImageTower, QuantizedTensor
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import Collectors, rows_there, run_blocks
from regcache_jax.encoders.norms import apply_norm
from regcache_jax.encoders.pooling import pool
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.serving import num_rows, serve_blocks
from regcache_jax.encoders.sheets import Grids, grids_of
from regcache_jax.ops.positions import positions_on_grids, resize_positions


class ImageOutput(NamedTuple):
    """Pooled features, the normed tokens they were pooled from, which of them are there, and what was collected."""

    features: Float[Array, "B E"]
    tokens: Float[Array, "B N D"]
    present: Bool[Array, "B N"] | None
    kept: Int[Array, "B N"] | None
    collected: dict[str, Any]


def grid_of(images: Float[Array, "B Y X 3"], spec: ImageSpec) -> tuple[int, int]:
    """Rows and columns of patches: those of the spec, or, where no table of positions holds them to it, those of the pictures. The patches
    of a sheet count as one row."""
    if spec.max_patches is not None:
        return 1, images.shape[1]
    if spec.position_table:
        return spec.grid, spec.grid
    return images.shape[1] // spec.patch_size, images.shape[2] // spec.patch_size


def cut_patches(images: Float[Array, "B Y X 3"], spec: ImageSpec) -> Float[Array, "B M S C"]:
    """Cuts images into patches, row by row: S lines of a patch, C = 3 S numbers a line. Pixels that fill no patch are dropped."""
    (rows, columns), size = grid_of(images, spec), spec.patch_size
    if spec.max_patches is not None:
        return images[:, :, :-1].reshape(-1, columns, size, 3 * size)
    lines = images[:, : rows * size, : columns * size].reshape(-1, rows, size, columns, 3 * size)
    return jnp.swapaxes(lines, 2, 3).reshape(-1, rows * columns, size, 3 * size)


def token_offsets(tower: ImageTower, spec: ImageSpec, num_patches: int) -> Float[Array, "N D"]:
    """What every token starts from before the patches' pixels are added: class token, trained registers, positions, bias."""
    table = tower.position_embedding
    prefix = int(spec.class_token)
    if table is None:
        positions = jnp.zeros((prefix + num_patches, spec.blocks.width), tower.patch_embedding.floats.dtype)
    else:
        positions = resize_positions(table, prefix, spec.stored_grid, spec.grid, spec.position_interpolation)
    patches = positions[prefix:]
    patches = patches if (bias := offset_bias(tower)) is None else patches + bias
    pieces = [tower.class_token[None] + positions[:1]] if tower.class_token is not None else []
    if tower.registers is not None:
        pieces.append(tower.registers)
    return jnp.concatenate([*pieces, patches])


def sheet_offsets(tower: ImageTower, spec: ImageSpec, grids: Grids) -> Float[Array, "B N D"]:
    """The same of the patches on sheets, whose positions are those of each picture's grid."""
    table = tower.position_embedding
    assert table is not None
    places, sides = (grids.row, grids.column), (grids.rows, grids.columns)
    positions = positions_on_grids(table, spec.stored_grid, places, sides)
    return positions if (bias := offset_bias(tower)) is None else positions + bias


def offset_bias(tower: ImageTower) -> Float[Array, "D"] | None:
    """The bias of the patch embedding, where it can be added to the positions: no norm stands between."""
    return None if tower.patch_norm is not None else tower.patch_embedding.bias


def norm_patches(tower: ImageTower, patches: Float[Array, "B N D"], spec: ImageSpec) -> Float[Array, "B N D"]:
    """Embedded patches as they are given positions: normed, where they are; the rows of zeros in front of them stay zeros."""
    if tower.patch_norm is None:
        return patches
    bias = tower.patch_embedding.bias
    patches = patches if bias is None else patches + bias.astype(patches.dtype)
    normed = apply_norm(patches, tower.patch_norm, spec.blocks)
    row = jnp.arange(patches.shape[1], dtype=jnp.int32)[:, None]
    return jnp.where(row < spec.num_protected, 0.0, normed)


def embed_patches(
    tower: ImageTower,
    images: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    rows: int | None = None,
    repeated: bool = True,
) -> Float[Array, "B P D"]:
    """Patch embedding (normed, where it is), class token, trained registers, positions, (CLIP) the norm before block 0 and (a method's)
    rotation. Where a sheet has no patch there are zeros.

    `rows`, where given, pads the tokens to so many: by repeating the last one, or, if not `repeated`, with patches of zeros at its place,
    which a product takes for nothing (a sheet, by zeros)."""
    patches = cut_patches(images, spec)
    num_patches = patches.shape[1]
    padding = 0 if rows is None else rows - spec.num_protected - num_patches
    patches = jnp.pad(patches, ((0, 0), (0, padding), (0, 0), (0, 0)), mode="edge" if repeated else "constant")
    patches = jnp.pad(patches, ((0, 0), (spec.num_protected, 0), (0, 0), (0, 0)))
    kernel = tower.patch_embedding.kernel
    assert not isinstance(kernel, QuantizedTensor)
    kernel = kernel.astype(images.dtype)
    kernel = kernel.reshape(spec.patch_size, -1, kernel.shape[-1])
    grids = None if spec.max_patches is None else grids_of(images)
    offsets = token_offsets(tower, spec, num_patches) if grids is None else sheet_offsets(tower, spec, grids)
    offsets = jnp.pad(offsets, (*((0, 0),) * (offsets.ndim - 2), (0, padding), (0, 0)), mode="edge")
    hidden = jnp.einsum("bnsc,scd->bnd", patches, kernel, preferred_element_type=jnp.float32)
    hidden = (norm_patches(tower, hidden, spec) + offsets.astype(jnp.float32)).astype(images.dtype)
    hidden = apply_norm(hidden, tower.pre_norm, spec.blocks) if tower.pre_norm is not None else hidden
    if grids is not None:
        hidden = jnp.where(jnp.pad(grids.there, ((0, 0), (0, padding)))[..., None], hidden, 0)
    return hidden if tower.rotation is None else hidden @ tower.rotation.astype(hidden.dtype)


def image_features(
    tower: ImageTower,
    images: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    *,
    plan: RegisterPlan | None = None,
    scheme: Scheme | None = None,
    collect: Collectors | None = None,
) -> ImageOutput:
    """The whole image tower in the search form of the block stack: one program for every plan."""
    hidden = embed_patches(tower, images, spec)
    run = Run(spec.blocks, scheme, spec.protected, grid_of(images, spec))
    output = run_blocks(tower.blocks, hidden, run, plan=plan, collect=collect)
    present = rows_there(output.hidden, spec.blocks) if output.present is None else output.present
    features, tokens = pool(tower, output.hidden, spec, present, scheme)
    return ImageOutput(features, tokens, present, None, output.collected)


def serve_image(
    tower: ImageTower,
    images: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    schedule: Schedule,
    *,
    registers: BlockRegister | None = None,
    scheme: Scheme | None = None,
    tile: int | None = None,
    unroll: bool = False,
) -> ImageOutput:
    """The whole image tower in the serving form: fixed block numbers, a plan's `rows()`, tokens really deleted."""
    run = Run(spec.blocks, scheme, spec.protected, grid_of(images, spec))
    return serve_formed(tower, images, spec, schedule, registers, run, tile, unroll)


def serve_formed(
    tower: ImageTower,
    images: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    schedule: Schedule,
    registers: BlockRegister | None,
    run: Run,
    tile: int | None,
    unroll: bool,
) -> ImageOutput:
    """`serve_image` of a program whose blocks run as `run` says, form included."""
    num_tokens = spec.num_protected + math.prod(grid_of(images, spec))
    seen = registers if schedule.start == 0 < schedule.stop else None
    rows = num_rows(num_tokens, run.form.rows_for(seen, num_tokens, spec.blocks.num_heads), tile)
    hidden = embed_patches(tower, images, spec, rows, repeated=not run.form.hides_padding)
    served = serve_blocks(
        tower.blocks, hidden, run, schedule, registers,
        tile=tile, num_tokens=num_tokens, unroll=unroll,
    )  # fmt: skip
    present = rows_there(served.rows, spec.blocks)
    left = None if present is None else present[:, : served.num_tokens]
    if present is None and served.rows.shape[1] > served.num_tokens:
        row = jnp.arange(served.rows.shape[1], dtype=jnp.int32)
        present = jnp.broadcast_to(row < served.num_tokens, served.rows.shape[:2])
    features, tokens = pool(tower, served.rows, spec, present, run.scheme)
    return ImageOutput(features, tokens[:, : served.num_tokens], left, served.kept, {})
