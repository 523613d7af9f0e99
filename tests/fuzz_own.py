"""Readers of what the project writes itself."""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import small
from etils import epath
from fuzz_checkpoints import ARRAYS
from fuzz_data import pixels
from fuzz_targets import Make, Target, files_of, same, sealed
from mutations import change_lines, change_tree, mutate
from randomized import clip, save_random
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.huggingface_folder import write_folder
from stories import rows as story_rows
from stories import story

from regcache_jax.core.observer import Observer
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.data.parts import parts_of_images
from regcache_jax.embedding.check import check_set, partitions
from regcache_jax.embedding.embed import Running, embed_set
from regcache_jax.embedding.options import SetOptions
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files import results
from regcache_jax.files.bounded import read_json
from regcache_jax.files.paths import write_json
from regcache_jax.files.sealed import seal
from regcache_jax.files.store import read_arrays, write_arrays
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.files.workdir import Workdir, read_array, write_array
from regcache_jax.models import export
from regcache_jax.models import folder as models
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.quantization.calibration import Calibration
from regcache_jax.quantization.histogram import BINS, Histogram
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.search.space import Numbers
from regcache_jax.report.story import read_story


def encoder() -> Encoder:
    """A small one. It is made where it is wanted: a process that has started JAX may not fork."""
    return small.encoder("siglip")


def read_model(folder: Path) -> Any:
    """Every leaf of a model folder."""
    model = models.load(folder)
    return {"params": model.encoder.params, "plan": model.encoder.plan, "name": model.encoder.spec.name}


def model_folders(folder: Path) -> Target:
    models.save(folder / "m", encoder().with_plan(small.plan()))
    return sealed(folder / "m", read_model, share=0.5)


def descriptions(folder: Path) -> Target:
    models.save(folder / "m", encoder())
    return sealed(folder / "m", read_model, changed=("encoder.json",), share=0.5)


