"""What is made of a config's encoder before it is measured: profile and verdict, plans, integer encoders, and the report's pictures."""

from __future__ import annotations

import functools

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.workdir import Json, Stage
from regcache_jax.models import folder as checkpoints
from regcache_jax.models.plan_file import load_plan
from regcache_jax.pipeline.material import Material
from regcache_jax.pipeline.table import model_cell
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.sensitivity import sensitivity
from regcache_jax.registers.stakes import PICTURES, measure_stakes
from regcache_jax.registers.verdict import judge
from regcache_jax.report.patches import patch_figures
from regcache_jax.report.sinks import sink_maps
from regcache_jax.studies.cells import Cell
from regcache_jax.studies.cost import price_of
from regcache_jax.studies.plans import PlanSearch, find_plan, plan_file

SENSITIVITY_PICTURES = 64
"""Reference pictures that the sensitivity is measured on."""


class Stages:
    """The stages of a config up to the integer encoders; with several processes the first alone makes them."""

    def __init__(self, material: Material) -> None:
        self.material, self.config = material, material.config
        self.search = functools.cache(self._search)
        self.quantize = functools.cache(self._quantize)

    def inspect(self) -> Stage:
        """Profile, sensitivity and verdict of the float encoder, without registers."""
        own = self.material

        def make() -> Json:
            profile = inspect(own.encoder, own.images("reference"), batch_size=self.config.search.chunk)
            errors = sensitivity(own.encoder, own.images("reference")[:SENSITIVITY_PICTURES], Scheme())
            stakes = measure_stakes(own.encoder, own.images("reference")[:PICTURES], Scheme(), profile)
            verdict = judge(profile, errors, stakes)
            return {
                "profile": profile.to_json(),
                "sensitivity": {"sites": list(SITES), "errors": errors.tolist()},
                "verdict": verdict.to_json(),
            }

        return own.workdir.stage("inspect", [own.identity, own.data_identity("reference")], make)

    def _search(self, name: str) -> Stage:
        """The plan for one scheme and its halves; saved as `plans/NAME-*.safetensors`, the trial table beside them."""
        own = self.material
        scheme = Cell(name).scheme(self.config.weights)
        assert scheme is not None
        wanted = PlanSearch(
            own.encoder, lambda: own.images("reference"), scheme, self.config.search.search_config(),
            [own.identity, own.data_identity("reference")], own.source_of("reference"),
        )  # fmt: skip
        return find_plan(own.workdir, name, wanted)

    def plan(self, cell: Cell) -> RegisterPlan | None:
        """The plan that a cell has in place, of those that `search` has saved."""
        if cell.plan is None:
            return None
        self.search(self.scheme_of(cell))
        return load_plan(self.material.workdir.path / plan_file(self.scheme_of(cell), cell.plan))[0]

    def scheme_of(self, cell: Cell) -> str:
        """The scheme whose plan a cell has in place; the float one has the first scheme's."""
        return self.config.schemes[0] if cell.bits == "float" else cell.bits

    def encoder_of(self, cell: Cell) -> Encoder:
        """The encoder of one cell."""
        own = self.material
        return cell.encoder(own.encoder, lambda: own.images("calibration"), self.plan(cell), self.config.weights)

    def _quantize(self, name: str) -> Stage:
        """The integer encoder with its full plan as a model folder, `models/NAME`: what a user takes away."""
        own, folder = self.material, model_folder(name)

        def make() -> Json:
            encoder = self.encoder_of(model_cell(name))
            metadata = {
                "source": str(self.config.model),
                "calibration": own.source_of("calibration"),
                "registers": plan_file(name, "registers"),
            }
            tokenizers = [own.model.folder / file for file in checkpoints.tokenizer_files(own.model.folder)]
            checkpoints.save(own.workdir.path / folder, encoder, metadata=metadata, tokenizer_files=tokenizers)
            return {"folder": folder}

        made_from = [self.search(name).made_from, own.data_identity("calibration")]
        return own.workdir.stage(f"quantize_{name}", made_from, make, [folder])

    def figures(self) -> Stage:
        """What the report draws: norms and sensitivity with the registers in place, sink maps of a few pictures, errors of patches."""
        own, scheme = self.material, self.config.schemes[0]

        def make() -> Json:
            encoder = own.encoder.with_plan(self.plan(model_cell(scheme)))
            model = checkpoints.load(own.workdir.path / model_folder(scheme)).encoder
            rounded = {"plain": self.encoder_of(Cell(scheme)), "registers": model}
            rounded |= {} if own.auto is None else {"auto": own.auto}
            profile = inspect(encoder, own.images("reference"), batch_size=self.config.search.chunk)
            return {
                "scheme": scheme,
                "profile": profile.to_json(),
                "errors": sensitivity(encoder, own.images("reference")[:SENSITIVITY_PICTURES], Scheme()).tolist(),
                "maps": sink_maps(own.encoder, encoder, own.dataset("evaluation"), own.model),
                "patches": patch_figures(own.encoder, rounded, own.dataset("evaluation"), own.model),
            }

        auto = None if own.auto is None else encoder_hash(own.auto)
        made_from = ["with patches", self.quantize(scheme).made_from, own.data_identity("evaluation"), auto]
        return own.workdir.stage("figures", made_from, make)

    def costs(self) -> Stage:
        """What an image costs, and in which unit: in float, and of every scheme without and with its plan."""
        own, price = self.material, price_of(self.config.cost)

        def make() -> Json:
            found = {"float": [price.of(own.encoder)]}
            for name in self.config.schemes:
                encoder = checkpoints.load(own.workdir.path / model_folder(name)).encoder
                found[name] = [price.of(encoder.with_plan(None)), price.of(encoder)]
            return {"unit": price.unit, "of": found}

        made_from = [self.config.cost, [self.quantize(name).made_from for name in self.config.schemes]]
        return own.workdir.stage("costs", made_from, make)


def model_folder(scheme: str) -> str:
    """Where a scheme's integer encoder lies in the work folder."""
    return f"models/{scheme}"
