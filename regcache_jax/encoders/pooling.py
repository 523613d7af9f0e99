"""From the tokens that leave the blocks to one feature a picture: final norm, further blocks, pooling of every kind, projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Dense, Head, ImageTower, Probe
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import ACTIVATIONS, BlockTrace, rows_there, run_blocks
from regcache_jax.encoders.norms import apply_norm
from regcache_jax.encoders.rounding import Run, dense, linear, with_bias
from regcache_jax.ops.attention import attend


def head_trace(
    head: Head,
    tokens: Float[Array, "B N D"],
    spec: ImageSpec,
    present: Bool[Array, "B N"] | None,
    scheme: Scheme | None = None,
) -> tuple[Float[Array, "B D"], BlockTrace]:
    """Attention pooling with one learned probe, then an MLP with a residual (SigLIP), and what passes its sites."""
    attention, run = head.attention, Run(spec.head, scheme)
    probe = jnp.broadcast_to(head.probe.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
    query = linear(probe, attention.query)
    key, value = dense(tokens, (attention.key, attention.value), "qkv", run, head.grids.of("qkv"), present)
    bias = None if present is None else jnp.where(present, 0.0, -jnp.inf)[:, None, None, :]
    attended = attend(query, key, value, bias)
    pooled, normed, features = _after_probe(head, attended.mixed, run)
    trace = BlockTrace(
        tokens, tokens, query, key, value, attended.weights, None, attended.mixed, normed, features, present
    )
    return pooled, trace


def _after_probe(
    head: Head, mixed: Float[Array, "B 1 H K"], run: Run
) -> tuple[Float[Array, "B D"], Float[Array, "B 1 D"], Float[Array, "B 1 F"]]:
    """The rest of attention pooling behind its mixed values: what it gives, and the inputs of the two MLP layers."""

    def apply(inputs: Float[Array, "B N ..."], site: str, layer: Dense) -> Float[Array, "B N ..."]:
        return dense(inputs, (layer,), site, run, head.grids.of(site))[0]

    pooled = apply(mixed, "out", head.attention.out)
    normed = apply_norm(pooled, head.norm, run.spec)
    features = ACTIVATIONS[run.spec.activation](apply(normed, "fc1", head.mlp.fc1))
    return (pooled + apply(features, "fc2", head.mlp.fc2))[:, 0], normed, features


def fold_probe(head: Head) -> Head:
    """The same head with its constant query multiplied into its keys, once, in float32: `head_trace` is the plain way. The keys' bias
    adds one number to all logits of a head, which softmax does not see."""
    query, key = head.attention.query, head.attention.key
    asked = jnp.einsum("d,dhk->hk", head.probe.astype(jnp.float32), query.floats.astype(jnp.float32))
    asked = asked if query.bias is None else asked + query.bias.astype(jnp.float32)
    folded = jnp.einsum("dhk,hk->dh", key.floats.astype(jnp.float32), asked) * asked.shape[-1] ** -0.5
    return head.replace(probe_key=folded.astype(key.floats.dtype))


def folded_pool(
    head: Head, tokens: Float[Array, "B N D"], spec: ImageSpec, present: Bool[Array, "B N"] | None
) -> Float[Array, "B D"]:
    """Attention pooling of a head that is folded: tokens are mixed before they become values, of which there is one then."""
    assert head.probe_key is not None
    logits = jnp.einsum("bnd,dh->bnh", tokens, head.probe_key, preferred_element_type=jnp.float32)
    logits = jnp.swapaxes(logits, 1, 2)  # turned behind the product: XLA's CPU has no such product of bfloat16
    if present is not None:
        logits = jnp.where(present[:, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(tokens.dtype)
    layer, context = head.attention.value, jnp.einsum("bhn,bnd->bhd", weights, tokens)
    mixed = jnp.einsum("bhd,dhk->bhk", context, layer.floats).astype(jnp.float32)
    return _after_probe(head, with_bias(mixed, layer).astype(tokens.dtype)[:, None], Run(spec.head))[0]


def probe_pool(
    probe: Probe, tokens: Float[Array, "B N D"], present: Bool[Array, "B N"] | None = None
) -> Float[Array, "B D"]:
    """Attention pooling by a learned query as it is (AIMv2)."""
    key, value = linear(tokens, probe.key), linear(tokens, probe.value)
    query = probe.query.astype(tokens.dtype).reshape(1, 1, *key.shape[2:])
    bias = None if present is None else jnp.where(present, 0.0, -jnp.inf)[:, None, None, :]
    mixed = attend(jnp.broadcast_to(query, (tokens.shape[0], *query.shape[1:])), key, value, bias).mixed
    return linear(mixed, probe.out)[:, 0]


def pool(
    tower: ImageTower,
    hidden: Float[Array, "B N D"],
    spec: ImageSpec,
    present: Bool[Array, "B N"] | None = None,
    scheme: Scheme | None = None,
) -> tuple[Float[Array, "B E"], Float[Array, "B N D"]]:
    """Final norm and further blocks (where there are any), pooling and projection. Returns the features and the tokens they
    were pooled from."""
    present = rows_there(hidden, spec.blocks) if present is None else present
    if tower.rotation is not None:
        hidden = hidden @ tower.rotation.T.astype(hidden.dtype)
    last = spec.pooling == "normed_mean"
    tokens = hidden if tower.final_norm is None or last else apply_norm(hidden, tower.final_norm, spec.blocks)
    if tower.further is not None:
        assert spec.further is not None
        tokens = run_blocks(tower.further.blocks, tokens, Run(spec.further), present=present).hidden
        tokens = apply_norm(tokens, tower.further.norm, spec.further)
    if spec.pooling == "class":
        several = spec.summary_tokens > 1
        pooled = tokens[:, : spec.summary_tokens].reshape(tokens.shape[0], -1) if several else tokens[:, 0]
    elif spec.pooling == "probe":
        assert tower.probe is not None
        pooled = probe_pool(tower.probe, tokens, present)
    elif spec.pooling == "map":
        assert tower.head is not None
        own = None if scheme is None else scheme.of_part("head")
        if tower.head.probe_key is not None:
            pooled = folded_pool(tower.head, tokens, spec, present)
        else:
            pooled, _ = head_trace(tower.head, tokens, spec, present, own)
    else:
        there = jnp.ones(tokens.shape[:2], bool) if present is None else present
        first = 0 if spec.pooling == "mean" else spec.num_protected
        weight = there[:, first:, None].astype(tokens.dtype)
        pooled = jnp.sum(tokens[:, first:] * weight, axis=1) / jnp.sum(weight, axis=1)
        if spec.pooling == "class_mean":
            pooled = jnp.concatenate([tokens[:, 0], pooled], axis=-1)
        if last:
            assert tower.final_norm is not None
            pooled = apply_norm(pooled, tower.final_norm, spec.blocks)
    if tower.projection is not None:
        pooled = linear(pooled[:, None], tower.projection)[:, 0]
    return pooled, tokens
