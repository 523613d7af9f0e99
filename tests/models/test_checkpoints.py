from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Grid, QuantizedTensor
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.encoders.families import siglip_spec
from regcache_jax.models import folder as checkpoints
from regcache_jax.ops.integers import quantize_weight
from regcache_jax.quantization.methods.folding import with_blocks


@pytest.fixture(scope="module")
def encoder():
    spec = siglip_spec("tiny", ("B", 8, 16), vocab=50)
    small = {"width": 16, "num_blocks": 2, "num_heads": 2, "mlp_width": 24}
    spec = dataclasses.replace(
        spec,
        image=dataclasses.replace(spec.image, blocks=dataclasses.replace(spec.image.blocks, **small)),
        text=dataclasses.replace(spec.text, blocks=dataclasses.replace(spec.text.blocks, **small), projection=16),
    )
    return Encoder(init_params(spec, jax.random.key(0)), spec=spec)


def quantized(encoder):
    """Integer kernels in the MLP, a calibrated scale a block, and a plan."""
    blocks = encoder.params.image.blocks
    fc1 = blocks.mlp.fc1.replace(kernel=quantize_weight(blocks.mlp.fc1.floats, 8, (1,)))
    blocks = blocks.with_layers({"fc1": fc1}).with_grids({"fc1": Grid(jnp.asarray([0.1, 0.2], jnp.float32))})
    params = with_blocks(encoder, blocks).params
    rows = jax.random.normal(jax.random.key(1), (2, 1, 2, 8))
    plan = make_plan(rows, rows + 1, copies=2.5, start=1, delete_block=1, delete_count=1)
    return encoder.replace(params=params, scheme=Scheme(float_sites=("qkv", "out", "fc2"))).with_plan(plan)


def assert_same(tree, wanted):
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs, strict=True), tree, wanted)


@pytest.mark.slow
def test_a_float_encoder_comes_back_bit_equal(tmp_path, encoder):
    model = checkpoints.load(checkpoints.save(tmp_path / "m", encoder, metadata={"source": "here"}))
    assert_same(model.encoder, encoder)
    assert model.metadata["source"] == "here"


@pytest.mark.slow
def test_a_quantised_encoder_comes_back_with_integers_scales_scheme_and_plan(tmp_path, encoder):
    wanted = quantized(encoder)
    model = checkpoints.load(checkpoints.save(tmp_path / "m", wanted))
    assert isinstance(model.encoder.params.image.blocks.mlp.fc1.kernel, QuantizedTensor)
    assert_same(model.encoder, wanted)
    assert model.encoder.scheme == wanted.scheme and model.encoder.schedule == wanted.schedule


@pytest.mark.slow
def test_bfloat16_storage_casts_float_weights_and_leaves_scales_alone(tmp_path, encoder):
    model = checkpoints.load(checkpoints.save(tmp_path / "m", quantized(encoder), dtype=jnp.bfloat16))
    blocks = model.encoder.params.image.blocks
    assert blocks.norm1.scale.dtype == jnp.bfloat16
    assert blocks.mlp.fc1.kernel.scale.dtype == jnp.float32 and blocks.grids.fc1.scale.dtype == jnp.float32


@pytest.mark.devices
def test_a_folder_is_restored_onto_the_sharding_asked_for(tmp_path, encoder):
    checkpoints.save(tmp_path / "m", encoder)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    leaf = checkpoints.load(tmp_path / "m", sharding=everywhere).encoder.params.image.position_embedding
    assert leaf.sharding.is_equivalent_to(everywhere, leaf.ndim) and len(leaf.devices()) == len(jax.devices())
    one = checkpoints.load(tmp_path / "m").encoder.params.logit_scale
    assert len(one.devices()) == 1


@pytest.mark.devices
def test_a_sharded_mesh_takes_its_share_of_every_parameter_that_can_be_shared(tmp_path, encoder):
    checkpoints.save(tmp_path / "m", encoder)
    mesh = Mesh(np.array(jax.devices()).reshape(-1, 2), ("data", "model"))

    def by_last_axis(path, leaf):
        shared = path.endswith("kernel") and leaf.shape[-1] % 2 == 0
        return NamedSharding(
            mesh, PartitionSpec(*[None] * (len(leaf.shape) - 1), "model") if shared else PartitionSpec()
        )

    ours = checkpoints.load(tmp_path / "m", sharding=by_last_axis).encoder
    kernel = ours.params.image.blocks.mlp.fc1.kernel
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 12)}
    assert_same(jax.tree.map(np.asarray, ours), jax.tree.map(np.asarray, encoder))


