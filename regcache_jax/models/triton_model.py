"""An exported encoder in Triton's Python back end: the program beside this file and JAX, nothing else.

`regcache export --triton` copies this file into a model repository, where the server imports it; docs/export.md says more. Arrays pass by
DLPack: `as_numpy` and `Tensor(name, array)` of servers that were built for NumPy 1 give wrong values beside NumPy 2, without a word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import triton_python_backend_utils as pb_utils
from jax import export


class TritonPythonModel:
    """The server's interface: `initialize` once, `execute` with as many requests as it has gathered, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the program and compiles it for the batch sizes of config.pbtxt. Raises TritonModelException where it is not the program
        that was exported."""
        folder = Path(args["model_repository"]) / args["model_version"]
        program = (folder / "program.stablehlo").read_bytes()
        facts = json.loads((folder / "program.stablehlo.json").read_text())
        if hashlib.sha256(program).hexdigest() != facts["program_sha256"]:
            raise pb_utils.TritonModelException(
                f"{folder}/program.stablehlo is not what was exported: its hash differs"
            )
        self.shape, self.dtype = tuple(facts["input"]["shape"][1:]), np.dtype(facts["input"]["dtype"])
        self.host = jax.devices("cpu")[0] if facts["output"]["dtype"] != "float32" else None
        self.sizes = sorted(json.loads(args["model_config"])["dynamic_batching"]["preferred_batch_size"])
        self.program = jax.jit(export.deserialize(bytearray(program)).call)
        for size in self.sizes:
            self.features(np.zeros((size, *self.shape), self.dtype))

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """An answer for each request: its features, or what is wrong with it."""
        images = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "images")) for request in requests]
        wanted = f"{self.dtype} {list(self.shape)}"
        kinds = [f"{each.dtype} {list(each.shape[1:])}" for each in images]
        answers = iter(self.answers([each for each, kind in zip(images, kinds, strict=True) if kind == wanted]))
        return [
            next(answers) if kind == wanted else self.refused(f"a picture must be {wanted}, got {kind}")
            for kind in kinds
        ]

    def answers(self, images: list[np.ndarray]) -> list[pb_utils.InferenceResponse]:
        """Features of several requests' pictures, run together."""
        if not images:
            return []
        try:
            features = self.features(np.concatenate(images))
        except Exception as error:  # whatever JAX raises, every request has its answer
            return [self.refused(f"the program failed: {error}") for _ in images]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("features", self.passed(own))])
            if np.isfinite(own).all()
            else self.refused("features are not finite: a picture holds NaN, or values far too large")
            for own in np.split(features, np.cumsum([len(each) for each in images])[:-1])
        ]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Runs pictures in batches of the sizes that are compiled, the last one filled up with its last picture."""
        parts = []
        for start in range(0, len(images), self.sizes[-1]):
            part = images[start : start + self.sizes[-1]]
            size = next(size for size in self.sizes if size >= len(part))
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(np.asarray(self.program(filled))[: len(part)])
        return np.concatenate(parts)

    def passed(self, features: np.ndarray) -> np.ndarray | jax.Array:
        """What the server can take by DLPack: NumPy passes no bfloat16, an array of JAX on the host does."""
        return features if features.dtype == np.float32 else jax.device_put(features, self.host)

    def refused(self, message: str) -> pb_utils.InferenceResponse:
        """An answer that says what is wrong."""
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))

    def finalize(self) -> None:
        """Lets the program go."""
        del self.program
