"""The Python of docs/own.md runs as it stands there, in a module of one's own, from Python and from the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small
from PIL import Image
from regcache_jax.converters import Format

import regcache_jax as rc
from regcache_jax import converters
from regcache_jax.core import objective, registry
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.evaluation import tasks
from regcache_jax.evaluation.job import Task
from regcache_jax.quantization.methods import table
from regcache_jax.quantization.methods.method import Method

PIECES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "own.md").read_text(), re.DOTALL)
SPEC = rc.EncoderSpec(
    "acme", "vit", rc.ImageSpec(16, 4, small.BLOCKS, class_token=True, pooling="class"), small.PICTURE, normalize=False
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A folder with `mine.py`; what it registers is gone afterwards."""
    from regcache_jax.converters.conversion import FORMATS

    (tmp_path / "mine.py").write_text("\n\n".join(PIECES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = [table.METHODS, tasks.TASKS, objective.OWN, registry.ADDED["task"], registry.ADDED["objective"], FORMATS]
    before = [each.copy() for each in tables]
    yield tmp_path
    for each, old in zip(tables, before, strict=True):
        each.clear()
        each.update(old) if isinstance(each, dict) else each.extend(old)
    sys.modules.pop("mine", None)


@pytest.mark.slow
def test_an_encoder_a_method_an_objective_and_a_task_of_ones_own_go_the_whole_way(module, regcache):
    registry.load_modules(["mine"])
    blocks = rc.BlockSpec(32, 3, 2, 48, "gelu", 1e-6)
    spec = rc.EncoderSpec("acme", "vit", rc.ImageSpec(16, 4, blocks, True, "class"), small.PICTURE, normalize=False)
    encoder = Encoder(init_params(spec, jax.random.key(0)), spec=spec)
    converters.write(encoder, "Acme", module / "acme.safetensors")
    assert "layer.2.qkv.weight" in safetensors.numpy.load_file(module / "acme.safetensors")
    (module / "pictures").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(module / "pictures" / f"{number:02d}.png")
    pictures = ("--dataset", "folder", "--data-dir", "pictures")
    assert regcache("--with", "mine", "convert", "acme.safetensors", "--out", "acme")[0] == 0
    images = small.images(2)
    np.testing.assert_array_equal(rc.encode_image("acme", images), rc.encode_image(encoder, images))
    status, _, error = regcache("--with", "mine", "quantize", "acme", *pictures, "--method", "tight", "--out", "int8")
    assert status == 0, error
    status, _, error = regcache(
        "--with", "mine", "evaluate", "acme", "int8", *pictures, "--task", "spread", "--json", "rows.json"
    )
    assert status == 0, error
    exact, rounded = json.loads(Path("rows.json").read_text())
    assert exact["task"] == "spread" and 0 < exact["metrics"]["spread"] < 1
    assert rounded["quantization"]["method"] == "tight" and rounded["metrics"]["cosine"] > 0.99
    quick = {"objective": "worst-patch", "sensitive_block": 1, "copies": (2.0,), "draws": 2, "rounds": 0, "chunk": 6}
    result = rc.search(encoder, np.asarray(small.images(6)), "w8a8", quick)
    assert rc.SearchConfig(objective="worst-patch").objective is sys.modules["mine"].worst_patch
    assert result.plan.num_blocks == 3


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: converters.register(Format("timm ViT", ("x",), (), lambda given: SPEC)), "there is a layout 'timm ViT' already"),
        (lambda: converters.register(Format("Acme", (), (), lambda given: SPEC)), "needs marks"),
        (lambda: table.register(Method("gptq", "again")), "there is a method gptq already"),
        (lambda: table.register(Method("rtn", "again")), "rtn is rounding to the nearest"),
        (lambda: tasks.register("knn", Task(print)), "there is a task knn already"),
        (lambda: objective.register("pooled", print), "there is an objective pooled already"),
        (lambda: objective.register("two words", print), "called by letters, digits"),
        (lambda: registry.load_modules(["gremlins"]), "there is no module gremlins, neither installed nor in this folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_is_refused(module, register, message):
    with pytest.raises(rc.UserError, match=message):
        register()


def test_a_module_that_there_is_not_ends_a_command_in_one_line(module, regcache):
    status, _, error = regcache("--with", "gremlins", "models")
    assert status == 1 and error.startswith("regcache: there is no module gremlins")
