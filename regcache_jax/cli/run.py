"""`regcache demo`, `regcache run` and `regcache report`."""

from __future__ import annotations

import dataclasses
import importlib.util
import runpy
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regcache_jax.cli.arguments import Processes
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import Bars, print_table, say
from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.options import option

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def load_config(name: str) -> ConfigDict:
    """A config from a file, or by the name of one that comes with the package. Raises UserError for neither, and for fields that are
    unknown, missing or of another type. The file is the user's own program: it is run."""
    from ml_collections import ConfigDict

    from regcache_jax.pipeline.config import read_config

    path = Path(name)
    if not path.is_file():
        packaged = Path(str(importlib.util.find_spec("regcache_jax.configs").origin)).parent  # type: ignore[union-attr]
        path = packaged / f"{path.stem}.py"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in packaged.glob("*.py") if file.stem != "__init__"))
            raise UserError(f"there is no config {name}; give a file, or one of {known}")
    if path.suffix != ".py":
        raise UserError(f"{path} is not a config: a Python file (.py) with get_config()")
    try:
        config = runpy.run_path(str(path))["get_config"]()  # leaves no compiled file beside the user's
    except Exception as error:  # a config is the user's own program
        raise UserError(f"config {path} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return an ml_collections.ConfigDict, got {type(config).__name__}")
    read_config(config, path)
    return config


def override(config: ConfigDict, arguments: tuple[str, ...]) -> None:
    """Applies `--config.a.b=c` (or `--config.a.b c`). Raises click.UsageError for unknown fields and values of another type."""
    from ml_collections import ConfigDict

    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            raise click.UsageError(f"no such option or argument: {word}")
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words:
                raise click.UsageError(f"--config.{name} needs a value")
            value = words.pop(0)
        *path, last = name.split(".")
        field = config
        for part in path:
            field = _field(field, part, name)
        current = _field(field, last, name)
        if isinstance(current, ConfigDict):
            raise click.UsageError(
                f"--config.{name} is a group; give one of {', '.join(f'--config.{name}.{part}' for part in current)}"
            )
        try:
            field[last] = _parse(value, current)
        except (KeyError, ValueError):
            raise click.UsageError(f"--config.{name} takes {_like(current)}, got {value!r}") from None


def _field(config: Any, part: str, name: str) -> Any:
    """One field of a config. Raises click.UsageError that names those there are."""
    from ml_collections import ConfigDict

    if not isinstance(config, ConfigDict) or part not in config:
        known = ", ".join(config) if isinstance(config, ConfigDict) else "no fields"
        raise click.UsageError(f"--config.{name}: there is no field {part!r}; there are {known}")
    return config[part]


def _like(value: object) -> str:
    """What a field takes, in words."""
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "names with commas"}
    return words.get(type(value), "a text")


def _parse(text: str, like: Any) -> Any:
    """A value of the type that the field has; tuples are written with commas."""
    if isinstance(like, bool):
        return {"true": True, "false": False}[text.lower()]
    if isinstance(like, tuple):
        return tuple(part for part in text.strip("()").replace("'", "").replace(" ", "").split(",") if part)
    return type(like)(text)


def run_and_show(config: ConfigDict, workdir: str) -> None:
    """Runs the pipeline and prints its table."""
    from regcache_jax import pipeline
    from regcache_jax.report.tables import ROW_LABELS

    began = time.monotonic()
    with Bars() as bars:
        rows = pipeline.run(config, workdir, bars)
    columns = ("scheme", "row", "top-1 %", "top-5 %", "cosine", "images")
    notes = list(dict.fromkeys(row["quantization"]["note"] for row in rows if row["quantization"]["note"]))
    shown = [
        (
            row["quantization"]["scheme"],
            ROW_LABELS[row["quantization"]["row"]]
            + (f" [{notes.index(row['quantization']['note']) + 1}]" if row["quantization"]["note"] else ""),
            f"{100 * row['metrics']['acc1']:.1f}",
            f"{100 * row['metrics']['acc5']:.1f}" if "acc5" in row["metrics"] else None,
            f"{row['metrics']['cosine']:.4f}" if "cosine" in row["metrics"] else "1.0000",
            row["quantization"]["examples"],
        )
        for row in rows
    ]
    print_table(f"{rows[0]['model']} on {rows[0]['dataset']}", columns, shown)
    for number, note in enumerate(notes):
        say(f"[{number + 1}] {note}")
    say(f"results.json and report.html written to {workdir}; {time.monotonic() - began:.0f} s")


