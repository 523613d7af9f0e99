"""One int8 block written by hand, in variants: what each choice costs, asked of the TPU compiler in seconds.

    python benchmarks/tpu_block.py            # all of VARIANTS; a few minutes
    python benchmarks/tpu_block.py mask       # one
    python benchmarks/tpu_block.py so400m     # all of them at the shape of So400m/14 with 729 tokens
    python benchmarks/tpu_block.py v6e 16 bits   # on another chip, with another batch

The cost of a block is half the difference between programs of three blocks and of one; beside it stand the bytes of its arguments."""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}

import sys

import jax
import jax.numpy as jnp
import numpy as np

from regcache_jax.tpu import compiler

SHAPES = {"b16": (32, 200, 768, 12, 64, 3072), "so400m": (2, 736, 1152, 16, 72, 4304)}
CHIP = next((word for word in sys.argv[1:] if word in compiler.CHIPS), "v5e")
WORDS = [word for word in sys.argv[1:] if word not in (*SHAPES, *compiler.CHIPS) and not word.isdigit()]
BATCH, ROWS, WIDTH, HEADS, HEAD_DIM, HIDDEN = SHAPES[next((word for word in sys.argv[1:] if word in SHAPES), "b16")]
BATCH = next((int(word) for word in sys.argv[1:] if word.isdigit()), BATCH)
VARIANTS = {
    "as it is": {"wide", "first"},
    "softmax divided behind p v": {"wide"},
    "integers packed when they are written": {"barrier", "first"},
    "integers kept in bf16": {"narrow", "first"},
    "both, as it was": {"barrier"},
    "logits masked at three padding rows": {"barrier", "mask"},
    "rows counted after the exponential": {"barrier", "count"},
    "no barrier: the compiler nests the two MLP products": set(),
    "residual stream flattened to [B N, D]": {"barrier", "flat"},
    "residual stream in float32": {"barrier", "float32"},
    "q k^T in int8": {"barrier", "int8 logits"},
    "q k^T and p v in int8": {"barrier", "int8 logits", "int8 values"},
    "a constant for the row maximum": {"barrier", "constant"},
    "erf written out": {"barrier", "erf"},
    "kernels of 4 bits, inputs of 8 bits": {"wide", "first", "int4 kernels"},
    "kernels and inputs of 4 bits": {"wide", "first", "int4 kernels", "int4 inputs"},
}


def norm(x, params):
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x), -1, keepdims=True) - mean**2
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * params["scale"] + params["bias"]


def integers(x, inverse, kind=jnp.int8):
    largest = 127 if kind == jnp.int8 else 7
    return jnp.clip(jnp.round(x.astype(jnp.float32) * inverse), -largest, largest).astype(kind)


def product(formula, inputs, layer, kind=jnp.int32):
    kernel = layer["kernel"].astype(inputs.dtype)  # integers of 4 bits are widened for inputs of 8
    return jnp.einsum(formula, inputs, kernel, preferred_element_type=kind).astype(jnp.float32)


