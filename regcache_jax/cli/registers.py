"""`regcache search`."""

from __future__ import annotations

import dataclasses

import click

from regcache_jax.cli.arguments import JsonArgs, ObjectiveArgs, ReferenceData, SchemeArgs, WordArgs, read_images
from regcache_jax.cli.labels import class_vectors_of, labels_of
from regcache_jax.cli.options import some, takes
from regcache_jax.cli.screen import foretell, print_table, progress, say, write_json
from regcache_jax.core.counted import counted
from regcache_jax.core.options import option
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.files.progress import moving


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
        SearchConfig, "delete_counts", "registers", "class_token", "form", "position", "align", "max_trials", "max_minutes",
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
    from regcache_jax.core.outputs import Answers
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.models.plan_file import save_plan
    from regcache_jax.registers.refine import RefineConfig
    from regcache_jax.registers.refine import refine as run_refine
    from regcache_jax.registers.search.claim import measure
    from regcache_jax.registers.search.result import describe_plan
    from regcache_jax.registers.search.search import search as run_search
    from regcache_jax.studies.pace import Pace

    scheme = bits.read()
    if scheme is None:
        raise UserError("a float encoder needs no registers; give a quantised scheme, such as w8a8")
    config = dataclasses.replace(config, objective=error.objective, chunk=pictures.batch_size)
    refuse_existing(chosen.out)
    loaded = checkpoints.load(model)
    data = pictures.open()
    labels = vectors = None
    if config.objective == "accuracy":
        labels, vectors = labels_of(data, range(len(data))), class_vectors_of(loaded, data, words)
    images = read_images(loaded, data)
    foretell(Pace(loaded.encoder).search(len(images), config), "--max-minutes bounds it")
    with progress("searching") as update:
        result = run_search(
            loaded.encoder,
            images,
            scheme,
            config,
            table=chosen.table,
            labels=labels,
            class_vectors=vectors,
            progress=moving(update),
        )
    reference = {"dataset": data.name, "split": data.split, "images": len(data)}
    refine, refined, working = chosen.refine, None, images[result.parts.working]
    if refine is not None and result.helps and result.plan.has_registers:
        with progress("refining", refine) as update:
            refined = run_refine(
                loaded.encoder, working, scheme, result.plan,
                RefineConfig(passes=refine, chunk=pictures.batch_size, objective="pooled" if labels is not None else config.objective),
                progress=moving(update),
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
        f"{counted(len(result.trials), 'trial')}, {result.seconds:.0f} s, {result.block_flops:.3g} block operations -> {chosen.out}"
    )
    run = {"seconds": result.seconds, "compilations": result.compilations, "trials": result.trials}
    write_json(output.json, {**metadata, **run})
