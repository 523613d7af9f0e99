"""The Triton model: `model.py` as the server runs it, its utilities played by a stand-in of the documented interface."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.models.export import Program
from regcache_jax.models.triton import export_triton
from regcache_jax.quantization.quantize import quantize

PROGRAM = Program(("cpu",), pictures=(20, 30))


@dataclasses.dataclass
class Tensor:
    """Passes arrays by DLPack alone: the real one's `as_numpy` is wrong beside NumPy 2 where the server is older."""

    name: str
    values: np.ndarray

    @classmethod
    def from_dlpack(cls, name: str, values: np.ndarray) -> Tensor:
        return cls(name, np.from_dlpack(values) if isinstance(values, np.ndarray) else jnp.from_dlpack(values))

    def __dlpack__(self, **how):
        return self.values.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class TritonModelException(Exception):
    pass


@dataclasses.dataclass
class TritonError:
    message: str


@dataclasses.dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def features(self) -> np.ndarray:
        assert self.error is None and [tensor.name for tensor in self.output_tensors] == ["features"]
        return self.output_tensors[0].values


@pytest.fixture
def utilities(monkeypatch):
    module = types.ModuleType("triton_python_backend_utils")
    for kind in (Tensor, TritonModelException, TritonError, InferenceResponse):
        setattr(module, kind.__name__, kind)
    module.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def serve(version: Path):
    """A model as the server starts it, with the arguments that it gives."""
    spec = importlib.util.spec_from_file_location("model", version / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = (version.parent / "config.pbtxt").read_text()
    sizes = json.loads(re.search(r"preferred_batch_size: (\[.*?\])", config)[1])
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps({"dynamic_batching": {"preferred_batch_size": sizes}}),
            "model_repository": str(version.parent),
            "model_version": version.name,
        }
    )
    return model


def request(images: np.ndarray) -> dict[str, Tensor]:
    return {"images": Tensor("images", images)}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return quantize(small.encoder("siglip"), small.images(3), Scheme())


@pytest.fixture(scope="module")
def version(encoder, tmp_path_factory) -> Path:
    return Path(export_triton(encoder, tmp_path_factory.mktemp("repository") / "small", PROGRAM, (4, 1)))


@pytest.mark.slow
def test_the_configuration_says_what_goes_in_and_out_and_how_requests_are_gathered(version):
    assert (version.parent / "config.pbtxt").read_text() == (
        'name: "small"\n'
        'backend: "python"\n'
        "max_batch_size: 4\n"
        'input [ { name: "images" data_type: TYPE_UINT8 dims: [20, 30, 3] } ]\n'
        'output [ { name: "features" data_type: TYPE_FP32 dims: [24] } ]\n'
        "dynamic_batching { preferred_batch_size: [1, 4] max_queue_delay_microseconds: 2000 }\n"
        "instance_group [ { kind: KIND_MODEL count: 1 } ]\n"
    )
    assert {entry.name for entry in version.iterdir()} == {"model.py", "program.stablehlo", "program.stablehlo.json"}


@pytest.mark.slow
def test_requests_of_any_size_are_run_together_and_each_gets_its_own_features_or_error(version, encoder, utilities):
    model, pictures = serve(version), np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
    thin, wide = request(pictures[:1, :8]), request(pictures[:1].astype(np.float32))
    two, wrong, four, wrong_too = model.execute([request(pictures[:2]), thin, request(pictures[2:]), wide])
    wanted = encode_image(encoder, np.stack([preprocess(each, encoder.spec.preprocessing) for each in pictures]))
    # one step of 1/127 where a float sum in another order crosses a rounding boundary
    np.testing.assert_allclose(np.concatenate([two.features(), four.features()]), wanted, atol=1e-2)
    assert wrong.error.message == "a picture must be uint8 [20, 30, 3], got uint8 [8, 30, 3]"
    assert wrong_too.error.message == "a picture must be uint8 [20, 30, 3], got float32 [20, 30, 3]"

    model.program = lambda images: np.full((len(images), 24), np.nan, np.float32)
    (lost,) = model.execute([request(pictures[:1])])
    assert "features are not finite" in lost.error.message
    model.program = lambda images: 1 / 0
    failed, refused = model.execute([request(pictures[:1]), thin])
    assert (failed.error.message, refused.error) == ("the program failed: division by zero", wrong.error)
    assert [each.error for each in model.execute([thin])] == [wrong.error]
    model.finalize()


def test_a_program_that_was_changed_is_not_run(version, utilities, tmp_path):
    changed = Path(shutil.copytree(version.parent, tmp_path / "changed")) / "1"
    program = bytearray((changed / "program.stablehlo").read_bytes())
    program[len(program) // 2] ^= 1
    (changed / "program.stablehlo").write_bytes(program)
    with pytest.raises(TritonModelException, match=r"program.stablehlo is not what was exported: its hash differs"):
        serve(changed)


@pytest.mark.slow
def test_the_next_version_lies_beside_the_first_and_another_program_is_refused(version, encoder):
    with pytest.raises(UserError, match=r"small is there, and its config.pbtxt is not this program's"):
        export_triton(encoder, version.parent, PROGRAM, (2,))
    second = Path(export_triton(encoder, version.parent, PROGRAM, (1, 4)))
    assert second.name == "2" and {entry.name for entry in version.parent.iterdir()} == {"1", "2", "config.pbtxt"}
    for name in ("model.py", "program.stablehlo", "program.stablehlo.json"):
        assert (second / name).read_bytes() == (version / name).read_bytes()


@pytest.mark.slow
def test_features_in_bfloat16_pass_by_dlpack(encoder, utilities, tmp_path):
    version = Path(export_triton(encoder, tmp_path / "half", dataclasses.replace(PROGRAM, outputs="bfloat16"), (2,)))
    assert "data_type: TYPE_BF16 dims: [24]" in (version.parent / "config.pbtxt").read_text()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    one, two = serve(version).execute([request(pictures[:1]), request(pictures[1:])])
    assert one.features().dtype == two.features().dtype == jnp.bfloat16
    wanted = encode_image(encoder, np.stack([preprocess(each, encoder.spec.preprocessing) for each in pictures]))
    found = np.concatenate([one.features(), two.features()]).astype(np.float32)
    np.testing.assert_allclose(found, wanted, atol=2e-2)  # as above, and half a step of 2**-8


def test_a_triton_model_has_no_bytecode(encoder, tmp_path):
    with pytest.raises(UserError, match="needs no --bytecode"):
        export_triton(encoder, tmp_path / "x", dataclasses.replace(PROGRAM, bytecode=True))
    assert list(tmp_path.iterdir()) == []
