"""`regcache evaluate` and `regcache embed`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from regcache_jax.cli.options import (
    data_options,
    json_option,
    loop_options,
    parallel_option,
    prompt_options,
    read_data,
    read_images,
    read_plan,
    read_scheme,
    scheme_options,
)
from regcache_jax.cli.screen import print_table, progress, say, tell, write_json
from regcache_jax.files.distributed import is_first

if TYPE_CHECKING:
    from regcache_jax.core.spec import Preprocessing
    from regcache_jax.data import Dataset
    from regcache_jax.encoders.encoder import Encoder
    from regcache_jax.evaluation.measure import Measured
    from regcache_jax.evaluation.rows import Rows, Setting
    from regcache_jax.evaluation.tasks import Found
    from regcache_jax.files.results import Row
    from regcache_jax.models.folder import Model

TASKS = ("zeroshot_classification", "zeroshot_retrieval", "knn", "linear_probe", "dense")


def _recalls(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"takes numbers from 1 on, such as 1,5,10, got {text!r}")
    return found


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path())
@data_options("test", None)
@scheme_options("float")
@click.option("--task", type=click.Choice(TASKS), default=TASKS[0], show_default=True, help="What is measured.")
@click.option(
    "--bank-split", default="train", show_default=True, help="knn, linear_probe, dense: split of the training pictures."
)
@click.option("--bank-limit", type=click.IntRange(1), help="knn, linear_probe, dense: only so many training pictures.")
@click.option("--neighbours", type=click.IntRange(1), default=20, show_default=True, help="knn: how many vote.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=0.07,
    show_default=True,
    help="knn: how sharply near pictures outvote far ones.",
)
@click.option(
    "--features",
    type=click.Choice(["pooled", "class", "class+mean"]),
    default="pooled",
    show_default=True,
    help="linear_probe: what the encoder returns, its class token, or that and the mean patch.",
)
@click.option(
    "--captions", type=click.Path(dir_okay=False), help="zeroshot_retrieval: JSON with every picture's texts."
)
@click.option(
    "--recall-at", default="1,5,10", show_default=True, callback=_recalls, help="zeroshot_retrieval: the k of recall@k."
)
@click.option(
    "--masks", type=click.Path(file_okay=False), help="dense: folder of maps of classes (.png), as the pictures lie."
)
@click.option("--registers", type=click.Path(dir_okay=False), help="Register plan for float models.")
@prompt_options()
@loop_options()
@click.option(
    "--results",
    "results_folder",
    type=click.Path(),
    help="Folder for one file a row, as `clip_benchmark build` reads them.",
)
@json_option
def evaluate(
    models: tuple[str, ...],
    dataset: str,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    scheme_name: str,
    activations: str,
    weights: str,
    task: str,
    bank_split: str,
    bank_limit: int | None,
    neighbours: int,
    temperature: float,
    features: str,
    captions: str | None,
    recall_at: tuple[int, ...],
    masks: str | None,
    registers: str | None,
    protocol_name: str,
    classnames: str | None,
    templates: str | None,
    dump_classnames: bool,
    dump_templates: bool,
    parallel: Literal["jit", "pmap"],
    micro_batch: int | Literal["auto"],
    workers: int,
    allow_missing: int,
    workdir: str | None,
    keep_every: int,
    results_folder: str | None,
    json_file: str | None,
) -> None:
    """Measure MODELS, float or quantised, on pictures.

    \b
    zeroshot_classification  class names as prompts; needs a text tower
    zeroshot_retrieval       pictures and their captions; needs a text tower
    knn                      DINOv2's protocol
    linear_probe             logistic regression, its weight decay chosen on held-out training pictures
    dense                    a linear probe on patches that names every pixel's class

    The first model is the float reference of the others: how near their features are and how often they say the same stands beside
    every accuracy. With --scheme, float models are quantised on the way, calibrated on 512 pictures of the train split, and each is
    its own reference.
    """
    from regcache_jax.evaluation.measure import describe
    from regcache_jax.evaluation.protocol import PROTOCOLS
    from regcache_jax.evaluation.rows import Setting
    from regcache_jax.evaluation.tasks import TRAINED, Options, measure_task
    from regcache_jax.files import results
    from regcache_jax.files.store import Cache
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.quantization.quantize import quantize

    trained = task in TRAINED
    if trained and dataset == "folder":
        split = split or "test"  # the whole folder would hold the training pictures too
    data = _annotated(read_data(dataset, data_dir, split, limit, "test"), captions, masks, split)
    bank = None
    if trained:
        bank = _annotated(read_data(dataset, data_dir, bank_split, bank_limit, bank_split), None, masks, bank_split)
    scheme, protocol = read_scheme(scheme_name, activations, weights), PROTOCOLS[protocol_name]
    prompts = protocol.prompts(data, classnames, templates) if task == "zeroshot_classification" else None
    dumped = {} if prompts is None else prompts.dump(dump_classnames, dump_templates)
    kept = max(1, keep_every // 64) if task == "dense" else keep_every  # a picture has a hundred patches and more
    setting = Setting(batch_size, parallel, micro_batch, workers, allow_missing, workdir, kept)
    options, cache = Options(neighbours, temperature, features, recall_at), Cache(workdir)
    rows: list[Row] = []
    reference: Measured | None = None
    float_metrics: dict[str, float] | None = None
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
            return measure_task(
                task, loaded, encoder, encode, data,
                bank=bank, prompts=prompts, options=options, cache=cache, reference=reference,
            )  # fmt: skip

        encoder = loaded.encoder
        if encoder.scheme is None:
            encoder = encoder.with_plan(read_plan(registers, loaded) or encoder.plan)
            if scheme is not None:
                reference, _ = measure(encoder.with_plan(None), None)
                float_metrics = reference.metrics
                images = None
                if scheme.calibrated:
                    calibration = read_data(dataset, data_dir, "train", 512, "train")
                    images = read_images(loaded, calibration, protocol.preprocess(loaded.encoder.spec.preprocessing))
                encoder = quantize(encoder, images, scheme)
        found, made_of = measure(encoder, reference)
        missing = {}
        if made_of.missing:
            tell(f"unreadable and left out ({len(made_of.missing)}): {'; '.join(made_of.missing)}")
            missing = {"missing": made_of.missing}
        row = results.row(
            dataset=data.name,
            model=loaded.encoder.spec.name,
            pretrained=str(folder),
            task=task,
            metrics=found.metrics,
            quantization=describe(
                encoder, len(made_of.places), protocol=protocol_name, float_reference=float_metrics, **missing
            ),
            dumped=dumped,
        )
        rows.append(row)
        if reference is None:
            reference, float_metrics = found, found.metrics if encoder.scheme is None else None
    measures = dict.fromkeys(name for row in rows for name in row["metrics"])  # the first row has no cosine to itself
    columns = ("model", "scheme", "registers", *measures)
    shown = [
        (
            row["pretrained"], row["quantization"]["scheme"], row["quantization"]["registers"],
            *(row["metrics"].get(name) for name in columns[3:]),
        )
        for row in rows
    ]  # fmt: skip
    seen = rows[0]["quantization"]["examples"]
    print_table(f"{task} on {data.name} ({data.split}, n = {seen})", columns, shown)
    written = [results.sealed(row) for row in rows]
    write_json(json_file, written[0] if len(written) == 1 else written)
    if results_folder is not None and is_first():
        results.write_each(results_folder, rows)


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
    from regcache_jax.evaluation.loop import Watch
    from regcache_jax.evaluation.rows import encode_dataset

    watch = Watch()
    with progress(f"{name}: {data.split} of {data.name}", len(data)) as update:
        rows = encode_dataset(step, encoder, data, preparation, setting, progress=update, watch=watch, tell=tell)
    if watch.elapsed:
        tell(f"{name}: the devices waited for the host {watch.share:.0%} of {watch.elapsed:.1f} s")
    return rows


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--images", required=True, type=click.Path(file_okay=False), help="Folder of pictures, read with subfolders."
)
@click.option("--texts", type=click.Path(dir_okay=False), help="Text file, one text a line.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write (.npz); must not exist.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pictures a step.")
@click.option("--strict", is_flag=True, help="Stop at the first picture that cannot be read.")
@parallel_option
def embed(
    model: str,
    images: str,
    texts: str | None,
    out: str,
    batch_size: int,
    strict: bool,
    parallel: Literal["jit", "pmap"],
) -> None:
    """Write the features of a folder of pictures, and of texts.

    The file holds `features` [n, D] float32, `paths` and, with --texts, `text_features`. A picture that cannot be read is
    reported and left out; the exit status is then 1.
    """
    from regcache_jax.core.errors import UserError
    from regcache_jax.evaluation.embedding import embed_pictures, embed_texts, write_embeddings
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints

    refuse_existing(out)
    loaded = checkpoints.load(model)
    data = read_data("folder", images, None, None, "test")
    text_features = None
    if texts is not None:
        try:
            lines = [line for line in Path(texts).read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{texts} is not text in UTF-8: {error}") from None
        text_features = embed_texts(loaded, lines)
    with progress(f"embedding {len(data)} pictures", len(data)) as update:
        found = embed_pictures(loaded, data, batch_size, strict=strict, parallel=parallel, progress=update)
    write_embeddings(out, found, text_features)
    for message in found.unreadable:
        click.echo(f"regcache: {message}", err=True)
    say(f"{len(found.paths)} pictures -> {out}")
    if found.unreadable:
        raise UserError(f"{len(found.unreadable)} of {len(data)} pictures could not be read")
