"""The label-free error of an evaluation is that of a search, on some of the pictures."""

import numpy as np
import pytest
import small

import regcache_jax as rc
from regcache_jax.core.outputs import image_errors
from regcache_jax.data import open_dataset
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.evaluation import label_free
from regcache_jax.evaluation.rows import Setting, encode_dataset
from regcache_jax.registers.outputs import outputs_of


@pytest.mark.slow
def test_an_evaluation_measures_the_error_that_a_search_goes_by(monkeypatch):
    monkeypatch.setattr(label_free, "MOST_PICTURES", 5)
    encoder, data = small.encoder("dinov2"), open_dataset("dummy", limit=9)
    preparation = encoder.spec.preprocessing

    def rows(encoder):
        def encode(step, dataset):
            return encode_dataset(step, encoder, dataset, preparation, Setting(batch_size=4))

        return label_free.outputs(encode, data, "both")

    images = np.stack([preprocess(example.image, preparation) for example in data.spread(5)])
    int8 = rc.quantize(encoder, images, rc.Scheme(8, 8))
    found = label_free.error("both", rows(int8), rows(encoder))
    wanted, exact = (outputs_of(each, images, patches=True) for each in (int8, encoder))
    np.testing.assert_allclose(found, image_errors("both", wanted, exact).mean(), rtol=0.05)
