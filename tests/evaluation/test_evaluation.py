"""The evaluation loop and zero-shot classification: the same counts however the work is spread."""

from __future__ import annotations

import itertools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing
from regcache_jax.data.batches import Batch, pad_batch
from regcache_jax.encoders import catalog
from regcache_jax.encoders.encoder import Encoder, encode_image, init_params
from regcache_jax.evaluation import loop, micro_batches
from regcache_jax.evaluation.loop import encoding, extract_features, extract_labelled
from regcache_jax.evaluation.metrics import agreement, compare_features, count_hits, metrics_from_counts, predictions
from regcache_jax.evaluation.watch import Watch
from regcache_jax.files import results
from regcache_jax.quantization.quantize import quantize

CLASSES = 7


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 2, 2, 3)).astype(np.float32), rng.integers(0, CLASSES, count).astype(np.int32)


def in_batches(images: np.ndarray, labels: np.ndarray, size: int) -> list[Batch]:
    places = np.arange(len(images), dtype=np.int32)
    starts = range(0, len(images), size)
    return [pad_batch(images[i : i + size], labels[i : i + size], size, places[i : i + size]) for i in starts]


def project(matrix, images):
    return images.reshape(images.shape[0], -1) @ matrix


def scored(state, images):
    """Scores of every class from an encoder and class vectors."""
    return encode_image(state[0], images) @ state[1].T


def counted(encode, state, parts, **how):
    """Hits of each class in the scores that the loop brings back."""
    rows = extract_labelled(encode, state, parts, **how)
    counts = count_hits(*map(jnp.asarray, (rows["features"], rows["label"], np.ones(len(rows["label"]), bool))))
    return {name: np.asarray(count) for name, count in counts.items()}


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("number", [1, 8, 37, 10_007])
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_counts_over_all_devices_equal_plain_numpy_to_the_last_one(number, parallel):
    images, labels = examples(number)
    matrix = np.random.default_rng(0).normal(size=(12, CLASSES)).astype(np.float32)
    counts = counted(project, jnp.asarray(matrix), in_batches(images, labels, 64), parallel=parallel)
    scores = images.reshape(number, -1) @ matrix
    order = np.argsort(-scores, axis=1, kind="stable")
    assert int(counts["seen"].sum()) == number
    assert int(counts["top1"].sum()) == int((order[:, 0] == labels).sum())
    assert int(counts["top5"].sum()) == int((order[:, :5] == labels[:, None]).any(axis=1).sum())


@pytest.mark.devices
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])  # a device has four or sixteen
def test_features_come_back_in_order_without_padding(parallel, micro_batch):
    images, labels = examples(21)
    matrix = np.eye(12, dtype=np.float32)
    features = extract_features(
        project, jnp.asarray(matrix), in_batches(images, labels, 32), parallel=parallel, micro_batch=micro_batch
    )
    np.testing.assert_allclose(features, images.reshape(21, 12), rtol=1e-6)


@pytest.mark.devices
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_counts_in_micro_batches_are_the_same_counts(parallel):
    images, labels = examples(37)
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(12, CLASSES)).astype(np.float32))
    whole, sliced = (
        counted(project, matrix, in_batches(images, labels, 32), parallel=parallel, micro_batch=size)
        for size in (None, 2)
    )
    assert {name: leaf.tolist() for name, leaf in sliced.items()} == {
        name: leaf.tolist() for name, leaf in whole.items()
    }


def test_a_micro_batch_is_the_slice_that_the_compiler_estimates_cheapest_a_row():
    images, labels = examples(48)
    (batch,) = in_batches(images, labels, 48)
    a_row = {1: 300, 2: 200, 3: 150, 4: 120, 6: 110, 8: 105, 12: 108, 16: 98, 24: 100}
    asked = []

    def compile(step, state, part):
        asked.append(len(part.mask))
        if asked[-1] == 48:
            raise UserError("an estimate that cannot be")
        return types.SimpleNamespace(as_text=lambda: f'"estimated_cycles":"{a_row[asked[-1]] * asked[-1]}"')

    assert micro_batches.cheapest_micro_batch(encoding(project), jnp.zeros((12, CLASSES)), batch, compile) == 16
    assert len(asked) < 10 and 48 in asked
    nothing = types.SimpleNamespace(as_text=lambda: "no estimate")
    assert (
        micro_batches.cheapest_micro_batch(encoding(project), jnp.zeros((12, CLASSES)), batch, lambda *given: nothing)
        is None
    )
    assert (
        micro_batches.cheapest_micro_batch(encoding(project), jnp.zeros((12, CLASSES)), batch) is None
    )  # a CPU's compiler estimates nothing


def test_a_cpus_micro_batch_keeps_the_largest_array_of_a_block_in_its_cache():
    b16 = catalog.get("openai/clip-vit-base-patch16").spec.image
    assert [micro_batches.cached_micro_batch(b16, rows) for rows in (16, 6, 3, 1)] == [4, 3, 3, 1]
    assert micro_batches.cached_micro_batch(catalog.get("openai/clip-vit-large-patch14-336").spec.image, 16) == 1
    assert micro_batches.cached_micro_batch(TINY.image, 512) == 512


def test_waiting_is_the_time_in_which_devices_had_nothing_to_do():
    images, labels = examples(32)

    def slowly():
        for batch in in_batches(images, labels, 8):
            time.sleep(0.05)
            yield batch

    watch = Watch()
    extract_features(project, jnp.zeros((12, CLASSES)), slowly(), watch=watch)
    assert (
        0.2 <= watch.waited <= watch.elapsed
    )  # four times 0.05; a batch is counted in less than that, and then they wait
    assert 0 < watch.share <= 1


