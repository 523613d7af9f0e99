"""What stands beside an accuracy, and the tasks by command on a folder of one's own."""

from __future__ import annotations

import errno
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score

from regcache_jax.cli.main import main
from regcache_jax.core.errors import UserError
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.evaluation.evaluators.knn import make_bank
from regcache_jax.evaluation.evaluators.zeroshot_retrieval import nearest_texts
from regcache_jax.evaluation.measure import Labelled, Measured, measure
from regcache_jax.evaluation.metrics import compare_features

MODEL = str(bundled_model())


def test_an_accuracy_in_slices_is_scikit_learns_on_scores_full_of_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (50, 6)).astype(np.float32)
    labels = rng.integers(0, 6, 50).astype(np.int32)
    found = measure(Labelled(scores, labels), lambda features: features, rows=7)
    first = scores.argmax(axis=1)  # the lower class of two that are level
    assert found.metrics["acc1"] == pytest.approx(accuracy_score(labels, first))
    assert found.metrics["mean_per_class_recall"] == pytest.approx(recall_score(labels, first, average="macro"))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert found.metrics["acc5"] == pytest.approx((order == labels[:, None]).any(axis=1).mean())
    np.testing.assert_array_equal(found.predictions, first)


def test_beside_an_accuracy_stand_cosine_error_and_agreement_with_the_reference():
    rng = np.random.default_rng(1)
    own, known = rng.normal(size=(2, 30, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 30).astype(np.int32)
    reference = measure(Labelled(known, labels), lambda features: features)
    found = measure(Labelled(own, labels), lambda features: features, reference).metrics
    cosines = np.sum(own * known, axis=1) / np.linalg.norm(own, axis=1) / np.linalg.norm(known, axis=1)
    assert found["cosine"] == pytest.approx(cosines.mean(), rel=1e-5)  # float32 sums of five
    assert found["relative_error"] == pytest.approx(np.linalg.norm(own - known) / np.linalg.norm(known), rel=1e-5)
    assert found["agreement"] == np.mean(own.argmax(1) == known.argmax(1))
    assert compare_features(own, known, rows=4) == pytest.approx(compare_features(own, known), rel=1e-9)
    with pytest.raises(UserError, match="29 features, its float reference 30"):
        measure(Labelled(own[1:], labels[1:]), lambda features: features, reference)
    with pytest.raises(UserError, match="nothing to evaluate"):
        measure(Labelled(own[:0], labels[:0]), lambda features: features)
    assert isinstance(reference, Measured) and "cosine" not in reference.metrics


def test_a_bank_votes_alike_in_slices_and_as_a_whole():
    rng = np.random.default_rng(2)
    bank, features = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    labels = rng.integers(0, 4, 40).astype(np.int32)
    kept = make_bank(bank, labels, 4, neighbours=5)
    sliced = np.concatenate([kept.scores(features[first : first + 4]) for first in (0, 4, 8)])
    np.testing.assert_allclose(sliced, kept.scores(features), rtol=1e-5)


def test_the_nearest_text_is_the_earlier_of_two_that_are_level():
    images = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    texts = np.array([[0, 1], [1, 0], [1, 0]], np.float32)
    assert nearest_texts(images, texts, rows=2).tolist() == [1, 0, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two colours, half of one and half of the other, with captions and maps of classes, in two splits."""
    root = tmp_path_factory.mktemp("own")
    captions = {}
    for split, count in (("train", 12), ("test", 6)):
        (root / "pictures" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for number in range(count):
            classes = np.zeros((64, 64), np.uint8)
            width = 16 + 8 * (number % 5)  # a boundary between patches of eight pixels
            classes[:, :width] = 1
            name = f"{number:02d}"
            Image.fromarray(np.array([[230, 30, 30], [20, 60, 220]], np.uint8)[classes]).save(
                root / "pictures" / split / f"{name}.png"
            )
            Image.fromarray(classes).save(root / "masks" / split / f"{name}.png")
            captions[f"{name}.png"] = [f"picture {number}", "red and blue"]
    (root / "captions.json").write_text(json.dumps(captions))
    return root


def evaluate(capsys, folder, *arguments):
    result = folder / "result.json"
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "evaluate",
                MODEL,
                "--dataset",
                "folder",
                "--data-dir",
                str(folder / "pictures"),
                "--json",
                str(result),
                *arguments,
            ]
        )
    said = capsys.readouterr()
    row = json.loads(result.read_text()) if result.exists() else None
    result.unlink(missing_ok=True)
    return stopped.value.code or 0, said.err, row


@pytest.mark.slow
def test_a_folder_with_maps_of_classes_is_segmented(capsys, folder):
    masks = ("--task", "dense", "--masks", str(folder / "masks"))
    status, err, row = evaluate(capsys, folder, *masks, "--scheme", "w8a8", "--activations", "token")
    assert status == 0, err
    assert row["metrics"]["mIoU"] > 0.9 and row["quantization"]["examples"] == 6  # two plain colours
    assert 0.9 < row["metrics"]["cosine"] < 1 and row["quantization"]["float_reference"]["mIoU"] > 0.9
    assert "of them waiting for pictures" in err
    status, err, row = evaluate(capsys, folder, "--task", "dense")
    assert status == 1 and row is None and "has no map of classes; --masks FOLDER" in err


@pytest.mark.slow
def test_a_folder_with_captions_is_searched_both_ways(capsys, folder):
    captions = ("--split", "test", "--task", "zeroshot_retrieval", "--captions", str(folder / "captions.json"))
    status, err, row = evaluate(capsys, folder, *captions, "--recall-at", "1,6")
    assert status == 0, err
    metrics = row["metrics"]
    assert set(metrics) == {f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 6)}
    assert metrics["image_retrieval_recall@6"] == 1.0  # there are six pictures
    status, err, _ = evaluate(capsys, folder, "--split", "test", "--task", "zeroshot_retrieval")
    assert status == 1 and "has a caption; --captions FILE" in err
    status, err, _ = evaluate(capsys, folder, *captions, "--recall-at", "1,0")
    assert status == 2 and "numbers from 1 on" in err


@pytest.mark.slow
def test_unreadable_pictures_end_an_evaluation_unless_they_may_be_missing(capsys, folder, tmp_path):
    torn = folder / "pictures" / "test" / "99.png"
    torn.write_bytes(b"\x89PNG torn")
    task = ("--split", "test", "--task", "zeroshot_retrieval", "--captions", str(folder / "captions.json"))
    captions = json.loads((folder / "captions.json").read_text()) | {"99.png": "torn"}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    task = (*task[:-1], str(tmp_path / "captions.json"), "--workdir", str(tmp_path / "work"))
    try:
        status, err, row = evaluate(capsys, folder, *task)
        assert status == 1 and row is None and "1 of 7 pictures cannot be read" in err and "--allow-missing 1" in err
        status, err, row = evaluate(capsys, folder, *task, "--allow-missing", "1")
        assert status == 0 and "99.png" in err, err
        assert row["quantization"]["examples"] == 6 and "99.png" in row["quantization"]["missing"][0]
    finally:
        torn.unlink()


@pytest.mark.slow
def test_a_full_disk_ends_an_evaluation_with_one_message_and_nothing_half_written(
    capsys, folder, tmp_path, monkeypatch
):
    """The first file that it writes, of rows, finds the disk full in its middle."""
    whole = os.write

    def write(handle, content):
        if (
            pathlib.Path(os.readlink(f"/proc/self/fd/{handle}")).suffix != ".partial"
        ):  # a pipe of the loop's own threads
            return whole(handle, content)
        whole(handle, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    status, err, row = evaluate(capsys, folder, "--split", "test", "--task", "zeroshot_retrieval", "--workdir", str(tmp_path / "work"),
                                "--captions", str(folder / "captions.json"))  # fmt: skip
    last = err.splitlines()[-1]
    assert status == 1 and row is None and last.startswith("regcache: No space left on device: ") and "rows" in last
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == []


def test_a_micro_batch_is_a_number_or_auto(capsys, folder):
    status, err, _ = evaluate(capsys, folder, "--micro-batch", "some")
    assert status == 2 and "or auto, got some" in err
