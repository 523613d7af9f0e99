"""The layers of a block as PyTorch stores them, a weight and a bias under each layer's name: what many tables share but for those names."""

from __future__ import annotations

from collections.abc import Iterable

from regcache_jax.converters.engine import Rule, flat, out_heads_to_heads_out, out_in_to_in_out


def attention(layers: Iterable[str], ours: str = "image/blocks") -> tuple[Rule, ...]:
    """Queries, keys and values in layers of their own, and what is projected from them: the four names in this order."""
    query, key, value, out = layers
    inputs = (("query", query), ("key", key), ("value", value))
    kinds = (("weight", "kernel", out_in_to_in_out), ("bias", "bias", flat))
    return (
        *(
            Rule(f"{layer}.{leaf}", f"{ours}/attention/{name}/{own}", arrangement)
            for name, layer in inputs
            for leaf, own, arrangement in kinds
        ),
        Rule(f"{out}.weight", f"{ours}/attention/out/kernel", out_heads_to_heads_out),
        Rule(f"{out}.bias", f"{ours}/attention/out/bias"),
    )


def mlp(up: str, down: str, ours: str = "image/blocks") -> tuple[Rule, ...]:
    """The two layers of an MLP."""
    return (
        Rule(f"{up}.weight", f"{ours}/mlp/fc1/kernel", out_in_to_in_out),
        Rule(f"{up}.bias", f"{ours}/mlp/fc1/bias"),
        Rule(f"{down}.weight", f"{ours}/mlp/fc2/kernel", out_in_to_in_out),
        Rule(f"{down}.bias", f"{ours}/mlp/fc2/bias"),
    )
