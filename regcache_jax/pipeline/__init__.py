"""The pipeline: one config, one work folder, stages that are skipped when nothing they depend on has changed.

convert -> inspect -> search (a scheme each) -> quantise -> evaluate (a row each) -> figures -> report. Killed at any time and
started again, it goes on where it stopped and ends with the same rows (`workdir` says how).

Several processes (`distributed`) run a config together on one work folder that all of them see: the first makes everything and
writes, all of them share the pictures of every evaluation.
"""

from __future__ import annotations

import json

from etils import epath
from ml_collections import ConfigDict

from regcache_jax.core.observer import Observer
from regcache_jax.files import results
from regcache_jax.files.distributed import from_first
from regcache_jax.files.lock import held_by_first
from regcache_jax.files.paths import remove, write_json
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import seal
from regcache_jax.files.workdir import Json
from regcache_jax.pipeline.checks import check_config, check_float_accuracy
from regcache_jax.pipeline.config import RunConfig, read_config
from regcache_jax.pipeline.expected import seconds_left
from regcache_jax.pipeline.material import Material
from regcache_jax.pipeline.rows import Rows
from regcache_jax.pipeline.stages import Stages
from regcache_jax.pipeline.table import KINDS
from regcache_jax.studies.pace import forecast

__all__ = ["KINDS", "check_config", "check_float_accuracy", "read_config", "run"]


def run(config: ConfigDict, workdir: epath.PathLike, observer: Observer | None = None) -> list[results.Row]:
    """Runs a config; writes results.json (and its rows one by one in results/), story.json and report.html, and a model folder
    for each scheme.

    Returns the rows. Raises UserError for what the user can put right."""
    observer = observer or Observer()
    fields = read_config(config)
    check_config(fields)
    told = json.loads(config.to_json_best_effort())
    with held_by_first(workdir):
        return _run(fields, told, workdir, observer)


def _run(config: RunConfig, told: Json, workdir: epath.PathLike, observer: Observer) -> list[results.Row]:
    material = Material(config, workdir, observer)
    if config.task == "zeroshot_classification":
        observer.said(material.protocol.sentence(material.prompts(), material.encoder.spec.preprocessing))
    stages = Stages(material)
    if sentence := forecast(
        seconds_left(material), "--config.search.max_minutes bounds each search, and what is done is kept"
    ):
        observer.said(sentence)
    inspected = stages.inspect().result
    for finding in inspected["verdict"]["findings"]:
        observer.said(finding["sentence"])
    searched = {}
    for name in config.schemes:
        searched[name] = stages.search(name).result
        observer.said(f"{name}: {searched[name]['sentence']}")
    for name in config.schemes:
        stages.quantize(name)
    table = Rows(stages)
    rows = table.measured()
    check_float_accuracy(rows, config, observer)
    story = {
        "inspect": inspected,
        "search": searched,
        "figures": stages.figures().result,
        "costs": stages.costs().result,
        "config": told,
        "made_with": results.surroundings(),
    }
    from_first(lambda: _write(as_path(workdir), rows, {**story, "changes": table.differences()}))
    return rows


def _write(folder: epath.Path, rows: list[results.Row], story: Json) -> None:
    from regcache_jax.report.page import write_page

    write_json(folder / "story.json", seal(story))
    results.write(folder / "results.json", rows)
    remove(folder / "results")  # rows that another config had
    results.write_each(folder / "results", rows)
    write_page(folder / "report.html", rows, story)
