"""`regcache evaluate` and `regcache embed`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from regcache_jax.cli.options import (
    data_options,
    json_option,
    prompt_options,
    read_data,
    read_images,
    read_plan,
    read_scheme,
    scheme_options,
)
from regcache_jax.cli.screen import print_table, progress, say, write_json

if TYPE_CHECKING:
    from regcache_jax.checkpoints import Model
    from regcache_jax.data import Dataset
    from regcache_jax.encoders.encoder import Encoder
    from regcache_jax.evaluation.measure import Labelled

parallel_option = click.option(
    "--parallel",
    type=click.Choice(["jit", "pmap"]),
    default="jit",
    show_default=True,
    help="How devices share the work.",
)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path())
@data_options("test", None)
@scheme_options("float")
@click.option(
    "--task",
    type=click.Choice(["zeroshot_classification", "knn", "linear_probe"]),
    default="zeroshot_classification",
    show_default=True,
)
@click.option(
    "--bank-split", default="train", show_default=True, help="knn, linear_probe: split of the training pictures."
)
@click.option("--neighbours", type=click.IntRange(1), default=20, show_default=True, help="knn: how many vote.")
@click.option("--registers", type=click.Path(dir_okay=False), help="Register plan for float models.")
@prompt_options()
@click.option("--micro-batch", type=click.IntRange(1), help="Rows a device works on at a time.")
@parallel_option
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
    neighbours: int,
    registers: str | None,
    protocol_name: str,
    classnames: str | None,
    templates: str | None,
    dump_classnames: bool,
    dump_templates: bool,
    micro_batch: int | None,
    parallel: Literal["jit", "pmap"],
    json_file: str | None,
) -> None:
    """Measure MODELS, float or quantised, on labelled pictures.

    Zero-shot classification needs a text tower; knn (DINOv2's protocol) and linear_probe (logistic regression, its
    weight decay chosen on held-out training pictures) do without one. With --scheme, float models are quantised on the way,
    calibrated on 512 pictures of the dataset's train split. The first model is the reference of the others' cosine.
    """
    from regcache_jax import checkpoints
    from regcache_jax.data import batches
    from regcache_jax.evaluation import loop, results
    from regcache_jax.evaluation.knn import knn_scores
    from regcache_jax.evaluation.linear_probe import probe_scores
    from regcache_jax.evaluation.measure import describe, encode_all, measure
    from regcache_jax.evaluation.protocol import PROTOCOLS
    from regcache_jax.evaluation.zero_shot import class_scores, class_vectors
    from regcache_jax.quantization.quantize import quantize

    data = read_data(dataset, data_dir, split, limit, "test")
    bank = read_data(dataset, data_dir, bank_split, None, bank_split) if task in ("knn", "linear_probe") else None
    scheme = read_scheme(scheme_name, activations, weights)
    protocol = PROTOCOLS[protocol_name]
    prompts = protocol.prompts(data, classnames, templates) if bank is None else None
    dumped = {} if prompts is None else prompts.dump(dump_classnames, dump_templates)
    rows, reference = [], None
    for folder in models:
        loaded = checkpoints.load(folder)
        encoder, own = loaded.encoder, protocol.preprocess(loaded.encoder.spec.preprocessing)
        if encoder.scheme is None:
            encoder = encoder.with_plan(read_plan(registers, loaded) or encoder.plan)
            if scheme is not None:
                calibration = read_data(dataset, data_dir, "train", 512, "train") if scheme.calibrated else None
                images = None if calibration is None else read_images(loaded, calibration, own)
                encoder = quantize(encoder, images, scheme)
        size = loop.round_up(batch_size)

        def encoded(
            part: Dataset, loaded: Model = loaded, encoder: Encoder = encoder, own: Any = own, size: int = size
        ) -> Labelled:
            with progress(f"{loaded.folder.name}: {part.split} of {part.name}", len(part)) as update:
                return encode_all(
                    encoder, batches(part, own, size),
                    parallel=parallel, micro_batch=micro_batch, progress=update,
                )  # fmt: skip

        if bank is None:
            assert prompts is not None
            click.echo(protocol.sentence(prompts, loaded.encoder.spec.preprocessing), err=True)
            vectors = class_vectors(loaded.encoder, loaded.tokenize, prompts.classnames, prompts.templates)
            found = measure(encoded(data), functools.partial(class_scores, vectors=vectors), reference)
        else:
            voters, seen = encoded(bank), encoded(data)
            count = 1 + max(int(voters.labels.max()), int(seen.labels.max()))
            classify = functools.partial(knn_scores, neighbours=neighbours) if task == "knn" else probe_scores
            scores = functools.partial(classify, bank=voters.features, labels=voters.labels, num_classes=count)
            found = measure(seen, scores, reference)
        reference = found if reference is None else reference
        quantization = describe(encoder, examples=len(found.features), protocol=protocol_name)
        rows.append(
            results.row(
                dataset=data.name,
                model=loaded.encoder.spec.name,
                pretrained=str(folder),
                task=task,
                metrics=found.metrics,
                quantization=quantization,
                dumped=dumped,
            )
        )
    measures = dict.fromkeys(name for row in rows for name in row["metrics"])  # the first row has no cosine to itself
    columns = ("model", "scheme", "registers", *measures)
    shown = [
        (
            row["pretrained"], row["quantization"]["scheme"], row["quantization"]["registers"],
            *(row["metrics"].get(name) for name in columns[3:]),
        )
        for row in rows
    ]  # fmt: skip
    print_table(f"{task} on {data.name} ({data.split}, n = {len(data)})", columns, shown)
    write_json(json_file, rows[0] if len(rows) == 1 else rows)


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--images", required=True, type=click.Path(file_okay=False), help="Folder of pictures, read with subfolders."
)
@click.option("--texts", type=click.Path(dir_okay=False), help="Text file, one text a line.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write (.npz); must not exist.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
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
    from regcache_jax import checkpoints
    from regcache_jax.errors import UserError
    from regcache_jax.evaluation.embedding import embed_pictures, embed_texts, write_embeddings

    if Path(out).exists():
        raise UserError(f"{out} exists already; choose another name or remove it first")
    loaded = checkpoints.load(model)
    data = read_data("folder", images, None, None, "test")
    text_features = None
    if texts is not None:
        lines = [line for line in Path(texts).read_text().splitlines() if line.strip()]
        text_features = embed_texts(loaded, lines)
    with progress(f"embedding {len(data)} pictures", len(data)) as update:
        found = embed_pictures(loaded, data, batch_size, strict=strict, parallel=parallel, progress=update)
    write_embeddings(out, found, text_features)
    for message in found.unreadable:
        click.echo(f"regcache: {message}", err=True)
    say(f"{len(found.paths)} pictures -> {out}")
    if found.unreadable:
        raise UserError(f"{len(found.unreadable)} of {len(data)} pictures could not be read")
