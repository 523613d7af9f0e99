"""big_vision's trainer takes our evaluator as one of its own, and its evaluators take our int8 encoders."""

from __future__ import annotations

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.data import emoji, open_dataset
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.encoders.encoder import encode_image, encode_text
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.evaluation import big_vision
from regcache_jax.evaluation.protocol import PROTOCOLS
from regcache_jax.models import folder as checkpoints
from regcache_jax.ops.integers import QuantizedTensor
from regcache_jax.quantization.quantize import quantize

PICTURES = 27  # neither batches of 16 nor the devices divide it


def toy_predict(train_state, batch):
    """A two-tower model of two matrices: mean colour of each quarter, and words by number."""
    image = text = None
    if "image" in batch:
        quarters = batch["image"].reshape(len(batch["image"]), 2, 32, 2, 32, 3).mean(axis=(2, 4))
        image = quarters.reshape(len(quarters), -1) @ train_state["params"]["image"]
    if "labels" in batch:
        text = train_state["params"]["text"][batch["labels"]].sum(axis=1)
        text /= jnp.linalg.norm(text, axis=1, keepdims=True)
    return image, text, {}


@pytest.fixture(scope="module")
def train_state():
    rng = np.random.default_rng(0)
    vocabulary = checkpoints.read_description(bundled_model())["spec"]["text"]["vocab_size"]
    image, text = rng.normal(size=(12, 8)), rng.normal(size=(vocabulary, 8))
    return {"params": {"image": jnp.asarray(image, jnp.float32), "text": jnp.asarray(text, jnp.float32)}}


@pytest.fixture
def evaluator_module(tmp_path, monkeypatch):
    """A big_vision whose evaluators hold our one line; its trainer imports them by name."""
    package = tmp_path / "big_vision" / "evaluators"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "regcache.py").write_text("from regcache_jax.evaluation.big_vision import API, Evaluator\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("big_vision.evaluators.regcache")
    for name in [name for name in sys.modules if name.split(".")[0] == "big_vision"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("protocol", ["open_clip", "big_vision"])
def test_the_evaluator_that_a_trainer_makes_counts_what_numpy_counts(evaluator_module, train_state, protocol):
    assert evaluator_module.API == "jit"  # or the trainer would refuse to hand over its devices
    config = {
        "batch_size": 16,
        "devices": jax.devices(),
        "model": str(bundled_model()),
        "dataset": "emoji",
        "limit": PICTURES,
    }
    evaluator = evaluator_module.Evaluator(toy_predict, **config, protocol=protocol)
    found = dict(evaluator.run(train_state))

    model, data = checkpoints.load(bundled_model()), open_dataset("emoji", limit=PICTURES)
    prompts = PROTOCOLS[protocol].prompts(data)
    preparation = PROTOCOLS[protocol].preprocessing(model.encoder.spec.preprocessing)
    images = np.stack([preprocess(data[index].image, preparation) for index in range(PICTURES)])
    ids = model.tokenize([t.replace("{c}", name) for name in prompts.classnames for t in prompts.templates])
    features = np.asarray(toy_predict(train_state, {"image": images})[0])
    texts = np.asarray(toy_predict(train_state, {"labels": ids})[1])
    classes = texts.reshape(204, -1, 8).mean(axis=1)
    scores = features @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T
    labels = np.array([data[index].label for index in range(PICTURES)])
    order = np.argsort(-scores, axis=1)
    hits = order[:, 0] == labels
    assert found == {
        "emoji_accuracy": hits.mean(),
        "emoji_acc5": (order[:, :5] == labels[:, None]).any(axis=1).mean(),
        "emoji_mean_per_class_recall": pytest.approx(np.mean([hits[labels == label].mean() for label in set(labels)])),
    }


def test_a_state_of_training_that_moves_on_moves_the_class_vectors(train_state):
    evaluator = big_vision.Evaluator(
        toy_predict, batch_size=8, devices=jax.devices(), model=bundled_model(), dataset="emoji", limit=8
    )
    later = jax.tree.map(lambda leaf: leaf[::-1], train_state)
    first, second = evaluator.class_vectors(train_state), evaluator.class_vectors(later)
    assert first.shape == (len(emoji.class_names()), 8) and np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), 1, rtol=1e-6)  # float32 rounding


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 13}, "13 does not divide over . devices"),
        ({"protocol": "small_vision"}, "protocols are open_clip, big_vision"),
        ({"model": "nowhere"}, "no model folder nowhere"),
        ({"dataset": "emojis"}, "did you mean emoji"),
    ],
)
def test_a_wrong_config_is_refused_before_training_begins(wrong, message):
    right = {"batch_size": 8, "devices": jax.devices(), "model": bundled_model(), "dataset": "emoji"}
    with pytest.raises(UserError, match=message):
        big_vision.Evaluator(toy_predict, **{**right, **wrong})


@pytest.mark.slow
@pytest.mark.devices
def test_an_int8_encoder_is_a_predict_fn_for_big_visions_evaluators():
    encoder = quantize(small.encoder("siglip with text"), None, Scheme(activations="token"))
    state, images, ids = big_vision.state_of(encoder, jax.devices()), small.images(3), np.full((3, 6), 7, np.int32)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {len(jax.devices())}
    kernels = jax.tree.leaves(encoder.params.image.blocks, is_leaf=lambda leaf: isinstance(leaf, QuantizedTensor))
    assert any(isinstance(leaf, QuantizedTensor) and leaf.values.dtype == jnp.int8 for leaf in kernels)
    predict = jax.jit(big_vision.predict)  # an evaluator compiles it and passes the state as an argument
    image, text, out = predict(state, {"image": images})
    assert text is None and set(out) == {"img/normalized", "t", "b"} and out["t"].dtype == jnp.float32
    np.testing.assert_allclose(image, jax.jit(encode_image)(encoder, images), atol=1e-5)  # sums in another order
    image, text, _ = predict(state, {"labels": ids})
    assert image is None
    np.testing.assert_allclose(text, jax.jit(encode_text)(encoder, ids), atol=1e-5)