def block(x, params, variant):
    site = jnp.int4 if "int4 inputs" in variant else jnp.int8

    def hold(values):
        if "wide" in variant or "narrow" in variant:
            kept = jnp.float32 if "wide" in variant else jnp.bfloat16
            return jax.lax.optimization_barrier(values.astype(kept)).astype(site)
        return jax.lax.optimization_barrier(values) if "barrier" in variant else values

    inverse = params["inverse"]
    x = x.reshape(BATCH, ROWS, WIDTH)
    normed = hold(integers(norm(x, params["norm1"]), inverse, site))
    query, key, value = (
        (product("bnd,dhk->bhnk", normed, layer) * layer["scale"][:, None] + layer["bias"][:, None]).astype(
            jnp.bfloat16
        )
        for layer in (params["query"], params["key"], params["value"])
    )
    if "int8 logits" in variant:
        query, key = integers(query, inverse), integers(key, inverse)
        logits = (
            jnp.einsum("bhtk,bhsk->bhts", query, key, preferred_element_type=jnp.int32).astype(jnp.float32) * inverse
        )
    else:
        logits = jnp.einsum("bhtk,bhsk->bhts", query, key, preferred_element_type=jnp.float32)
    row = jnp.arange(ROWS)
    if "mask" in variant:
        logits = logits + jnp.where(row < ROWS - 3, 0.0, -1e30)
    terms = jnp.exp(logits - (inverse if "constant" in variant else jnp.max(logits, -1, keepdims=True)))
    total = jnp.sum(terms * jnp.where(row < ROWS - 3, 1.0, 0.0) if "count" in variant else terms, -1)
    if "int8 values" in variant:
        terms, value = integers(terms, 127.0), integers(value, inverse)
        mixed = jnp.einsum("bhts,bhsk->bhtk", terms, value, preferred_element_type=jnp.int32).astype(jnp.float32)
    else:
        shares = terms * (1 / total)[..., None] if "first" in variant else terms
        mixed = jnp.einsum("bhts,bhsk->bhtk", shares.astype(jnp.bfloat16), value, preferred_element_type=jnp.float32)
    mixed = hold(integers(mixed if "first" in variant else mixed * (1 / total)[..., None], inverse, site))
    kind = jnp.float32 if "float32" in variant else jnp.bfloat16
    out, fc1, fc2 = params["out"], params["fc1"], params["fc2"]
    x = (x.astype(jnp.float32) + product("bhtk,hkd->btd", mixed, out) * out["scale"] + out["bias"]).astype(kind)
    if "flat" in variant:
        x = x.reshape(-1, WIDTH)
    normed = hold(integers(norm(x, params["norm2"]), inverse, site))
    features = product("...d,df->...f", normed, fc1) * fc1["scale"] + fc1["bias"]
    features = hold(integers(jax.nn.gelu(features, approximate="erf" not in variant), inverse, site))
    return (x.astype(jnp.float32) + product("...f,fd->...d", features, fc2) * fc2["scale"] + fc2["bias"]).astype(kind)


def shapes(variant):
    def layer(inputs, outputs):
        floats, kind = jax.ShapeDtypeStruct(outputs, jnp.float32), jnp.int4 if "int4 kernels" in variant else jnp.int8
        return {"kernel": jax.ShapeDtypeStruct((*inputs, *outputs), kind), "scale": floats, "bias": floats}

    width, heads = (WIDTH,), (HEADS, HEAD_DIM)
    vector = jax.ShapeDtypeStruct(width, jnp.float32)
    return {
        **{name: layer(width, heads) for name in ("query", "key", "value")},
        "out": layer(heads, width), "fc1": layer(width, (HIDDEN,)), "fc2": layer((HIDDEN,), width),
        "norm1": {"scale": vector, "bias": vector}, "norm2": {"scale": vector, "bias": vector},
        "inverse": jax.ShapeDtypeStruct((), jnp.float32),
    }  # fmt: skip


def cost(variant, num_blocks):
    """Cycles, and bytes of arguments."""

    def run(params, x):
        for block_params in params:
            x = block(x, block_params, variant)
        return x

    hidden = jax.ShapeDtypeStruct((BATCH, ROWS, WIDTH), jnp.bfloat16)
    compiled = compiler.compile_for(f"{CHIP}:2x2", run, [shapes(variant)] * num_blocks, hidden)
    return np.array(
        [compiler.estimates(compiled.as_text())[0], compiled.memory_analysis().argument_size_in_bytes], float
    )


if __name__ == "__main__":
    os.environ["TPU_ACCELERATOR_TYPE"] = compiler.CHIPS[CHIP][0]
    for name, variant in VARIANTS.items():
        if all(word in name for word in WORDS):
            cycles, held = (cost(variant, 3) - cost(variant, 1)) / 2
            print(
                f"{CHIP}: {cycles:12,.0f} cycles a block of batch {BATCH}, {held / 1e6:.2f} MB: {name}",
                flush=True,
            )
