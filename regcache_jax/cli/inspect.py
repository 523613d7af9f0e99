"""`regcache inspect`: a verdict from the norms at once, then what is measured on a few pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from regcache_jax.cli.arguments import InspectedData, JsonArgs, ObjectiveArgs, SchemeArgs, WordArgs
from regcache_jax.cli.labels import class_vectors_of, labels_of
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import digits, foretell, print_table, progress, say, tell, write_json, write_text
from regcache_jax.core.counted import counted
from regcache_jax.core.options import like, option
from regcache_jax.files.progress import moving

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.core.objective import Objective
    from regcache_jax.core.outputs import Answers
    from regcache_jax.core.scheme import Scheme
    from regcache_jax.data import Dataset
    from regcache_jax.encoders.encoder import Encoder
    from regcache_jax.models.folder import Model
    from regcache_jax.registers.inspect import Profile
    from regcache_jax.registers.stakes import Stakes

ERRORS = {
    "pooled": "error of the features",
    "patches": "error of the patch tokens",
    "both": "error of features and patch tokens",
    "accuracy": "drop in top-1",
}
"""What a sensitivity is of, by objective."""


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


def _print_sinks(profile: Profile) -> None:
    """A row a block: how many sinks, what they draw, how alike they are, and what they carry."""
    columns = ("block", "sinks/image", "attention", "cosine", "ordinary", "values", "moved")
    carried = profile.sink_value.mean(axis=1), profile.sink_moved.max(axis=1)
    parts = (profile.sinks_per_image, profile.sink_attention, profile.sink_cosine, profile.ordinary_cosine, *carried)
    rows = [(block, *(digits(float(part[block])) for part in parts)) for block in range(len(profile.sinks_per_image))]
    print_table(
        "Sinks at the block's input; values beside ordinary ones, most that a head moves of them", columns, rows
    )


@dataclasses.dataclass(frozen=True)
class InspectArgs:
    """What is measured and drawn."""

    scheme: str = like(SchemeArgs, "scheme", help="Scheme of the stakes and the sensitivity.")
    sensitivity_images: int = option(
        "Measure what outliers cost and sites suffer on so many, spread over the set; 0 leaves it out.",
        16,
        unit="pictures",
        least=0,
    )
    accuracy: bool = option("The same as --objective accuracy: sensitivity is the drop in top-1.", False)
    picture: str | None = option("Also draw norms, sinks and sensitivity (SVG).", None, path="file")


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What the second step gives: an error by block and site, and what is at stake."""

    errors: np.ndarray
    stakes: Stakes


def _measure(
    encoder: Encoder,
    images: np.ndarray,
    scheme: Scheme,
    profile: Profile,
    objective: Objective,
    answers: Answers | None,
) -> _Measured:
    """The second step: what each outlier costs, what remedies leave, and what each site costs alone."""
    from regcache_jax.registers.remedies import try_remedies
    from regcache_jax.registers.sensitivity import sensitivity
    from regcache_jax.registers.stakes import measure_stakes

    with progress("what each outlier costs") as update:
        stakes = measure_stakes(
            encoder, images, scheme, profile, objective=objective, answers=answers, progress=moving(update)
        )
    with progress("remedies") as update:
        left = try_remedies(encoder, images, scheme, profile, objective=objective, progress=moving(update))
    with progress("sensitivity by block and site") as update:
        errors = sensitivity(
            encoder, images, scheme, objective=objective, progress=moving(update),
            labels=None if answers is None else answers.labels,
            class_vectors=None if answers is None else answers.class_vectors,
        )  # fmt: skip
    return _Measured(errors, dataclasses.replace(stakes, remedies=left))


