"""`regcache inspect` and `regcache search`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from regcache_jax.cli.arguments import JsonArgs, ObjectiveArgs, ReferenceData, SchemeArgs, WordArgs, read_images
from regcache_jax.cli.options import some, takes
from regcache_jax.cli.screen import digits, print_table, progress, say, write_json, write_text
from regcache_jax.core.options import like, option
from regcache_jax.core.search_config import SearchConfig

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.data import Dataset
    from regcache_jax.models.folder import Model
    from regcache_jax.registers.inspect import Profile

ERRORS = {
    "pooled": "error of the features",
    "patches": "error of the patch tokens",
    "both": "error of features and patch tokens",
    "accuracy": "drop in top-1",
}
"""What a sensitivity is of, by objective."""

MEASURED = 64
"""Pictures, spread over the set, on which `inspect` measures sensitivity: 4 L runs of the blocks."""


def _class_vectors(model: Model, data: Dataset, words: WordArgs) -> np.ndarray:
    """A unit vector a class, for what is measured by top-1."""
    from regcache_jax.data.prompts import class_names
    from regcache_jax.data.prompts import templates as prompt_templates
    from regcache_jax.evaluation.zero_shot import class_vectors

    names, prompts = class_names(data, words.classnames), prompt_templates(data, words.templates)
    return class_vectors(model.encoder, model.tokenize, names.texts, prompts.texts)


def _labels(data: Dataset, indices: Any) -> np.ndarray:
    """The classes of some examples. Raises UserError where one has none."""
    import numpy as np

    from regcache_jax.core.errors import UserError

    labels = [data[int(index)].label for index in indices]
    if any(label is None for label in labels):
        raise UserError(f"{data.name} ({data.split}) has pictures without a class, and accuracy needs one for each")
    return np.array(labels)


def _stream(
    model: Model, data: Dataset, batch_size: int, update: Callable[..., None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches with masks, read as they are needed: an inspection keeps none of them."""
    from regcache_jax.data import batches

    for batch in batches(data, model.preprocess, min(batch_size, len(data))):
        yield batch.image, batch.mask
        update(int(batch.mask.sum()), total=len(data))


