"""One encoder on this machine's CPU: ours in float32, bf16 and int8, beside transformers in float32 and ONNX Runtime's dynamic int8.

    python benchmarks/cpu.py [--rounds 5] [--batch 8] [--blocks 12] [--json FILE]
    python benchmarks/cpu.py --products        # one product of the MLP in each type: operations a second, and who multiplies; seconds

A random CLIP ViT-B/16 image tower, the same weights everywhere, on one core. The programs take turns, a batch each, and what counts is the
seconds of the processor, not of the clock: so other work on the machine disturbs little, and no thread waits for another. The figure of
one is the median over the rounds of its time beside transformers' in the same round. Speed and nearness to float alone: a random encoder
has no accuracy. Without `onnxruntime` (and `onnx`, `onnxscript`) its row is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Program = Callable[[np.ndarray], np.ndarray]
INT8 = {
    "ours int8, static scales": {},
    "ours int8, scales a token": {"activations": "token"},
}


def transformers_program(blocks: int, folder: Path) -> tuple[Program, object]:
    """transformers' tower, drawn and saved for ours to be converted from."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        patch_size=16, num_hidden_layers=blocks, hidden_act="quick_gelu", projection_dim=512
    )
    network = transformers.CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(folder)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).image_embeds
        return torch.nn.functional.normalize(features, dim=-1).numpy()

    return run, network


def onnx_program(network: object, folder: Path, batch: int) -> Program:
    """ONNX Runtime's dynamic quantisation of the same tower: int8 weights, scales of the activations measured as they pass."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, quantised = folder / "tower.onnx", folder / "tower.int8.onnx"
    example = torch.zeros(batch, 3, 224, 224)

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels).image_embeds

    torch.onnx.export(Features().eval(), (example,), str(plain), input_names=["pixels"], dynamo=False)
    quantize_dynamic(plain, quantised, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        features = session.run(None, {"pixels": images.transpose(0, 3, 1, 2).copy()})[0]
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    return run


def our_programs(folder: Path, images: np.ndarray) -> dict[str, Program]:
    """Ours, compiled."""
    import jax
    import jax.numpy as jnp

    import regcache_jax as rc

    encoder = rc.load(rc.convert(str(folder), folder / "ours")).encoder
    encoders = {"ours float32": encoder, "ours bf16": encoder.astype(jnp.bfloat16)}
    for name, options in INT8.items():
        encoders[name] = rc.quantize(encoder, images, rc.Scheme.named("w8a8", **options))

    encode = jax.jit(
        rc.encode_image
    )  # weights are an argument: as constants they would be computed with when it is compiled

    def program(encoder: rc.Encoder) -> Program:
        return lambda batch: np.asarray(encode(encoder, jnp.asarray(batch, encoder.dtype)))

    return {name: program(each) for name, each in encoders.items()}


def product_rates(rounds: int) -> None:
    """Prints what XLA makes of a product of four pictures' tokens, 784 x 768 x 3072, by type and layout of the kernel."""
    import jax
    import jax.numpy as jnp

    rng, operations = np.random.default_rng(0), 2 * 784 * 768 * 3072
    rows, kernel = (rng.integers(0, 128, shape).astype(np.int8) for shape in ((784, 768), (768, 3072)))
    cases = {  # rows, kernel, what both are turned into inside the program (None: nothing), sums
        "float32": (rows.astype(jnp.float32), kernel.astype(jnp.float32), None, jnp.float32),
        "bf16, sums in float32": (rows.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), None, jnp.float32),
        "int8, sums in int32": (rows, kernel, None, jnp.int32),
        "int8, kernel [out, in]": (rows, kernel.T, None, jnp.int32),
        "uint8 by int8": (rows.astype(np.uint8), kernel, None, jnp.int32),
        "int8 turned into bf16": (rows, kernel, jnp.bfloat16, jnp.float32),
    }
    print("product\tGop a processor second\tby")
    for name, (left, right, inside, sums) in cases.items():
        arrays = [jnp.asarray(each) for each in (left, right)]

        def multiply(left, right, inside=inside, sums=sums):
            axes = (((1,), (right.shape.index(768),)), ((), ()))
            left, right = (each.astype(inside or each.dtype) for each in (left, right))
            return jax.lax.dot_general(left, right, axes, preferred_element_type=sums)

        run = jax.jit(multiply).lower(*arrays).compile()
        by = "YNNPACK" if "__ynn_fusion" in (run.as_text() or "") else "XLA's own loop"
        taken = []
        for _ in range(rounds + 1):
            began = time.process_time()
            jax.block_until_ready(run(*arrays))
            taken.append(time.process_time() - began)
        print(f"{name}\t{operations / min(taken[1:]) / 1e9:.0f}\t{by}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rounds", 5), ("batch", 8), ("blocks", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json")
    parser.add_argument("--products", action="store_true")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before a library counts the cores
    if given.products:
        return product_rates(given.rounds)
    images = np.random.default_rng(0).standard_normal((given.batch, 224, 224, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        theirs, network = transformers_program(given.blocks, folder)
        programs = {"transformers float32": theirs, **our_programs(folder, images)}
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
            programs["ONNX Runtime int8, dynamic"] = onnx_program(network, folder, given.batch)
        exact = {name: run(images) for name, run in programs.items()}  # compiles, and is not timed
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(given.rounds):
            for name, run in programs.items():
                began = time.process_time()
                run(images)
                seconds[name].append(time.process_time() - began)
    base = seconds["transformers float32"]
    print("program\ttime beside transformers float32\tcosine to it")
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(own / other for own, other in zip(taken, base, strict=True))
        cosine = float(np.mean(np.sum(exact[name] * exact["transformers float32"], axis=1)))
        rows.append({"program": name, "ratio": ratio, "cosine": cosine, "seconds": taken})
        print(f"{name}\t{ratio:.2f}\t{cosine:.5f}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps({"rows": rows, **vars(given)}, indent=1))


if __name__ == "__main__":
    main()
