from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import Rotary
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.constants import registers_as_constants
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import plant, planted_spec


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_a_picture_whose_own_registers_are_cached_keeps_its_features(kind):
    encoder, images = small.encoder(kind), np.asarray(small.images(2))
    alone = registers_as_constants(encoder, images[:1])
    assert alone.params.image.registers is None and alone.spec.image.num_tokens == encoder.spec.image.num_tokens - 2
    found, wanted = (jax.jit(encode_image)(each, images) for each in (alone, encoder))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)  # float32, sums in another order
    assert float(jnp.abs(found[1] - wanted[1]).max()) > 1e-3


@pytest.mark.slow
def test_constants_take_an_outlier_of_a_trained_register_out_of_the_integers():
    spec = planted_spec(rotary=Rotary(100.0), trained_registers=4)
    planted = plant(["trained-register outlier"], spec=spec, num_images=16)
    images, scheme = planted.images, Scheme(8, 8)
    constant = registers_as_constants(planted.encoder, images)
    reference = features_of(planted.encoder, images, 16)

    def error(encoder, scheme):
        plan = encoder.plan
        quantised = quantize(encoder.with_plan(None), jnp.asarray(images), scheme, plan)
        return label_free_error(features_of(quantised, images, 16), reference)

    assert label_free_error(features_of(constant, images, 16), reference) < 1e-3
    assert error(constant, scheme) < 0.2 * error(planted.encoder, scheme)


def test_an_encoder_without_trained_registers_or_with_a_plan_is_refused():
    images = np.asarray(small.images(1))
    with pytest.raises(UserError, match="siglip has no trained registers"):
        registers_as_constants(small.encoder("siglip"), images)
    with pytest.raises(UserError, match="dinov2 has a plan or is quantised"):
        registers_as_constants(small.encoder("dinov2").with_plan(small.plan()), images)