def _norm_rows(profile: Profile) -> list[tuple[Any, ...]]:
    """A row a block and token group that the encoder has: largest / median norm at every place."""
    from regcache_jax.registers.inspect import GROUPS, PLACES

    names = {"class": "class token", "register": "registers", "patch": "patches"}
    return [
        (
            block, names[group],
            *(f"{digits(profile.maximum[place, block, g])} / {digits(profile.median[place, block, g])}"
              for place in range(len(PLACES))),
        )
        for block in range(profile.maximum.shape[1])
        for g, group in enumerate(GROUPS)
        if profile.maximum[:, :, g].any()
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InspectArgs:
    """What is measured and drawn."""

    scheme: str = like(SchemeArgs, "scheme", help="Scheme for the sensitivity.")
    accuracy: bool = option("The same as --objective accuracy: sensitivity is the drop in top-1.", False)
    picture: str | None = option("Also draw norms, sinks and sensitivity (SVG).", None, path="file")


@click.command()
@click.argument("model", type=click.Path())
@takes(pictures=ReferenceData, error=ObjectiveArgs, chosen=InspectArgs, words=WordArgs, output=JsonArgs)
def inspect(
    model: str, pictures: ReferenceData, error: ObjectiveArgs, chosen: InspectArgs, words: WordArgs, output: JsonArgs
) -> None:
    """Show where the outliers of MODEL are, and what would help.

    Norms are l-inf norms of tokens, at the input of every block and of its four quantised sites. Sensitivity is the error of
    the objective when one site of one block alone is quantised, on 64 of the pictures.
    """
    import numpy as np

    from regcache_jax.core.errors import UserError
    from regcache_jax.core.objective import checked, name_of
    from regcache_jax.core.scheme import SITES, Scheme
    from regcache_jax.data import batches
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.registers import inspect as inspection
    from regcache_jax.registers.sensitivity import sensitivity
    from regcache_jax.registers.verdict import judge

    scheme = Scheme.named(chosen.scheme)
    if scheme is None:
        raise UserError("sensitivity needs a quantised scheme, such as w8a8")
    objective = checked("accuracy" if chosen.accuracy else error.objective)
    picture, accuracy = chosen.picture, objective == "accuracy"
    if picture is not None and not picture.lower().endswith(".svg"):
        raise UserError(f"--picture writes SVG; call it something.svg, not {picture}")
    loaded = checkpoints.load(model)
    data = pictures.open()
    measured = np.linspace(0, len(data) - 1, min(MEASURED, len(data))).round().astype(int).tolist()
    labels = _labels(data, measured) if accuracy else None
    vectors = _class_vectors(loaded, data, words) if accuracy else None
    with progress("norms by block and token", len(data)) as update:
        stream = _stream(loaded, data, pictures.batch_size, update)
        profile = inspection.inspect(loaded.encoder, stream, batch_size=pictures.batch_size)
    with progress("sensitivity by block and site"):
        (batch,) = batches(data, loaded.preprocess, len(measured), indices=measured)
        errors = sensitivity(
            loaded.encoder, batch.image, scheme, objective=objective, labels=labels, class_vectors=vectors
        )
    verdict = judge(profile, errors)
    places = ("block input", *(f"{site} input" for site in SITES))
    print_table("l-inf norms of tokens, largest / median", ("block", "tokens", *places), _norm_rows(profile))
    what = ERRORS[name_of(objective)]
    rows = [
        (
            block,
            *(digits(float(row[block])) for row in (
                profile.sinks_per_image, profile.sink_attention, profile.sink_cosine, profile.ordinary_cosine,
            )),
            *(digits(float(error)) for error in errors[block]),
        )
        for block in range(len(errors))
    ]  # fmt: skip
    columns = ("block", "sinks/image", "attention", "cosine", "ordinary", *SITES)
    print_table(f"Sinks at the block's input; {what} with one site at {scheme.name}", columns, rows)
    for finding in verdict.findings:
        say(finding.sentence())
        say(f"  {finding.evidence()}")
    block, site = verdict.most_sensitive or (verdict.sensitive_block, "fc2")
    say(f"sensitive block: {verdict.sensitive_block} (sinks begin); largest {what} of one site: block {block}, {site}")
    if picture is not None:
        from regcache_jax.report.plots import inspection_sheet

        write_text(picture, inspection_sheet(profile, errors, loaded.encoder.spec.image.grid, what))
    found = {
        "profile": profile.to_json(),
        "sensitivity": {"sites": list(SITES), "measure": what, "errors": errors.tolist()},
    }
    write_json(output.json, {**found, "verdict": verdict.to_json()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchArgs:
    """Where the plan goes, and what is done beside the search."""

    out: str = option("Register plan to write (.safetensors).", path="file")
    table: str | None = option("Trial table (JSONL); a killed search goes on from it.", None, path="file")
    refine: int | None = option(
        "Then train rows and copies for so many passes (no labels).", None, unit="passes", least=1
    )


@click.command()
@click.argument("model", type=click.Path())
@takes(
    pictures=ReferenceData,
    bits=SchemeArgs,
    chosen=SearchArgs,
    error=ObjectiveArgs,
    config=some(
        SearchConfig, "delete_counts", "registers", "class_token", "form", "align", "max_trials", "max_minutes",
        "max_block_flops",
    ),
    words=WordArgs,
    output=JsonArgs,
)  # fmt: skip
def search(
    model: str,
    pictures: ReferenceData,
    bits: SchemeArgs,
    chosen: SearchArgs,
    error: ObjectiveArgs,
    config: SearchConfig,
    words: WordArgs,
    output: JsonArgs,
) -> None:
    """Find the registers of MODEL for a scheme, without labels.

    The error between float and quantised features (--objective: or patch tokens) on reference pictures decides; the answer may be
    that no plan helps. For patch tokens nothing is deleted unless --delete-counts says so.
    """
    from regcache_jax.core.errors import UserError
    from regcache_jax.core.objective import Answers
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.models.plan_file import save_plan
    from regcache_jax.registers.refine import RefineConfig
    from regcache_jax.registers.refine import refine as run_refine
    from regcache_jax.registers.search.claim import measure
    from regcache_jax.registers.search.result import describe_plan
    from regcache_jax.registers.search.search import search as run_search

    scheme = bits.read()
    if scheme is None:
        raise UserError("a float encoder needs no registers; give a quantised scheme, such as w8a8")
    config = dataclasses.replace(config, objective=error.objective, chunk=pictures.batch_size)
    refuse_existing(chosen.out)
    loaded = checkpoints.load(model)
    data = pictures.open()
    labels = vectors = None
    if config.objective == "accuracy":
        labels, vectors = _labels(data, range(len(data))), _class_vectors(loaded, data, words)
    images = read_images(loaded, data)
    with progress("searching") as update:
        shown = 0

        def tell(done: int, planned: int, best: float) -> None:
            nonlocal shown
            update(done - shown, total=planned, note=f"best error {best:.3g}")
            shown = done

        result = run_search(
            loaded.encoder,
            images,
            scheme,
            config,
            table=chosen.table,
            labels=labels,
            class_vectors=vectors,
            progress=tell,
        )
    reference = {"dataset": data.name, "split": data.split, "images": len(data)}
    refine, refined, working = chosen.refine, None, images[result.parts.working]
    if refine is not None and result.helps and result.plan.has_registers:
        with progress("refining", refine) as update:
            refined = run_refine(
                loaded.encoder, working, scheme, result.plan,
                RefineConfig(passes=refine, chunk=pictures.batch_size, objective="pooled" if labels is not None else config.objective),
                progress=lambda done, error: update(1, note=f"held-back error {error:.3g}"),
            )  # fmt: skip
        verifying = result.parts.verifying
        claim, moved = measure(
            loaded.encoder, working, images[verifying], scheme, refined.plan, objective=config.objective,
            answers=None if labels is None or vectors is None else Answers(labels[verifying], vectors),
        )  # fmt: skip
        result = dataclasses.replace(result, plan=refined.plan, claim=claim, moved=moved)
    metadata = describe_plan(result, loaded.encoder, scheme, config, reference)
    metadata |= {} if refined is None else {"refined": refined.to_json()}
    save_plan(chosen.out, result.plan, metadata)
    print_table("Register plan", ("what", "value"), list(metadata["numbers"].items()))
    say(result.parts.sentence())
    say(result.sentence())
    for remark in result.remarks():
        say(remark)
    if refine is not None:
        say(refined.sentence() if refined else "there are no registers to refine")
    say(
        f"{len(result.trials)} trials, {result.seconds:.0f} s, {result.block_flops:.3g} block operations -> {chosen.out}"
    )
    run = {"seconds": result.seconds, "compilations": result.compilations, "trials": result.trials}
    write_json(output.json, {**metadata, **run})
