"""The exported file: the same bits in a fresh process, int8 inside, and nothing of this project needed to run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from etils import epath
from jax import export as stablehlo
from jax.extend.backend import get_backend, get_compile_options
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo as dialect

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing
from regcache_jax.encoders.encoder import Encoder, encode_image, init_params
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.files.identity import sha256
from regcache_jax.models.export import Program, export, export_again, facts_file, load
from regcache_jax.quantization.quantize import quantize

IMAGE = ImageSpec(24, 8, BlockSpec(64, 2, 4, 256, "gelu", 1e-6), class_token=True, pooling="map")
CPU = Program(("cpu",))
SPEC = EncoderSpec("small", "siglip", IMAGE, Preprocessing(24, "squash", "bicubic", 24, HALF, HALF))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (5, 24, 24, 3))


@pytest.fixture(scope="module")
def encoder(images) -> Encoder:
    rows = jax.random.normal(jax.random.key(2), (2, 2, 1, 4, 16))
    plan = make_plan(*rows, copies=3.0, start=1, delete_block=1, delete_count=3)
    return quantize(Encoder(init_params(SPEC, jax.random.key(0)), spec=SPEC), images, Scheme(), plan)


@pytest.fixture(scope="module")
def artefact(encoder, tmp_path_factory) -> Path:
    (path,) = export(encoder, tmp_path_factory.mktemp("export") / "small.stablehlo", Program(micro_batch=24))
    return Path(path)


@pytest.mark.slow
def test_the_loader_in_the_docs_gives_the_same_bits_in_a_fresh_process(artefact, images, tmp_path):
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    (loader,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "regcache" not in loader and len(loader.splitlines()) <= 20
    (tmp_path / "loader.py").write_text(loader)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "loader.py", str(artefact), "images.npy", "features.npy"]
    # one device there; the bits are those of one compiler with the same options
    flags = os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=1")
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "XLA_FLAGS": flags})
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), load(artefact)(images))


@pytest.mark.slow
def test_the_artefact_agrees_with_the_encoder_it_was_made_from(artefact, encoder, images):
    ours = encode_image(encoder, images)
    # the same integers but where a float sum in another order crosses a rounding boundary; features have unit length
    np.testing.assert_allclose(load(artefact)(images), ours, atol=1e-2)


@pytest.mark.slow
def test_an_artefact_for_a_chip_has_its_form_says_so_and_gives_the_same_features(encoder, images, tmp_path):
    (path,) = export(encoder, tmp_path / "v5e.stablehlo", Program(("cpu", "tpu"), chip="v5e"))
    facts = json.loads(Path(facts_file(path)).read_text())
    assert facts["form"] == {"chip": "v5e", "is": "kept, folded probe"}
    # one step of 1/127 where a sum in another order crosses a rounding boundary
    np.testing.assert_allclose(load(path)(images), encode_image(encoder, images), atol=1e-2)
    export_again(encoder, path)
    assert json.loads(Path(facts_file(path)).read_text())["form"] == facts["form"]


@pytest.mark.slow
def test_a_tower_that_pools_nothing_gives_its_patches(tmp_path):
    tower = quantize(small.encoder("tower").with_plan(small.plan(delete_count=2)), small.images(3), Scheme())
    (artefact,) = export(tower, tmp_path / "tower.stablehlo", CPU)
    facts = json.loads((tmp_path / "tower.stablehlo.json").read_text())
    assert facts["output"] == {"shape": ["batch", 16, 24], "dtype": "float32", "unit_length": False}
    patches = np.asarray(encode_patches(tower, small.images(2)))
    # the same integers but where a float sum in another order crosses a rounding boundary
    np.testing.assert_allclose(load(artefact)(small.images(2)), patches, atol=1e-2 * np.abs(patches).max())


@pytest.mark.slow
def test_any_batch_size_gives_the_same_features_for_an_image(artefact, images):
    features = load(artefact)
    np.testing.assert_allclose(
        features(images[:2]), features(images)[:2], atol=1e-6
    )  # other tiles of the float products


@pytest.mark.slow
def test_the_program_multiplies_int8_by_int8_on_every_platform(artefact):
    exported = stablehlo.deserialize(bytearray(artefact.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    products = [line for line in text.splitlines() if "dot_general" in line and "xi8>" in line]
    # six a block, written once for every platform: the CPU's program has no padding rows
    assert len(products) % (6 * IMAGE.blocks.num_blocks) == 0 and products
    assert all("xi32>" in line for line in products)


@pytest.mark.slow
def test_uint8_pictures_of_several_batch_sizes_give_bfloat16_features_and_portable_bytecode(encoder, tmp_path):
    program = Program(("cpu",), pictures=(40, 31), outputs="bfloat16", bytecode=True)
    paths = export(encoder, tmp_path / "small.stablehlo", program, (1, 3))
    assert [path.name for path in paths] == ["small.b1.stablehlo", "small.b3.stablehlo"]
    facts = json.loads(facts_file(paths[1]).read_text())
    assert facts["input"] == {"shape": [3, 40, 31, 3], "dtype": "uint8"} and facts["output"]["dtype"] == "bfloat16"
    assert facts["preprocessed_inside_within"] == 1e-5
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 31, 3), np.uint8)
    features = load(paths[1])(pictures)
    assert features.dtype == jnp.bfloat16
    prepared = np.stack([preprocess(picture, SPEC.preprocessing) for picture in pictures])
    # one step of 1/127 where a float in another order crosses a rounding boundary, and bfloat16's eight bits
    np.testing.assert_allclose(features.astype(np.float32), encode_image(encoder, prepared), atol=1e-2)

    bytecode = tmp_path / "small.b3.stablehlo.mlirbc"
    assert sha256(bytecode.read_bytes()) == facts["bytecode_sha256"]
    with ir.Context() as context:
        dialect.register_dialect(context)
        module = str(dialect.deserialize_portable_artifact(context, bytecode.read_bytes()))
    backend = get_backend()
    compiled = backend.compile_and_load(module, backend.local_devices()[:1], get_compile_options(1, 1))
    (found,) = compiled.execute([jax.device_put(pictures)])
    np.testing.assert_array_equal(found, features)

    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    export_again(encoder, paths[1])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_metadata_beside_the_artefact_says_how_to_feed_it(artefact):
    facts = json.loads(artefact.with_name(artefact.name + ".json").read_text())
    assert facts["input"] == {"shape": ["batch", 24, 24, 3], "dtype": "float32"}
    assert facts["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert facts["micro_batch"] == 24 and facts["form"] == {"chip": None, "is": "slot"}
    assert facts["scheme"]["weight_bits"] == 8 and facts["schedule"]["delete_count"] == 3


@pytest.mark.slow
def test_float_and_bfloat16_encoders_export_too(tmp_path, images):
    encoder = Encoder(init_params(SPEC, jax.random.key(0)), spec=SPEC)
    (path,) = export(encoder, tmp_path / "float.stablehlo", CPU)
    np.testing.assert_allclose(load(path)(images), encode_image(encoder, images), atol=1e-5)  # padded rows, other order
    (half,) = export(encoder.astype(jnp.bfloat16), tmp_path / "bf16.stablehlo", CPU)
    np.testing.assert_allclose(load(half)(images), encode_image(encoder, images), atol=0.05)  # 8 bits of mantissa
    assert half.stat().length < 0.6 * path.stat().length


def test_bad_platforms_existing_files_and_other_files_are_refused_with_one_message(encoder, artefact, tmp_path):
    with pytest.raises(UserError, match="platforms are cpu, cuda, rocm, tpu; got abacus"):
        Program(("abacus",))
    with pytest.raises(UserError, match="exists"):
        export(encoder, artefact)
    for program, batches in ((Program(bytecode=True), (8,)), (Program(("cpu",), bytecode=True), ())):
        with pytest.raises(UserError, match="bytecode is of one batch size and one platform"):
            export(encoder, tmp_path / "x", program, batches)
    (tmp_path / "x").write_text("not an artefact")
    with pytest.raises(UserError, match=r"x\.json cannot be read: No such file"):
        load(tmp_path / "x")
    facts = artefact.with_name(artefact.name + ".json")
    (tmp_path / "x.json").write_bytes(facts.read_bytes())
    with pytest.raises(UserError, match="are not as `regcache export` wrote them"):
        load(tmp_path / "x")
    (tmp_path / "x").write_bytes(artefact.read_bytes())
    (tmp_path / "x.json").write_text(facts.read_text().replace("0.5", "0.4"))
    with pytest.raises(UserError, match="are not as `regcache export` wrote them"):
        load(tmp_path / "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x", "x.json"]


@pytest.mark.slow
def test_files_name_no_source_and_are_the_same_bytes_wherever_they_are_written(encoder, tmp_path, monkeypatch):
    first = export(encoder, tmp_path / "here.stablehlo", CPU)[0].read_bytes()
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    jax.clear_caches()  # lowered anew, and called from elsewhere
    assert export(encoder, "a.stablehlo", CPU)[0].read_bytes() == first
    assert not re.search(rb"[\w/-]+\.py\b", first)
    assert str(tmp_path).encode() not in first


@pytest.mark.slow
def test_a_file_that_has_expired_is_written_again_from_its_encoder_and_from_no_other(encoder, artefact, tmp_path):
    path = tmp_path / "small.stablehlo"
    path.write_bytes(b"of a JAX that is gone")
    facts_file(epath.Path(path)).write_bytes(facts_file(epath.Path(artefact)).read_bytes())
    export_again(encoder, path)
    assert (
        path.read_bytes() == artefact.read_bytes()
        and facts_file(epath.Path(path)).read_bytes() == facts_file(epath.Path(artefact)).read_bytes()
    )
    with pytest.raises(UserError, match="was made from another encoder: schedule differ"):
        export_again(encoder.with_plan(None), path)
    facts_file(epath.Path(path)).write_text(facts_file(epath.Path(path)).read_text().replace("24", "32"))
    with pytest.raises(UserError, match="its hash differs"):
        export_again(encoder, path)
