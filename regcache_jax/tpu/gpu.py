"""What a program costs on a GPU that is not there, by XLA's own compiler (extra `cuda`): kernels, bytes, products, and
the time these cannot go below.

Nothing is tuned, as that wants a device to try on. Products are Triton's wherever XLA can have them, which scale and round in passing what
they add up; a program for which it has none without tuning gets cuBLAS's, and a device may find these faster. What one said of the same
programs is in docs/performance.md.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regcache_jax.core.errors import UserError, installing
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.forms import ATTENTION, PLAIN, form_for
from regcache_jax.ops.attention_forms import attend_flash
from regcache_jax.tpu.gpus import gpu
from regcache_jax.tpu.programs import PROGRAMS, program
from regcache_jax.tpu.question import Question, ask, question
from regcache_jax.tpu.roofline import by_kind, counted, kernels

PLUGIN = "jax_cuda12_plugin"
BY_CUBLAS = "--xla_gpu_enable_triton_gemm=false"


def report(
    name_or_spec: str | EncoderSpec,
    target: str = "h100",
    batches: tuple[int, ...] = (32,),
    scheme: Scheme | None = None,
    plan: RegisterPlan | None = None,
    programs: tuple[str, ...] = PROGRAMS,
    triton: bool = True,
) -> dict[str, Any]:
    """Compiles `programs` of an encoder for one of `gpus.GPUS` and returns a row for each at each of `batches`; bytes and seconds are
    those of an image. `triton`: False has all products by cuBLAS.

    Raises UserError for an unknown name or target, and where the compiler (the extra `cuda`) is missing."""
    gpu(target)
    asked = question(name_or_spec, target, programs, batches, scheme, plan)
    if importlib.util.find_spec(PLUGIN) is None:
        raise UserError(f"XLA's GPU compiler is not here; {installing('cuda')} brings it")
    flags = ["--xla_gpu_autotune_level=0", *([] if triton else [BY_CUBLAS])]
    environment = {"XLA_FLAGS": " ".join(flags), "TF_CPP_MIN_LOG_LEVEL": "3"}
    about = f"the GPU compiler gave no answer for {target}"
    rows = ask("regcache_jax.tpu.gpu", asked.to_json(), environment, about, "cuda")
    return {"model": asked.spec.name, "target": target, "programs": rows}


def measure(asked: Question, name: str, batch: int) -> dict[str, Any]:
    """One program at one batch, as a row of the report."""
    image, target = asked.spec.image, gpu(asked.target)
    scheme = asked.scheme if name.startswith("int8") else None
    form = PLAIN if name == "flax-bf16" else form_for("gpu", image, scheme)
    function, weights = program(asked.spec, name, scheme, asked.schedule, form, asked.registers)
    images = jax.ShapeDtypeStruct((batch, *image.picture_shape), jnp.bfloat16)
    described = topologies.get_topology_desc(platform="cuda", target_config=target.description, topology="1x1x1")
    device = NamedSharding(Mesh(np.array(described.devices[:1]), ("data",)), PartitionSpec())
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), (weights, images))
    lowered = jax.jit(function).trace(*placed).lower()
    try:
        library = "cuBLAS" if BY_CUBLAS in os.environ["XLA_FLAGS"] else "Triton"
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # which XLA says of some products as long as nothing is tuned
        if "find output tile sizes" not in str(error):
            raise
        compiled, library = lowered.compile({"xla_gpu_enable_triton_gemm": False}), "cuBLAS"
    found, memory = kernels(compiled.as_text() or ""), compiled.memory_analysis()
    assert memory is not None
    return {
        "program": name,
        "form": form.name,
        "batch": batch,
        "library": library,
        "kernels": len(found),
        "products": counted(found),
        "bytes_per_image": sum(kernel.moved for kernel in found) / batch,
        "seconds_per_image": sum(kernel.seconds(target) for kernel in found) / batch,
        "by_kind": {
            kind: {name: value / batch if name != "kernels" else value for name, value in each.items()}
            for kind, each in by_kind(found, target).items()
        },
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes - images.size * images.dtype.itemsize,
    }


if __name__ == "__main__":
    # the backend of this process is a CPU's, where `attend_flash` would be JAX's own
    ATTENTION["flash"] = functools.partial(attend_flash, implementation="cudnn")
    asked = Question.from_json(json.load(sys.stdin))
    print(json.dumps([measure(asked, name, batch) for name in asked.programs for batch in asked.batches or ()]))
