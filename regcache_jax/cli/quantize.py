"""`regcache quantize`."""

from __future__ import annotations

import dataclasses
import importlib.util
import typing
from typing import TYPE_CHECKING, cast

import click

from regcache_jax.cli.arguments import (
    CalibrationData,
    CostArgs,
    JsonArgs,
    LabelFreeArgs,
    SchemeArgs,
    read_images,
    read_plan,
    read_plan_file,
    read_texts,
    recipes_of,
)
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import BarsOfCells, digits, foretell, print_table, progress, say, tell, write_json
from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import LabelFree
from regcache_jax.core.options import like, option
from regcache_jax.core.scheme import Estimator, Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.files.progress import moving
from regcache_jax.studies.recipes import AutoConfig

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.core.progress import Progress
    from regcache_jax.data import Dataset
    from regcache_jax.encoders.encoder import Encoder
    from regcache_jax.models.folder import Model
    from regcache_jax.quantization.calibration import Calibration
    from regcache_jax.registers.search.promise import Promise
    from regcache_jax.studies.cost import Price


@dataclasses.dataclass(frozen=True)
class PicturesArgs(CalibrationData):
    """Pictures that give scales, which a calibration file can do as well."""

    dataset: str = like(CalibrationData, "dataset", default="")  # none
    limit: int | None = like(
        CalibrationData,
        "limit",
        default=None,
        help="Only so many pictures: the first, of a folder evenly spread ones; by default 512, with a plan as many as its search had.",
    )

    def taken(self, promise: Promise | None) -> Dataset:
        """The dataset that is named, with as many pictures as are asked for, or as the search of a plan had."""
        usual = CalibrationData(self.dataset).limit if promise is None else promise.pictures
        return dataclasses.replace(self, limit=self.limit or usual).open()


@dataclasses.dataclass(frozen=True)
class MethodArgs:
    """How integers and scales are found, and what becomes integer beside the blocks' sites."""

    registers: str | None = option("Register plan from `regcache search`.", None, path="file")
    method: str = like(Scheme, "method")
    asymmetric: bool = option("Static scales with zero points.", False)
    estimator: Estimator | None = like(
        Scheme,
        "estimator",
        default=None,
        help="How a static range is taken from what calibration saw; by default absmax, with a plan as its search did.",
    )
    calibration: str | None = option(
        "Take the scales from this file of `regcache calibrate`; no pictures are needed then.", None, path="file"
    )
    keep_float: int = option("Leave so many most sensitive sites in float.", 0, unit="sites", least=0)
    integer_attention: bool = option("Integer q k^T and p v too.", False)
    log_softmax: bool = option("Softmax in half octaves (RepQ-ViT); with --integer-attention.", False)
    integer_head: bool = option("Integer attention pooling too (SigLIP).", False)
    texts: str | None = option("Quantise the text tower too, calibrated on these lines.", None, path="file")
    objective: LabelFree | None = like(
        LabelFreeArgs,
        "objective",
        default=None,
        help="What errors are of, held-out, of --auto and of --keep-float; by default pooled, with a plan what its search went by.",
    )

    def __post_init__(self) -> None:
        if self.log_softmax and not self.integer_attention:
            raise UserError("--log-softmax goes with --integer-attention")

    def applied_to(self, scheme: Scheme, promise: Promise | None) -> Scheme:
        """The scheme with all that is asked for here, and the estimator of a plan's search where none is."""
        usual = scheme.estimator if promise is None else promise.estimator
        return dataclasses.replace(
            scheme,
            method=self.method,
            symmetric=not self.asymmetric,
            estimator=self.estimator or usual,
            products=("qk", "pv") if self.integer_attention else (),
            softmax="log-sqrt2" if self.log_softmax else "uniform",
            also=(("head",) if self.integer_head else ()) + (("text",) if self.texts is not None else ()),
        )

    def error_of(self, promise: Promise | None) -> LabelFree:
        """What errors are of: as asked for, as a plan's search went by where no labels are needed for that, or pooled features."""
        if self.objective is None and promise is not None and promise.objective in typing.get_args(LabelFree):
            return cast(LabelFree, promise.objective)
        return self.objective or "pooled"