@pytest.fixture
def devices(monkeypatch):
    """Makes the loop believe in fewer devices than there are."""
    every = jax.devices()

    def use(number: int) -> None:
        loop._compile.cache_clear()
        monkeypatch.setattr(jax, "devices", lambda: every[:number])
        monkeypatch.setattr(jax, "local_device_count", lambda: number)

    yield use
    loop._compile.cache_clear()


TINY = EncoderSpec(
    "tiny", "clip",
    ImageSpec(8, 4, BlockSpec(16, 2, 2, 32, "gelu", 1e-6), class_token=True, pooling="class"),
    Preprocessing(8, "squash", "bilinear", 8, HALF, HALF),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    """A random encoder, its class vectors, and 10,007 pictures with random classes."""
    encoder = Encoder(init_params(TINY, jax.random.key(0)), spec=TINY)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(CLASSES, 16)).astype(np.float32)
    images = rng.normal(size=(10_007, 8, 8, 3)).astype(np.float32)
    return encoder, vectors, images, rng.integers(0, CLASSES, 10_007).astype(np.int32)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("activations", [None, "static", "token", "tensor"])
def test_one_device_jit_and_pmap_agree_to_the_last_count(tiny, devices, activations):
    """In float and in int8; the scales of `tensor` are measured over all devices, whose arrays together are one device's."""
    encoder, vectors, images, labels = tiny
    if activations is not None:
        products = ("qk", "pv") if activations == "tensor" else ()  # attention's own products measure scales too
        scheme = Scheme(activations=activations, products=products)
        encoder = quantize(encoder, images[:16] if scheme.calibrated else None, scheme)
    found = {}
    numbers = {2, len(jax.devices())}
    for number, parallel in ((1, "jit"), *itertools.product(numbers, ("pmap", "jit"))):
        devices(number)
        size = loop.round_up(509)  # 509 is prime: 509, 510 and 512 pictures a step
        if activations == "tensor":
            size = 512  # its scales are those of a step
        for count in (10_007, 1):
            parts = in_batches(images[:count], labels[:count], size)
            counts = counted(scored, (encoder, jnp.asarray(vectors)), parts, parallel=parallel)
            found[number, parallel, count] = {name: leaf.tolist() for name, leaf in counts.items()}
        with pytest.raises(UserError, match="nothing to evaluate"):
            counted(scored, (encoder, jnp.asarray(vectors)), [], parallel=parallel)
    for (_, _, count), counts in found.items():
        assert sum(counts["seen"]) == count and counts == found[1, "jit", count]


def test_a_batch_that_does_not_divide_and_an_empty_dataset_are_refused():
    images, labels = examples(5)
    with pytest.raises(UserError, match="does not divide"):
        extract_features(project, jnp.zeros((12, CLASSES)), in_batches(images, labels, 5))
    with pytest.raises(UserError, match="nothing to evaluate"):
        extract_features(project, jnp.zeros((12, CLASSES)), [])


@pytest.mark.slow
def test_metrics_equal_scikit_learn_on_random_scores():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(300, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, 300).astype(np.int32)
    counts = jax.tree.map(np.asarray, count_hits(jnp.asarray(scores), jnp.asarray(labels), jnp.ones(300, bool)))
    metrics = metrics_from_counts(counts)
    predicted = scores.argmax(axis=1)
    assert metrics["acc1"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert metrics["mean_per_class_recall"] == pytest.approx(recall_score(labels, predicted, average="macro"))


@pytest.mark.slow
def test_tied_scores_go_to_the_lower_class_as_argmax_does():
    scores = jnp.zeros((3, 4))
    counts = count_hits(scores, jnp.asarray([0, 1, 3], jnp.int32), jnp.ones(3, bool))
    assert int(counts["top1"].sum()) == 1


def test_acc5_is_left_out_below_five_classes():
    counts = {"seen": np.array([1, 1]), "top1": np.array([1, 0]), "top5": np.array([1, 1])}
    assert "acc5" not in metrics_from_counts(counts)


@pytest.mark.slow
def test_what_is_not_a_number_is_never_right():
    """A NaN of the label's own class, of another one, in all, and infinities that tie."""
    nan, inf = np.nan, np.inf
    scores = np.array(
        [[nan, 1, 0, 0, 0], [2, nan, 0, 0, 0], [nan] * 5, [-inf] * 5, [inf, 0, 0, 0, 0], [2, 1, 0, 0, 0]], np.float32
    )
    labels = np.zeros(6, np.int32)
    counts = count_hits(jnp.asarray(scores), jnp.asarray(labels), jnp.ones(6, bool))
    assert (
        int(counts["top1"][0]) == 1 and int(counts["top5"][0]) == 2
    )  # the last; and the one that another's NaN costs a rank
    assert predictions(scores).tolist() == [-1, -1, -1, 0, 0, 0]
    assert agreement(predictions(scores), predictions(scores)) == 0.5


def test_equal_features_have_cosine_one():
    features = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    measures = compare_features(features, features)
    assert measures["cosine"] == pytest.approx(1.0) and measures["relative_error"] == 0.0
    assert compare_features(0 * features, 0 * features) == {"cosine": 0.0, "relative_error": 0.0}


def test_result_rows_have_clip_benchmark_keys_and_are_written_whole(tmp_path):
    row = results.row(
        dataset="emoji", model="m", pretrained="p", task="zeroshot_classification", metrics={"acc1": 0.5},
        quantization={"scheme": "float"},
    )  # fmt: skip
    assert set(row) == {"dataset", "model", "pretrained", "task", "metrics", "language", "quantization"}
    results.write(tmp_path / "rows.json", [row])
    with pytest.raises(ValueError):
        results.write(tmp_path / "rows.json", [{**row, "metrics": {"acc1": float("nan")}}])
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]