@click.command()
@click.argument("model", type=click.Path())
@takes(pictures=InspectedData, error=ObjectiveArgs, chosen=InspectArgs, words=WordArgs, output=JsonArgs)
def inspect(
    model: str, pictures: InspectedData, error: ObjectiveArgs, chosen: InspectArgs, words: WordArgs, output: JsonArgs
) -> None:
    """Show where outliers are, what they cost, and what would help.

    Norms are l-inf norms of tokens, at the input of every block and of its four quantised sites; the verdict on them comes first. Then,
    on a few pictures (--sensitivity-images), the error of the objective is measured: of plain integers, without each outlier, with
    each remedy, and with one site of one block alone quantised (the sensitivity).
    """
    import numpy as np

    from regcache_jax.core.errors import UserError
    from regcache_jax.core.objective import checked, name_of
    from regcache_jax.core.outputs import Answers
    from regcache_jax.core.scheme import SITES, Scheme
    from regcache_jax.data import batches
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.registers import inspect as inspection
    from regcache_jax.registers.verdict import judge
    from regcache_jax.studies.pace import Pace

    scheme = Scheme.named(chosen.scheme)
    if scheme is None:
        raise UserError("what outliers cost is measured under a quantised scheme, such as w8a8")
    objective = checked("accuracy" if chosen.accuracy else error.objective)
    picture, count = chosen.picture, chosen.sensitivity_images
    if picture is not None and not picture.lower().endswith(".svg"):
        raise UserError(f"--picture writes SVG; call it something.svg, not {picture}")
    if picture is not None and not count:
        raise UserError("--picture draws the sensitivity too; --sensitivity-images must be at least 1")
    loaded = checkpoints.load(model)
    data = pictures.open()
    chosen_pictures = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist()
    answers = None
    if objective == "accuracy" and count:
        answers = Answers(labels_of(data, chosen_pictures), class_vectors_of(loaded, data, words))
    pace = Pace(loaded.encoder)
    seconds = pace.passes(2 * len(data)) + (
        pace.stakes(len(chosen_pictures)) + pace.sensitivity(len(chosen_pictures)) if count else 0
    )
    foretell(seconds, "--limit and --sensitivity-images bound it")
    with progress("norms by block and token", len(data)) as update:
        stream = _stream(loaded, data, pictures.batch_size, update)
        profile = inspection.inspect(loaded.encoder, stream, batch_size=pictures.batch_size)
    places = ("block input", *(f"{site} input" for site in SITES))
    print_table("l-inf norms of tokens, largest / median", ("block", "tokens", *places), _norm_rows(profile))
    _print_sinks(profile)
    verdict, measured, what = judge(profile), None, ERRORS[name_of(objective)]
    for finding in verdict.findings:
        say(finding.sentence())
        say(f"  {finding.evidence()}")
    if verdict.carried is not None:
        say(verdict.carried)
    say(verdict.where)
    if count:
        tell(
            f"now, on {counted(len(chosen_pictures), 'picture')}: what each outlier costs, and each site "
            "(--sensitivity-images 0 leaves this out)"
        )
        (batch,) = batches(data, loaded.preprocess, len(chosen_pictures), indices=chosen_pictures)
        measured = _measure(loaded.encoder, batch.image, scheme, profile, objective, answers)
        verdict = judge(profile, measured.errors, measured.stakes)
        rows = [(block, *(digits(float(error)) for error in errors)) for block, errors in enumerate(measured.errors)]
        print_table(f"{what} with one site at {scheme.name}", ("block", *SITES), rows)
        for sentence in (*(finding.sentence() for finding in verdict.findings), *measured.stakes.sentences()):
            say(sentence)
        block, site = verdict.most_sensitive or (verdict.sensitive_block, "fc2")
        say(f"largest {what} of one site: block {block}, {site}")
        if picture is not None:
            from regcache_jax.report.plots import inspection_sheet

            write_text(picture, inspection_sheet(profile, measured.errors, loaded.encoder.spec.image.grid, what))
    found = {
        "profile": profile.to_json(),
        "sensitivity": None
        if measured is None
        else {
            "sites": list(SITES),
            "measure": what,
            "images": len(chosen_pictures),
            "errors": measured.errors.tolist(),
        },
    }
    write_json(output.json, {**found, "verdict": verdict.to_json()})
