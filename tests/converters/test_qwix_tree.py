"""Qwix's arrays and ours are the same numbers: written, read, and multiplied by Qwix itself."""

from __future__ import annotations

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
@pytest.mark.parametrize("scheme", [Scheme(), Scheme.named("w4a8", activations="token")])
def test_a_tree_that_is_written_and_restored_is_the_same_encoder(scheme, tmp_path):
    encoder = quantize(small.encoder("clip with text"), small.images(2), scheme)
    converters.write(encoder, "qwix", tmp_path / "tree")
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "tree" / "params")
    again = from_qwix(tree, encoder.spec, scheme)
    written, read = to_names(encoder.params), to_names(again.params)
    assert written.keys() == read.keys()
    for name, leaf in written.items():
        np.testing.assert_array_equal(read[name], leaf, err_msg=name)


@pytest.mark.slow
def test_kernels_that_qwix_quantised_run_in_our_integers():
    encoder, images = small.encoder("siglip"), jnp.asarray(small.images(3))
    tree = to_tree(encoder.params)
    for site in SITES:
        for path, layer in encoder.params.image.blocks.layers(site).items():
            group = tree["image"]["blocks"]["attention" if site in ("qkv", "out") else "mlp"]
            channels = [axis for axis in range(layer.kernel.ndim) if axis not in layer.input_axes]
            kernel = qwix.quantize(layer.kernel, jnp.int8, channelwise_axes=channels)
            group[path]["kernel"] = {"array": kernel} if site == "fc2" else kernel  # as `quantize_params` boxes it
    theirs = from_qwix(tree, encoder.spec, MEASURED)
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
