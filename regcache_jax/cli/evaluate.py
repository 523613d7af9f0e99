"""`regcache evaluate`: one or several model folders on one dataset."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from regcache_jax.cli.arguments import (
    JsonArgs,
    LabelFreeArgs,
    ParallelArgs,
    Processes,
    SchemeOrFloat,
    TestedData,
    WordArgs,
    read_images,
    read_plan,
)
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import print_table, progress, tell, write_json
from regcache_jax.core.objective import LabelFree
from regcache_jax.core.options import like, option
from regcache_jax.files.distributed import is_first

if TYPE_CHECKING:
    from regcache_jax.core.outputs import Outputs
    from regcache_jax.core.spec import Preprocessing
    from regcache_jax.data import Dataset
    from regcache_jax.encoders.encoder import Encoder
    from regcache_jax.evaluation.job import Found
    from regcache_jax.evaluation.measure import Measured
    from regcache_jax.evaluation.rows import Rows, Setting
    from regcache_jax.files.results import Row
    from regcache_jax.models.folder import Model


@dataclasses.dataclass(frozen=True)
class TaskArgs:
    """What is measured, and what each task is told."""

    task: str = option(
        "What is measured.",
        "zeroshot_classification",
        words=(
            "zeroshot_classification", "zeroshot_retrieval", "classification", "knn", "linear_probe", "dense", "tower",
        ),
        open_to="task",
    )  # fmt: skip
    bank_split: str = option("knn, linear_probe, dense: split of the training pictures.", "train")
    bank_limit: int | None = option(
        "knn, linear_probe, dense: only so many training pictures.", None, unit="pictures", least=1
    )
    neighbours: int = option("knn: how many vote.", 20, least=1)
    temperature: float = option("knn: how sharply near pictures outvote far ones.", 0.07, above=0)
    features: Literal["pooled", "class", "class+mean"] = option(
        "linear_probe: what the encoder returns, its class token, or that and the mean patch.", "pooled"
    )
    captions: str | None = option("zeroshot_retrieval: JSON with every picture's texts.", None, path="file")
    recall_at: tuple[int, ...] = option("zeroshot_retrieval: the k of recall@k.", (1, 5, 10), least=1)
    masks: str | None = option("dense: folder of maps of classes (.png), as the pictures lie.", None, path="folder")
    registers: str | None = option("Register plan for float models.", None, path="file")
    objective: LabelFree | None = like(
        LabelFreeArgs,
        "objective",
        default=None,
        help="Also the label-free error: of the pooled feature, the patch tokens, or both, on at most 512 of the pictures.",
    )


@dataclasses.dataclass(frozen=True)
class PromptArgs(WordArgs):
    """Whose words and which protocol a zero-shot evaluation takes."""

    protocol: Literal["open_clip", "big_vision"] = option("Whose cleaning of words and crop of pictures.", "open_clip")
    dump_classnames: bool = option("Also write the class names with the results.", False)
    dump_templates: bool = option("Also write the templates with the results.", False)


@dataclasses.dataclass(frozen=True)
class LoopArgs(ParallelArgs):
    """How an evaluation's loop works: devices, processes, workers, and what is kept when it is killed."""

    micro_batch: int | Literal["auto"] = option(
        "Pictures a device works on at a time; auto: what is cheapest by a TPU's compiler, what fits a CPU's cache.",
        "auto",
        unit="rows",
        least=1,
    )
    workers: int = option("Processes that decode pictures; 0: threads, one a core.", 0, unit="processes", least=0)
    allow_missing: int = option(
        "So many pictures may be unreadable; they are listed and left out.", 0, unit="pictures", least=0
    )
    workdir: str | None = option(
        "Folder (or gs://) that keeps what is done, so that an evaluation that was killed goes on.", None, path="folder"
    )
    keep_every: int = option("With --workdir: pictures, about, between two files.", 1024, unit="pictures", least=1)

    def setting(self, batch_size: int, task: str) -> Setting:
        """The same for the loop."""
        from regcache_jax.evaluation.rows import Setting

        # a picture of patches has a hundred of them and more
        kept = max(1, self.keep_every // 64) if task in ("dense", "tower") else self.keep_every
        return Setting(
            batch_size, self.parallel, self.micro_batch, self.workers, self.allow_missing, self.workdir, kept
        )


@dataclasses.dataclass(frozen=True)
class ResultArgs(JsonArgs):
    """Where results are written."""

    results: str | None = option(
        "Folder for one file a row, as `clip_benchmark build` reads them.", None, path="folder"
    )


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path())
@takes(
    pictures=TestedData, bits=SchemeOrFloat, chosen=TaskArgs, words=PromptArgs, loop=LoopArgs, processes=Processes,
    output=ResultArgs,
)  # fmt: skip
def evaluate(
    models: tuple[str, ...],
    pictures: TestedData,
    bits: SchemeOrFloat,
    chosen: TaskArgs,
    words: PromptArgs,
    loop: LoopArgs,
    processes: Processes,
    output: ResultArgs,
) -> None:
    """Measure MODELS, float or quantised, on pictures.

    \b
    zeroshot_classification  class names as prompts; needs a text tower
    zeroshot_retrieval       pictures and their captions; needs a text tower
    classification           by the classifier that the encoder was published with
    knn                      DINOv2's protocol
    linear_probe             logistic regression, its weight decay chosen on held-out training pictures
    dense                    a linear probe on patches that names every pixel's class
    tower                    how near every patch is to the first model's: what a language model reads

    The first model is the float reference of the others: how near their features are and how often they say the same stands beside
    every accuracy, and with --objective the label-free error by which plans are searched. With --scheme, float models are quantised on
    the way, calibrated on 512 pictures of the train split, and each is its own reference.
    """
    from regcache_jax.evaluation import label_free
    from regcache_jax.evaluation.job import Job, Options
    from regcache_jax.evaluation.measure import describe
    from regcache_jax.evaluation.protocol import PROTOCOLS
    from regcache_jax.evaluation.tasks import TASKS
    from regcache_jax.files import results
    from regcache_jax.files.store import Cache
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.models.description import read_description
    from regcache_jax.quantization.quantize import quantize

    processes.join()
    for folder in models:
        read_description(folder)  # one that is none is said before another is measured
    task = TASKS[chosen.task]
    data, bank = _pictures(pictures, chosen, task.trained)
    scheme, protocol = bits.read(), PROTOCOLS[words.protocol]
    prompts = protocol.prompts(data, words.classnames, words.templates) if task.worded else None
    dumped = {} if prompts is None else prompts.dump(words.dump_classnames, words.dump_templates)
    setting, cache = loop.setting(pictures.batch_size, chosen.task), Cache(loop.workdir)
    options = Options(chosen.neighbours, chosen.temperature, chosen.features, chosen.recall_at)
    rows: list[Row] = []
    reference: Measured | None = None
    float_metrics: dict[str, float] | None = None
    exact: Outputs | None = None
    for folder in models:
        loaded = checkpoints.load(folder)
        preparation = protocol.preprocessing(loaded.encoder.spec.preprocessing)
        if prompts is not None:
            tell(protocol.sentence(prompts, loaded.encoder.spec.preprocessing))

        def measure(
            encoder: Encoder,
            reference: Measured | None,
            loaded: Model = loaded,
            preparation: Preprocessing = preparation,
        ) -> Found:
            encode = functools.partial(_encode, encoder, loaded.folder.name, preparation, setting)
            return task.run(Job(loaded, encoder, encode, data, bank, prompts, options, cache, reference))

        def outputs(
            encoder: Encoder, loaded: Model = loaded, preparation: Preprocessing = preparation
        ) -> Outputs | None:
            encode = functools.partial(_encode, encoder, loaded.folder.name, preparation, setting)
            return None if chosen.objective is None else label_free.outputs(encode, data, chosen.objective)

        encoder = loaded.encoder
        if encoder.scheme is None:
            encoder = encoder.with_plan(read_plan(chosen.registers, loaded) or encoder.plan)
            if scheme is not None:
                reference = measure(encoder.with_plan(None), None).measured
                float_metrics, exact = reference.metrics, outputs(encoder.with_plan(None))
                images = None
                if scheme.calibrated:
                    calibration = pictures.other("train", 512)
                    images = read_images(loaded, calibration, protocol.preprocess(loaded.encoder.spec.preprocessing))
                encoder = quantize(encoder, images, scheme)
        found, own = measure(encoder, reference), outputs(encoder)
        if chosen.objective is not None and own is not None and exact is not None:
            found.measured.metrics["error"] = label_free.error(chosen.objective, own, exact)
        exact = exact or own
        for note in found.notes:
            tell(note)
        missing = {}
        if found.missing:
            tell(f"unreadable and left out ({len(found.missing)}): {'; '.join(found.missing)}")
            missing = {"missing": found.missing}
        row = results.row(
            dataset=data.name,
            model=loaded.encoder.spec.name,
            pretrained=str(folder),
            task=chosen.task,
            metrics=found.measured.metrics,
            quantization=describe(
                encoder, found.examples, protocol=words.protocol, float_reference=float_metrics, **missing, **found.more
            ),
            dumped=dumped,
        )
        rows.append(row)
        if reference is None:
            reference = found.measured
            float_metrics = reference.metrics if encoder.scheme is None else None
    measures = dict.fromkeys(name for row in rows for name in row["metrics"])  # the first row has no cosine to itself
    columns = ("model", "scheme", "registers", *measures)
    short = [Path(row["pretrained"]).name for row in rows]
    names = short if len(set(short)) == len(short) else [row["pretrained"] for row in rows]
    shown = [
        (
            name, row["quantization"]["scheme"], "yes" if row["quantization"]["registers"] else "no",
            *(row["metrics"].get(measure) for measure in measures),
        )
        for name, row in zip(names, rows, strict=True)
    ]  # fmt: skip
    seen = rows[0]["quantization"]["examples"]
    print_table(f"{chosen.task} on {data.name} ({data.split}, n = {seen})", columns, shown)
    written = [results.sealed(row) for row in rows]
    write_json(output.json, written[0] if len(written) == 1 else written)
    if output.results is not None and is_first():
        results.write_each(output.results, rows)