def old_folder(folder: Path, name: str) -> dict[str, bytes]:
    """Of what version 0.1.0 wrote, without hashes."""
    with tarfile.open(Path(__file__).parent / "models" / "data" / "version_0_1_0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return files_of(folder / name) if (folder / name).is_dir() else {name: (folder / name).read_bytes()}


def old_descriptions(folder: Path) -> Target:
    return Target(old_folder(folder, "twin"), ("encoder.json",), read_model, change_tree, share=0.2)


def old_parameters(folder: Path) -> Target:
    return Target(old_folder(folder, "float"), ("params/*",), read_model, mutate, share=0.2)


def plan_of(folder: Path) -> Any:
    plan, metadata = load_plan(folder / "plan.safetensors")
    return {"plan": plan, "metadata": metadata}


def plans(folder: Path) -> Target:
    calibration = {
        "images": 8, "held_out": 4, "verify_share": 0.25, "seed": 0, "draws": 2, "estimator": "absmax", "hash": "x",
    }  # fmt: skip
    claim = {"error": 0.1, "spread": 0.01, "worst": 0.2, "images": 4}
    metadata = {"encoder": "siglip", "encoder_hash": "0" * 64, "calibration": calibration, "claim": claim}
    save_plan(folder / "plan.safetensors", small.plan(), metadata)
    return sealed(folder, plan_of)


def old_plans(folder: Path) -> Target:
    return Target(old_folder(folder, "plan.safetensors"), ("*",), plan_of, mutate)


def calibrations(folder: Path) -> Target:
    counts = np.zeros((2, 1, 2 * BINS), np.int64)
    counts[..., BINS] = 3
    ends = np.float32([[-1], [-2]]), np.float32([[1], [2]])
    histogram = Histogram(counts, np.zeros((2, 1), np.int32), *ends)
    Calibration(dict.fromkeys(SITES, histogram), False, 3, "0" * 64).save(folder / "c.safetensors")
    return sealed(folder, lambda folder: dataclasses.asdict(Calibration.load(folder / "c.safetensors")))


def trial_tables(folder: Path) -> Target:
    """Of a damaged table the lines before the damage are kept; a line that is missing or there twice is a trial like the others."""

    def rows(folder: Path) -> list[dict[str, Any]]:
        table = TrialTable(folder / "t.jsonl", "search")
        table._log.close()
        return table.rows

    table = TrialTable(folder / "t.jsonl", "search")
    for number in range(4):
        table.add(Numbers(number, 4, 2.5, 0, 0), 8, 0.1 * number, [0.1, 0.2], 1000)
    table._log.close()
    files, written = {"t.jsonl": (folder / "t.jsonl").read_bytes()}, table.rows
    lines_or_bytes = lambda content, rng: rng.choice((change_lines, mutate))(content, rng)  # noqa: E731
    return Target(files, ("*",), rows, lines_or_bytes, right=lambda found: all(row in written for row in found))


def stage_records(folder: Path) -> Target:
    """A damaged stage is made again, so that its result is the same."""

    def stage(folder: Path) -> Any:
        workdir = Workdir(folder, Observer())

        def make() -> dict[str, Any]:
            write_array(workdir.path / "array.npy", np.arange(3))
            return {"made": "a", "number": 0.5}

        found = workdir.stage("stage", "a", make, ("array.npy",))
        return {"result": found.result, "array": read_array(workdir.path / "array.npy")}

    stage(folder)
    return sealed(folder, stage)


def result_rows(folder: Path) -> Target:
    rows = [
        results.row(
            dataset="emoji", model="siglip", pretrained="m", task="knn", metrics={"acc1": 0.5},
            quantization={"scheme": scheme, "registers": False},
        )
        for scheme in ("float", "w8a8")
    ]  # fmt: skip
    results.write(folder / "rows.json", rows)
    return sealed(folder, lambda folder: results.read(folder / "rows.json"))


def stories(folder: Path) -> Target:
    results.write(folder / "results.json", story_rows())
    write_json(folder / "story.json", seal(story()))
    return sealed(folder, lambda folder: list(read_story(folder)))


def kept_chunks(folder: Path) -> Target:
    """A damaged chunk is as good as none."""
    write_arrays(epath.Path(folder / "0.arrays"), ARRAYS)
    wanted = read_arrays(epath.Path(folder / "0.arrays"))
    target = sealed(folder, lambda folder: read_arrays(epath.Path(folder / "0.arrays")))
    return target._replace(right=lambda found: found is None or same(found, wanted))


def exported_programs(folder: Path) -> Target:
    """Nothing of a program runs but with both files as they were written; of those beside it, the order of names is free."""
    export.export(encoder(), folder / "tower", export.Program(("cpu",)))

    def loaded(folder: Path) -> Any:
        export.load(folder / "tower")
        return [(folder / "tower").read_bytes(), read_json(folder / "tower.json", dict[str, Any])]

    return sealed(folder, loaded)


def sets_of_embeddings(folder: Path) -> Target:
    (folder / "pictures").mkdir()
    for number in range(3):
        pixels(number).save(folder / "pictures" / f"{number}.png")
    model = models.load(models.save(folder / "model", small.encoder("clip")))
    options = SetOptions(partition=2)
    embed_set(model, parts_of_images(str(folder / "pictures"), 2), folder / "set", options, Running(batch_size=2))
    files = files_of(folder / "set")
    rows = lambda folder: [part[0].tolist() for part in partitions(check_set(folder))]  # noqa: E731
    wanted = rows(folder / "set")
    return Target(files, ("*",), rows, mutate, right=lambda found: found == wanted)


def compressed_folders(folder: Path) -> Target:
    """A folder in compressed-tensors' layout, as transformers loads it."""
    encoder = jax.tree.map(jnp.asarray, read_checkpoint(str(save_random(clip(), folder / "source"))).encoder)
    pictures = np.random.default_rng(0).normal(size=(4, 40, 40, 3)).astype(np.float32)
    write_folder(quantize(encoder, pictures, Scheme()), folder / "compressed")
    files = files_of(folder / "compressed")

    def usable(folder: Path) -> None:
        read_checkpoint(str(folder))

    return Target(files, ("config.json",), usable, change_tree, share=0.5)


TARGETS: dict[str, Make] = {
    "model folders": model_folders,
    "encoder.json": descriptions,
    "encoder.json of 0.1.0": old_descriptions,
    "parameters of 0.1.0": old_parameters,
    "plans": plans,
    "plans of 0.1.0": old_plans,
    "calibrations": calibrations,
    "trial tables": trial_tables,
    "stage records": stage_records,
    "result rows": result_rows,
    "stories": stories,
    "chunks of evaluations": kept_chunks,
    "exported programs": exported_programs,
    "sets of embeddings": sets_of_embeddings,
    "compressed folders": compressed_folders,
}
