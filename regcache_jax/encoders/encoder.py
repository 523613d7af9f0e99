"""`Encoder`: a spec with its weights, and, once quantised, its scheme and register plan; the verbs that users call."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_tree
from regcache_jax.core.plan import RegisterPlan, Schedule
from regcache_jax.core.precision import float32_products
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Dense, Grids, HashedText, Parameters, QuantizedTensor, TextTower
from regcache_jax.core.spec import EncoderSpec, TextSpec
from regcache_jax.core.struct import Struct
from regcache_jax.encoders.forms import PLAIN, Form, form_for
from regcache_jax.encoders.parameters import Leaf, parameter_table
from regcache_jax.encoders.serving_program import ServingWeights, prepare, serve
from regcache_jax.encoders.text import text_features
from regcache_jax.encoders.tokenizers import check_ids
from regcache_jax.encoders.vision import ImageOutput, image_features, serve_image


@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation has
@struct.dataclass
class Encoder(Struct):
    """An encoder as a pytree. `scheme` and the integer kernels in `params` come from `quantize`; `plan` may stand beside
    float or integer kernels. `schedule` holds the plan's block numbers, so that programs can be built around them. `serving`
    and `form`: the image tower as `prepared` leaves it."""

    params: Parameters
    plan: RegisterPlan | None = None
    serving: ServingWeights | None = None
    spec: EncoderSpec = struct.field(pytree_node=False, kw_only=True)
    scheme: Scheme | None = struct.field(pytree_node=False, default=None, kw_only=True)
    schedule: Schedule | None = struct.field(pytree_node=False, default=None, kw_only=True)
    form: Form = struct.field(pytree_node=False, default=PLAIN, kw_only=True)

    def with_plan(self, plan: RegisterPlan | None) -> Encoder:
        """The same encoder with another register plan (or none). Raises UserError if the plan is for another shape."""
        if plan is None:
            return self.replace(plan=None, schedule=None)
        blocks = self.spec.image.blocks
        wanted = (blocks.num_blocks, blocks.num_heads, blocks.head_dim)
        got = (plan.key.shape[0], *plan.key.shape[2:])
        if wanted != got:
            raise UserError(
                f"register plan is for {got[0]} blocks of {got[1]} heads of {got[2]}; "
                f"{self.spec.name} has {wanted[0]} blocks of {wanted[1]} heads of {wanted[2]}"
            )
        schedule = plan.schedule()
        if schedule.delete_count >= self.spec.image.num_patches:
            raise UserError(
                f"register plan deletes {counted(schedule.delete_count, 'token')}; "
                f"{self.spec.name} has {self.spec.image.num_patches} patches"
            )
        return self.replace(plan=plan, schedule=schedule)

    def astype(self, dtype: DTypeLike) -> Encoder:
        """Float weights in another dtype (bfloat16); integers, their scales, offsets and biases and the plan stay as they are."""

        def narrow(leaf: Array) -> Array:
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        def cast(part: Any) -> Any:
            if isinstance(part, Grids):
                return part
            if isinstance(part, Dense) and isinstance(part.kernel, QuantizedTensor):
                return part.replace(float_kernel=jax.tree.map(narrow, part.float_kernel))
            return jax.tree.map(narrow, part)

        whole = (Grids, Dense)
        return self.replace(params=jax.tree.map(cast, self.params, is_leaf=lambda part: isinstance(part, whole)))

    def prepared(self, chip: str | None = None) -> Encoder:
        """The same encoder for programs that run for long (`serving_program`): its image tower is `serving`, no more in `params`.

        `chip` (`v5e`, `gpu`; see `forms.form_for`): in the form that suits it; every form runs everywhere."""
        form = form_for(chip, self.spec.image, self.scheme)
        serving = prepare(self.params.image, self.scheme, self.plan, form)
        return self.replace(params=self.params.replace(image=None), serving=serving, form=form)

    @property
    def dtype(self) -> Any:
        """Dtype of the residual stream: that of the patch embedding."""
        image = self.params.image if self.serving is None else self.serving.around
        return image.patch_embedding.floats.dtype


@functools.partial(jax.jit, static_argnums=0)
def init_params(spec: EncoderSpec, rng: Array) -> Parameters:
    """Draws an encoder's parameters (as the Flax modules' `init` does, but for the order of draws), in one program."""
    leaves, tree = jax.tree.flatten(parameter_table(spec), is_leaf=lambda node: isinstance(node, Leaf))
    drawn = [
        leaf.initializer(key, leaf.shape, jnp.float32)
        for leaf, key in zip(leaves, jax.random.split(rng, len(leaves)), strict=True)
    ]
    return from_tree(nn.unbox(jax.tree.unflatten(tree, drawn)))


def normalize(features: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Unit length; an all-zero feature stays zero."""
    features32 = features.astype(jnp.float32)
    return features32 / jnp.maximum(jnp.linalg.norm(features32, axis=-1, keepdims=True), 1e-12)


@float32_products()
def encode(
    encoder: Encoder,
    images: Float[Array | np.ndarray, "B Y X 3"],
    *,
    tile: int | None = None,
    features_only: bool = False,
) -> ImageOutput:
    """Runs the image tower with the encoder's own kernels and plan, in the serving form where there is a plan.

    `tile=8` pads the tokens for a TPU; an encoder that is `prepared` runs as its serving program, which may leave out the tokens where
    `features_only` are wanted. Features are raw; `encode_image` normalises them."""
    images, schedule = jnp.asarray(images, encoder.dtype), encoder.schedule or Schedule(0, 0, 0, 0)
    if encoder.serving is not None:
        form = dataclasses.replace(encoder.form, class_alone=encoder.form.class_alone and features_only)
        return serve(encoder.serving, images, encoder.spec.image, schedule, encoder.scheme, form)
    if encoder.schedule is None and tile is None:
        return image_features(encoder.params.image, images, encoder.spec.image, scheme=encoder.scheme)
    return serve_image(
        encoder.params.image, images, encoder.spec.image, schedule,
        registers=None if encoder.plan is None else encoder.plan.rows(), scheme=encoder.scheme, tile=tile,
    )  # fmt: skip


def encode_image(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B E"]:
    """Float32 features of preprocessed images, of unit length where the encoder's task wants it."""
    return _image_features(encoder, images)


@jax.jit
def _image_features(encoder: Encoder, images: Float[Array, "B Y X 3"]) -> Float[Array, "B E"]:
    features = encode(encoder, images, features_only=True).features
    return normalize(features) if encoder.spec.normalize else features.astype(jnp.float32)


def encode_text(encoder: Encoder, ids: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B E"]:
    """Float32 features of padded token ids, of unit length.

    Raises UserError where there is no text tower, for ids of another length than the tokenizer makes, and, where the ids are
    known (outside `jit`), for ids without an end or with other padding: SigLIP's features would silently be others."""
    text = encoder.spec.text
    if text is None or encoder.params.text is None:
        raise UserError(f"{encoder.spec.name} has no text tower")
    if encoder.spec.tokenization is not None:
        check_ids(ids, encoder.spec.tokenization, padding_seen=not text.blocks.causal)
    return _text_features(encoder.params.text, jnp.asarray(ids), spec=text, scheme=encoder.scheme)


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
@float32_products()
def _text_features(
    tower: TextTower | HashedText, ids: Int[Array, "B T"], *, spec: TextSpec, scheme: Scheme | None
) -> Float[Array, "B E"]:
    return normalize(text_features(tower, ids, spec, scheme=scheme)[0])