def _pictures(pictures: TestedData, chosen: TaskArgs, trained: bool) -> tuple[Dataset, Dataset | None]:
    """The tested pictures and, of a task that is trained, the training pictures, with captions and masks. Of a folder these are splits;
    one without splits is parted, and that is told."""
    from regcache_jax.data.splits import has_splits, held_out

    split, bank_split = pictures.split, chosen.bank_split
    if not trained:
        return _annotated(pictures.open(), chosen.captions, chosen.masks, split), None
    if pictures.dataset == "folder" and split is None:
        if not has_splits(pictures.data_dir, "test", bank_split):
            bank, data = held_out(dataclasses.replace(pictures, limit=None).open())
            tell(data.notes[-1])
            data, bank = data.spread(pictures.limit), bank.spread(chosen.bank_limit)
            return _annotated(data, None, chosen.masks, None), _annotated(bank, None, chosen.masks, None)
        split = "test"
    data, bank = dataclasses.replace(pictures, split=split).open(), pictures.other(bank_split, chosen.bank_limit)
    return _annotated(data, None, chosen.masks, split), _annotated(bank, None, chosen.masks, bank_split)


def _annotated(data: Dataset, captions: str | None, masks: str | None, split: str | None) -> Dataset:
    """A dataset with the captions of a file and the masks of a folder (in it, of the split's folder, as the pictures lie)."""
    from regcache_jax.data.annotations import with_captions, with_masks

    data = data if captions is None else with_captions(data, captions)
    return data if masks is None else with_masks(data, Path(masks) / split if split else masks)


def _encode(
    encoder: Encoder,
    name: str,
    preparation: Preprocessing,
    setting: Setting,
    step: Callable[[Encoder, Any], Any],
    data: Dataset,
) -> Rows:
    """Rows of a dataset, with progress before and the share of time that the devices waited after."""
    from regcache_jax.evaluation.rows import encode_dataset
    from regcache_jax.evaluation.watch import Watch

    watch = Watch()
    with progress(f"{name}: {data.split} of {data.name}", len(data)) as update:
        rows = encode_dataset(step, encoder, data, preparation, setting, progress=update, watch=watch, tell=tell)
    if watch.elapsed:
        tell(f"{name}: {watch.elapsed:.1f} s, {watch.share:.0%} of them waiting for pictures")
    return rows