@dataclasses.dataclass(frozen=True)
class AutoArgs(CostArgs):
    """Whether recipe and registers are chosen, and among what."""

    auto: bool = option("Choose recipe and registers by label-free error instead.", False)
    recipes: tuple[str, ...] | None = like(
        AutoConfig, "recipes", default=None, help="auto: what to try, with commas, or all; by default what is quick."
    )
    no_registers: bool = option("auto: do not search for registers.", False)
    static_only: bool = like(AutoConfig, "static_only", help="auto: no scales that are measured while running.")
    max_cost: float | None = like(
        AutoConfig, "max_cost", help="auto: at most so many times the cheapest recipe's cost."
    )
    work: str | None = option("auto: folder of its table; a run that was killed goes on in it.", None, path="folder")

    def __post_init__(self) -> None:
        if self.auto and self.work is None:
            raise UserError("--auto needs --work DIR, where its table is kept")
        if not self.auto and any(getattr(self, field.name) != field.default for field in dataclasses.fields(self)):
            raise UserError("--recipes, --no-registers, --static-only, --cost, --max-cost and --work go with --auto")

    def config(self, scheme: Scheme, objective: LabelFree) -> AutoConfig:
        """The same for `auto`, at the bits of a scheme."""
        return AutoConfig(
            (scheme.name,),
            None if self.recipes is None else recipes_of(self.recipes),
            max_cost=self.max_cost,
            static_only=self.static_only,
            registers=not self.no_registers,
            search=SearchConfig(objective=objective),
        )


@dataclasses.dataclass(frozen=True)
class ModelArgs:
    """Where the model goes."""

    out: str = option("Model folder to write; must not exist.", path="any")


@click.command()
@click.argument("model", type=click.Path())
@takes(
    pictures=PicturesArgs, bits=SchemeArgs, chosen=MethodArgs, choice=AutoArgs, written=ModelArgs, output=JsonArgs,
)  # fmt: skip
def quantize(
    model: str,
    pictures: PicturesArgs,
    bits: SchemeArgs,
    chosen: MethodArgs,
    choice: AutoArgs,
    written: ModelArgs,
    output: JsonArgs,
) -> None:
    """Quantise the image tower of MODEL, with or without registers.

    Weights become integers; static scales are calibrated on pictures, with the registers in place. With a plan from `search` the
    pictures are split as its search did: most give scales, and on the rest what is written is measured. With --auto, recipes and
    registers are tried on one half of the pictures and scored on the other, without labels; --scheme gives the bits.
    """
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.quantization.calibration import Calibration
    from regcache_jax.quantization.methods.table import methods_of
    from regcache_jax.registers.search.promise import Promise
    from regcache_jax.studies.cells import cells_of
    from regcache_jax.studies.held_out import held_out_error

    scheme = bits.read()
    if scheme is None:
        raise UserError("scheme float quantises nothing; give w8a8, w6a6, w4a4 or the like")
    _check_together(scheme, pictures, chosen, choice)
    if choice.recipes is not None:
        cells_of(recipes_of(choice.recipes), (scheme.name,), {})
    if chosen.texts is not None:
        read_texts(chosen.texts)  # what is wrong with it is said before pictures are read
    price = choice.price("v5e:2x2" if importlib.util.find_spec("libtpu") else "model")
    methods_of(chosen.method)
    refuse_existing(written.out)
    loaded = checkpoints.load(model)
    plan, metadata = (None, {}) if chosen.registers is None else read_plan_file(chosen.registers, loaded)
    promise = Promise.of(metadata)
    objective = chosen.error_of(promise)
    kept = None if chosen.calibration is None else Calibration.load(chosen.calibration)
    if kept is not None:
        kept.check(loaded.encoder if plan is None else loaded.encoder.with_plan(plan))
    data = None if not pictures.dataset else pictures.taken(promise)
    images = None if data is None else read_images(loaded, data)
    name = found = held_out = None
    if choice.auto:
        assert choice.work is not None and images is not None
        encoder, name = _auto(loaded.encoder, images, choice.work, choice.config(scheme, objective), price)
    else:
        wanted = chosen.applied_to(scheme, promise)
        if promise is not None and images is not None:
            parts = promise.parts(images)
            images, held_out = images[parts.working], images[parts.verifying]
            if kept is None:
                say(promise.taken(images, len(held_out)))
        with progress(f"quantising to {wanted.name}") as update:
            encoder = _quantized(loaded, images, wanted, chosen, kept, objective, moving(update))
        if promise is not None and held_out is not None and len(held_out):
            with progress(f"measuring on {counted(len(held_out), 'held-out picture')}"):
                found, remark = held_out_error(loaded.encoder, encoder, held_out, objective)
            if promise.speaks_of(objective):
                say(promise.compared(found))
                if warning := promise.broken(found, wanted):
                    tell(warning)
            else:
                say(
                    f"error ({objective}) {found.sentence()}; the search went by {promise.objective}, which is not measured here"
                )
            if remark is not None:
                say(remark)
    made = encoder.scheme
    assert made is not None
    seen = None if data is None else {"dataset": data.name, "split": data.split, "images": len(data)}
    made_from = {
        "source": str(model),
        "calibration": chosen.calibration or seen,
        "registers": chosen.registers,
        "auto": name,
        "objective": objective,
        "held_out": None if found is None else dataclasses.asdict(found),
    }
    tokenizers = [loaded.folder / name for name in checkpoints.tokenizer_files(loaded.folder)]
    checkpoints.save(written.out, encoder, metadata=made_from, tokenizer_files=tokenizers)
    registers = "with" if encoder.plan is not None and encoder.plan.has_registers else "no"
    say(f"{model} -> {written.out}: {made.name}, {made.method}, {made.activations} activations, {registers} registers")
    write_json(output.json, {**made_from, "scheme": made.to_json()})