def say_what_would_be_done(config: ConfigDict, workdir: str) -> None:
    """Pictures, searches and rows of a config, and whether a work folder holds some of it. Raises UserError as a run would."""

    from regcache_jax import pipeline
    from regcache_jax.data import open_dataset
    from regcache_jax.encoders import catalog
    from regcache_jax.files.places import as_path
    from regcache_jax.pipeline.table import kind_of, table_cells

    fields = pipeline.read_config(config)
    pipeline.check_config(fields)
    if fields.model != "bundled" and "/" not in fields.model and not as_path(fields.model).exists():
        catalog.get(fields.model)  # raises, with the nearest names
    for which in ("reference", "calibration", "evaluation", *(["bank"] if fields.task == "knn" else [])):
        given = getattr(fields, which)
        data = open_dataset(given.dataset, given.data_dir or None, given.split or None, given.limit or None)
        say(f"{which}: {counted(len(data), 'picture')} of {data.name} ({data.split})")
    cells = [f"{cell.bits} {kind_of(cell)}" for cell in table_cells(fields)]
    say(
        f"{fields.model}: {counted(len(fields.schemes), 'search')} ({', '.join(fields.schemes)}), then "
        f"{counted(len(cells), 'row')}: {', '.join(cells)}"
    )
    kept = len(list(as_path(workdir).glob("stages/*.json")))
    there = (
        f"{counted(kept, 'stage')} there; what was made from the same things is kept"
        if kept
        else "nothing is there yet"
    )
    say(f"{workdir}: {there}. Nothing was run or written")


@dataclasses.dataclass(frozen=True)
class DemoArgs:
    """Where the demo's results go."""

    out: str = option("Where results go.", "build/demo", path="folder")
    print_model: bool = option("Only print the bundled model's folder.", False)


@click.command()
@takes(chosen=DemoArgs)
def demo(chosen: DemoArgs) -> None:
    """Show it all on the bundled encoder, in about four minutes."""
    from regcache_jax.demo.bundled import bundled_model

    if chosen.print_model:
        say(str(bundled_model()))
        return
    run_and_show(load_config("demo"), chosen.out)
    say(
        "The bundled encoder's outliers were trained and planted, so this shows that the software works; "
        "it is no evidence for the method on real encoders (docs/bundled_encoder.md)."
    )


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """What is run, and where."""

    config: str = option("Config file, or the name of one that comes with the package.")
    workdir: str = option("Work folder (may be gs://); a run that was killed goes on in it.", path="folder")
    dry_run: bool = option("Only check the config, and say what would be done.", False)


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@takes(chosen=RunArgs, processes=Processes)
@click.pass_context
def run(context: click.Context, chosen: RunArgs, processes: Processes) -> None:
    """Run all stages of a config, or go on with a killed run.

    Convert, inspect, search, quantise, evaluate, report. Fields are changed with --config.a.b=c. What has not changed since
    the last run is kept. With --distributed, processes that see the same work folder run a config together.
    """
    processes.join()
    config = load_config(chosen.config)
    override(config, tuple(context.args))
    if chosen.dry_run:
        say_what_would_be_done(config, chosen.workdir)
    else:
        run_and_show(config, chosen.workdir)


@dataclasses.dataclass(frozen=True)
class ReportArgs:
    """Where the page goes."""

    out: str = option("Page to write (.html).", path="file")


@click.command()
@click.argument("workdir", type=click.Path(file_okay=False))
@takes(chosen=ReportArgs)
def report(workdir: str, chosen: ReportArgs) -> None:
    """Write the page of a finished run as one HTML file."""
    from regcache_jax.report.page import write_page
    from regcache_jax.report.story import read_story

    write_page(chosen.out, *read_story(workdir))
    say(f"{workdir} -> {chosen.out}")
