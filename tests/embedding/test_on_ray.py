"""The class that Ray Data calls: the rows of `regcache embed`, for an int8 folder with registers and deletion, on two of Ray's workers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.data.parts import parts_of_images
from regcache_jax.embedding.embed import Running, embed_set
from regcache_jax.embedding.on_ray import Embedder
from regcache_jax.embedding.options import SetOptions
from regcache_jax.models.folder import load, save
from regcache_jax.quantization.quantize import quantize

COUNT, SIZE = 12, 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures, the ninth torn."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        drawn = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(drawn).save(folder / f"{number:02d}.png")
    (folder / "08.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An int8 CLIP with two registers that deletes two tokens."""
    encoder = quantize(small.encoder("clip").with_plan(small.plan(delete_count=2)), small.images(3), Scheme())
    return save(tmp_path_factory.mktemp("models") / "clip8", encoder)


@pytest.fixture(scope="module")
def embedded(model, pictures, tmp_path_factory):
    """Rows of `regcache embed`, by the names of their pictures."""
    folder = tmp_path_factory.mktemp("sets") / "set"
    options = SetOptions(allow_unreadable=0.1)
    embed_set(load(model), parts_of_images(str(pictures), COUNT), folder, options, Running(batch_size=SIZE))
    names = pq.read_table(folder / "metadata").column("image_path").to_pylist()
    return dict(zip(names, np.concatenate([np.load(file) for file in (folder / "img_emb").iterdir()]), strict=True))


def check(rows, embedded):
    """`rows`: name, embedding, error."""
    assert {name for name, _, error in rows if not error} == set(embedded)
    for name, embedding, error in rows:
        if error:
            assert name == "08.png" and "08.png" in error and "cannot be read as a picture" in error
            assert np.isnan(embedding).all()
        else:
            np.testing.assert_allclose(embedding, embedded[name], atol=2e-6)  # beside other pictures in its batch


SCRIPT = """
    import os, pathlib, sys, time
    import ray
    from regcache_jax.embedding.on_ray import Embedder

    model, pictures, out, here = map(pathlib.Path, sys.argv[1:])

    class Watched(Embedder):
        def __call__(self, batch):
            (here / str(os.getpid())).touch()
            end = time.monotonic() + 200  # Ray may give all the work to the first that is idle: each waits for the other
            while len(list(here.iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            count = len(batch["path"])
            return {**super().__call__(batch), "worker": [os.getpid()] * count}

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8)
    found = ray.data.read_binary_files(str(pictures), include_paths=True, override_num_blocks=6)
    rows = found.map_batches(
        Watched, fn_constructor_kwargs={"model": str(model), "batch_size": 4}, batch_size=2, num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1),
    )
    rows.write_parquet(str(out))
"""


def test_two_workers_of_ray_give_the_rows_of_the_command(model, pictures, embedded, tmp_path):
    out, workers = tmp_path / "out", tmp_path / "workers"
    workers.mkdir()
    arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, (model, pictures, out, workers))]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    table = pq.read_table(out).to_pylist()
    assert len(table) == COUNT and len({row["worker"] for row in table}) == 2
    check([(row["path"].rsplit("/", 1)[1], row["embedding"], row["error"]) for row in table], embedded)
    assert set(table[0]) == {"path", "embedding", "error", "worker"}


@pytest.mark.parametrize("kind", ["bytes", "paths", "arrays"])
def test_pictures_may_be_files_paths_and_arrays(model, pictures, embedded, kind):
    files = sorted(file for file in pictures.iterdir() if kind != "arrays" or file.name != "08.png")
    column = {
        "bytes": lambda: np.array([file.read_bytes() for file in files], object),
        "paths": lambda: np.array([str(file) for file in files]),
        "arrays": lambda: np.stack([np.asarray(Image.open(io.BytesIO(file.read_bytes()))) for file in files]),
    }[kind]()
    embedder = Embedder(model, column="pictures", batch_size=SIZE)
    given = {"path": np.array([file.name for file in files]), "pictures": column, "label": np.arange(len(files))}
    for _ in range(2):  # the program stays for the next batch
        found = embedder(given)
    assert found["label"].tolist() == list(range(len(files))) and "pictures" not in found
    check(list(zip(found["path"], found["embedding"], found["error"], strict=True)), embedded)


def test_a_batch_without_a_readable_picture_has_rows_too_and_other_features_other_shapes(model):
    found = Embedder(model, features="patches")({"bytes": np.array([b"", None], object)})
    assert found["embedding"].shape == (2, 16, 24) and np.isnan(found["embedding"]).all()
    assert [bool(error) for error in found["error"]] == [True, True]


def test_a_column_that_is_not_there_is_named_with_those_that_are(model):
    with pytest.raises(UserError, match="no column bytes of pictures; there are path, image"):
        Embedder(model)({"path": np.array(["a"]), "image": np.array(["b"])})
    with pytest.raises(UserError, match="siglip has no class token"):
        Embedder(save(model.parent / "siglip", small.encoder("siglip")), features="class")
