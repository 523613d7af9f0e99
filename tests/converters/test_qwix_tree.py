"""Qwix's arrays and ours are the same numbers: written, read, and multiplied by Qwix itself."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import qwix
import small
from regcache_jax.converters.qwix_tree import from_qwix, to_qwix

from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.core.names import to_names, to_tree
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.models.folder import load, save
from regcache_jax.ops.integers import quantize as to_integers
from regcache_jax.ops.integers import quantized_dense
from regcache_jax.quantization.quantize import quantize

MEASURED = Scheme(activations="token")


@pytest.mark.slow
def test_qwix_multiplies_our_kernels_to_our_products():
    encoder = quantize(small.encoder("siglip"), None, MEASURED)
    kernel = to_qwix(encoder)["image"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert isinstance(kernel, qwix.QArray) and kernel.zero_point is None
    weight = encoder.params.image.blocks.mlp.fc1.kernel
    np.testing.assert_array_equal(qwix.dequantize(kernel), weight.dequantize())
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 24)), jnp.float32)
    rounded, _ = to_integers(inputs, 8, (2,))
    first = jax.tree.map(lambda leaf: leaf[0], weight)
    with jax.numpy_dtype_promotion("standard"):  # Qwix multiplies int32 sums by float32 scales
        theirs = qwix.dot_general(
            qwix.QArray(rounded.values, rounded.scale), qwix.QArray(first.values, first.scale), (((2,), (0,)), ((), ()))
        )
    (ours,) = quantized_dense(inputs, (first,), None, 8, 1, True)
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)  # the same sums; the two scales one after the other


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Scheme(), Scheme.named("w4a8", activations="token"), None])
def test_a_folder_is_written_and_converted_to_the_same_encoder(regcache, scheme, tmp_path):
    encoder = small.encoder("clip with text")
    encoder = encoder if scheme is None else quantize(encoder, small.images(2), scheme)
    (tmp_path / "tokenizer.json").write_text("{}")
    save(tmp_path / "model", encoder, tokenizer_files=[tmp_path / "tokenizer.json"])
    assert regcache("convert", tmp_path / "model", "--to", "qwix", "--out", tmp_path / "tree")[0] == 0
    command = ("convert", tmp_path / "tree", "--out", tmp_path / "again")
    assert regcache(*command, "--dtype", "bfloat16")[2].endswith("only --out and --tokenizer go with it\n")
    status, said, _ = regcache(*command, "--dry-run")
    assert status == 0 and said == f"{tmp_path}/tree: {encoder.spec.name}, qwix; {tmp_path}/again would be written\n"
    assert (tmp_path / "tree" / "tokenizer.json").exists() and regcache(*command)[0] == 0
    again = load(tmp_path / "again")
    assert again.encoder.spec == encoder.spec and again.encoder.scheme == scheme
    written, read = to_names(encoder.params), to_names(again.encoder.params)
    assert written.keys() == read.keys()
    for name, leaf in written.items():
        np.testing.assert_array_equal(read[name], leaf, err_msg=name)


@pytest.mark.slow
def test_kernels_that_qwix_quantised_run_in_our_integers(tmp_path):
    encoder, images = small.encoder("siglip"), jnp.asarray(small.images(3))
    tree = to_tree(encoder.params)
    for site in SITES:
        for path, layer in encoder.params.image.blocks.layers(site).items():
            group = tree["image"]["blocks"]["attention" if site in ("qkv", "out") else "mlp"]
            channels = [axis for axis in range(layer.kernel.ndim) if axis not in layer.input_axes]
            kernel = qwix.quantize(layer.kernel, jnp.int8, channelwise_axes=channels)
            group[path]["kernel"] = {"array": kernel} if site == "fc2" else kernel  # as `quantize_params` boxes it
    converters.write(encoder, "qwix", tmp_path / "float")
    shutil.rmtree(tmp_path / "float" / "params")
    ocp.PyTreeCheckpointer().save(tmp_path / "float" / "params", tree)
    theirs = converters.read_qwix(tmp_path / "float")
    assert theirs.scheme == MEASURED
    cosine = jnp.sum(encode_image(theirs, images) * encode_image(encoder, images), axis=-1)
    ours = jnp.sum(encode_image(quantize(encoder, None, MEASURED), images) * encode_image(encoder, images), axis=-1)
    assert float(jnp.min(cosine)) > 0.999 and float(jnp.max(jnp.abs(cosine - ours))) < 1e-3


def test_trees_that_our_integers_cannot_be_are_refused_by_name(tmp_path):
    encoder = quantize(small.encoder("siglip"), None, MEASURED)
    tree = to_qwix(encoder)
    kernel = tree["image"]["blocks"]["mlp"]["fc1"].pop("kernel")
    place = "image/blocks/mlp/fc1/kernel"
    for wrong, message in (
        (kernel.replace(zero_point=jnp.ones_like(kernel.scale, jnp.int8)), f"{place} has zero points"),
        (kernel.replace(scale=kernel.scale[:, :, :20]), rf"{place}/scale is \[3, 1, 20\], expected \[3, 1, 40\]"),
        (kernel.replace(qvalue=kernel.qvalue.astype(jnp.float8_e4m3fn)), f"{place} is float8_e4m3fn, more than the 8"),
    ):
        tree["image"]["blocks"]["mlp"]["fc1"]["kernel"] = wrong
        with pytest.raises(UserError, match=message):
            from_qwix(tree, encoder.spec, MEASURED)
    tree["image"]["blocks"]["mlp"]["fc1"]["kernel"] = kernel
    with pytest.raises(UserError, match="is int8, more than the 4 bits of the scheme"):
        from_qwix(tree, encoder.spec, Scheme.named("w4a8", activations="token"))
    with pytest.raises(UserError, match="has a register plan, for which Qwix's trees have no place"):
        converters.write(encoder.with_plan(small.random_plan(start=1, stop=2)), "qwix", tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    with pytest.raises(UserError, match="no layout is called 'qvix'"):
        converters.write(encoder, "qvix", tmp_path / "tree")
    converters.write(encoder, "qwix", tmp_path / "tree")
    for damage, message in (
        (lambda told: told.pop("scheme"), "qwix.json"),
        (lambda told: told["spec"].pop("image"), "qwix.json does not describe an encoder"),
    ):
        told = json.loads(text := (tmp_path / "tree" / "qwix.json").read_text())
        damage(told)
        (tmp_path / "tree" / "qwix.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=message):
            converters.read_qwix(tmp_path / "tree")
        (tmp_path / "tree" / "qwix.json").write_text(text)
    (tmp_path / "tree" / "params" / "_METADATA").unlink()
    with pytest.raises(UserError, match="params is damaged or incomplete"):
        converters.read_qwix(tmp_path / "tree")