def test_the_same_encoder_is_the_same_bytes_wherever_and_whenever_it_is_written(tmp_path, encoder):
    for name in ("here", "there"):
        checkpoints.save(tmp_path / name / "m", encoder)
    here, there = (
        {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("here", "there")
    )
    assert here == there and not [file for file, content in here.items() if str(tmp_path).encode() in content]


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path, encoder):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/mine").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        checkpoints.save(tmp_path / "m", encoder)
    assert [file.name for file in tmp_path.rglob("*")] == ["m", "mine"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, encoder):
    with pytest.raises(FileNotFoundError):
        checkpoints.save(tmp_path / "m", encoder, tokenizer_files=[tmp_path / "absent.json"])
    assert list(tmp_path.iterdir()) == []


def test_text_without_tokenizer_files_says_how_to_add_them(tmp_path, encoder):
    model = checkpoints.load(checkpoints.save(tmp_path / "m", encoder))
    with pytest.raises(UserError, match=r"has no tokenizer \(.*\); convert it again with --tokenizer"):
        _ = model.tokenize
    assert model.preprocess(Image.new("RGB", (9, 5))).shape == (16, 16, 3)


def edit(folder, change):
    """Changes a description of version 0.1.0, which holds no hashes."""
    file = folder / "encoder.json"
    description = json.loads(file.read_text()) | {"format_version": 1}
    description["parameter_files"] = {
        name.removeprefix("params/"): size
        for name, (size, _) in description.pop("sealed_files").items()
        if name.startswith("params/")
    }
    del description["sha256"]
    change(description)
    file.write_text(json.dumps(description))


FAULTS = {
    "no folder": (lambda m: m.rename(m.with_name("gone")), "there is no model folder"),
    "no description": (lambda m: (m / "encoder.json").unlink(), "is not a model folder: it has no encoder.json"),
    "cut description": (lambda m: (m / "encoder.json").write_text('{"spec": '), "is not readable JSON"),
    "another format": (lambda m: edit(m, lambda d: d.update(format_version=9)), "has format version 9"),
    "no spec": (lambda m: edit(m, lambda d: d.pop("spec")), "encoder.json: spec: field required"),
    "strange spec": (lambda m: edit(m, lambda d: d["spec"].update(colour=1)), "unknown fields .'colour'"),
    "another width": (
        lambda m: edit(m, lambda d: d["spec"]["image"]["blocks"].update(mlp_width=25)),
        r"does not fit its spec: .*image/blocks/mlp/fc1/kernel is \[2, 16, 24\], expected \[2, 16, 25\]; ",
    ),
    "leaf not listed": (
        lambda m: edit(m, lambda d: d["parameters"].pop("logit_scale")),
        "does not fit its spec: logit_scale is missing",
    ),
    "leaf not known": (
        lambda m: edit(m, lambda d: d["parameters"].update(extra=["float32", [2]])),
        "does not fit its spec: extra is not known",
    ),
    "impossible sizes": (
        lambda m: edit(m, lambda d: d["spec"]["image"]["blocks"].update(num_heads=0)),
        "impossible sizes|does not describe",
    ),
    "no parameters": (lambda m: (m / "params").rename(m / "other"), "m is damaged or incomplete: params/.* is missing"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_a_spoilt_folder_gets_one_message_that_names_it(tmp_path, encoder, spoil, message):
    folder = tmp_path / "m"
    checkpoints.save(folder, encoder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        checkpoints.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_piece_of_an_array_that_is_cut_or_gone_is_named_and_not_taken_for_zeros(tmp_path, encoder, damage):
    folder = tmp_path / "m"
    checkpoints.save(folder, encoder)
    piece = folder / "params/image.blocks.mlp.fc1.kernel/0.0.0"
    content = piece.read_bytes()
    piece.unlink()
    if damage == "cut":
        piece.write_bytes(content[:10])
    reason = f"has 10 of {len(content)} bytes" if damage == "cut" else "is missing"
    with pytest.raises(
        UserError, match=f"m is damaged or incomplete: params/image.blocks.mlp.fc1.kernel/0.0.0 {reason}; copy"
    ):
        checkpoints.load(folder)