def _check_together(scheme: Scheme, pictures: PicturesArgs, chosen: MethodArgs, choice: AutoArgs) -> None:
    """Raises click.UsageError for options that do not go together, and where pictures are needed and none are given: scales that are
    measured as they pass need none."""
    needed = dataclasses.replace(scheme, method=chosen.method).needs_images or choice.auto
    if needed and not pictures.dataset and chosen.calibration is None:
        raise click.UsageError("Missing option '--dataset' (or '--calibration').")
    if not pictures.dataset and chosen.keep_float:
        raise click.UsageError("--keep-float measures on pictures; give --dataset as well")
    if choice.auto and chosen != MethodArgs(objective=chosen.objective):
        raise click.UsageError("--auto chooses the recipe and registers by itself; --scheme gives the bits")


def _quantized(
    loaded: Model,
    images: np.ndarray | None,
    scheme: Scheme,
    chosen: MethodArgs,
    kept: Calibration | None,
    objective: LabelFree,
    told: Progress,
) -> Encoder:
    """The encoder that is asked for."""
    from regcache_jax.quantization.quantize import quantize as run_quantize
    from regcache_jax.registers.sensitivity import most_sensitive, sensitivity

    if chosen.keep_float and images is not None:
        errors = sensitivity(loaded.encoder, images[:64], scheme, objective=objective)
        scheme = scheme.keep_in_float(most_sensitive(errors, chosen.keep_float))
    ids = None if chosen.texts is None else loaded.tokenize(read_texts(chosen.texts))
    return run_quantize(loaded.encoder, images, scheme, read_plan(chosen.registers, loaded), kept, ids, told)


def _auto(encoder: Encoder, images: np.ndarray, work: str, config: AutoConfig, price: Price) -> tuple[Encoder, str]:
    """The encoder that `auto` chooses and the name of its entry; prints the table."""
    from regcache_jax.files.lock import held
    from regcache_jax.files.workdir import Workdir
    from regcache_jax.studies.auto import auto, seconds_of

    foretell(seconds_of(encoder, len(images), config), f"what is done is kept in {work}")
    with held(work, folder=True), BarsOfCells("trying recipes") as bars:
        result = auto(encoder, images, Workdir(work, bars), config, price)
    rows = [(e.name, *map(digits, (e.error, e.jitter, e.worst, e.cost)), e.fault or e.note) for e in result.entries]
    columns = ("recipe", "error", "±", "worst picture", "cost", "note")
    print_table(f"Recipes, the best first; cost: {price.unit}", columns, rows)
    say(f"chosen: {result.chosen.name}")
    return result.encoder, result.chosen.name
