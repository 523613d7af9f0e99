"""What is made of a config's encoder before it is measured: profile and verdict, plans, integer encoders, and the report's pictures."""

from __future__ import annotations

import dataclasses
import functools

from ml_collections import ConfigDict

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.workdir import Json, Stage
from regcache_jax.models import folder as checkpoints
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.pipeline.material import Material
from regcache_jax.pipeline.table import PLANS, TableRow, alternatives, plan_file
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.search.result import describe_plan
from regcache_jax.registers.search.search import search
from regcache_jax.registers.search.space import SearchConfig
from regcache_jax.registers.sensitivity import sensitivity
from regcache_jax.registers.verdict import judge
from regcache_jax.report.sinks import sink_maps


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
            errors = sensitivity(own.encoder, own.images("reference")[:64], Scheme())
            verdict = judge(profile, errors)
            return {
                "profile": profile.to_json(),
                "sensitivity": {"sites": list(SITES), "errors": errors.tolist()},
                "verdict": verdict.to_json(),
            }

        return own.workdir.stage("inspect", [own.identity, own.data_identity("reference")], make)

    def _search(self, name: str) -> Stage:
        """The plan for one scheme and its halves; saved as `plans/NAME-*.safetensors`, the trial table beside them."""
        own, config = self.material, search_config(self.config)
        made_from = [
            own.identity, own.data_identity("reference"), name, self.config.weights, dataclasses.asdict(config),
        ]  # fmt: skip
        digest = own.workdir.digest(f"search_{name}", made_from)

        def make() -> Json:
            def tell(done: int, planned: int, best: float) -> None:
                own.observer.moved(done, planned, f"best error {best:.3g}")

            scheme = TableRow(name, "plain").quantization(self.config.weights)
            assert scheme is not None
            table = own.workdir.path / "plans" / f"{name}-{digest}.jsonl"
            result = search(own.encoder, own.images("reference"), scheme, config, table=table, progress=tell)
            metadata = describe_plan(result, own.encoder, scheme, config, own.source_of("reference"))
            for kind, plan in alternatives(result).items():
                save_plan(own.workdir.path / plan_file(name, kind), plan, {**metadata, "kind": kind})
            return {**result.to_json(), "trials": result.trials}

        return own.workdir.stage(f"search_{name}", made_from, make, [plan_file(name, kind) for kind in PLANS])

    def plan(self, name: str, kind: str) -> RegisterPlan:
        """A plan that `search` has saved."""
        self.search(name)
        return load_plan(self.material.workdir.path / plan_file(name, kind))[0]

    def plan_of(self, row: TableRow) -> str:
        """The scheme whose plan a row has in place; the float row has the first scheme's."""
        return self.config.schemes[0] if row.scheme == "float" else row.scheme

    def quantized(self, row: TableRow) -> Encoder:
        """The encoder of one row."""
        encoder = self.material.encoder
        if row.plan is not None:
            encoder = encoder.with_plan(self.plan(self.plan_of(row), row.plan))
        scheme = row.quantization(self.config.weights)
        if scheme is None:
            return encoder
        needs_images = scheme.calibrated or scheme.method != "rtn"
        return quantize(encoder, self.material.images("calibration") if needs_images else None, scheme)

    def _quantize(self, name: str) -> Stage:
        """The integer encoder with its full plan as a model folder, `models/NAME`: what a user takes away."""
        own, folder = self.material, model_folder(name)

        def make() -> Json:
            encoder = self.quantized(TableRow(name, "registers"))
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
        """What the report draws: norms with the registers in place, and sink maps of a few pictures."""
        own, scheme = self.material, self.config.schemes[0]

        def make() -> Json:
            encoder = own.encoder.with_plan(self.plan(scheme, "registers"))
            profile = inspect(encoder, own.images("reference"), batch_size=self.config.search.chunk)
            return {
                "scheme": scheme,
                "profile": profile.to_json(),
                "maps": sink_maps(own.encoder, encoder, own.dataset("evaluation"), own.model),
            }

        return own.workdir.stage("figures", [self.search(scheme).made_from, own.data_identity("evaluation")], make)


def search_config(config: ConfigDict) -> SearchConfig:
    """What a config says about the effort of a search."""
    given = config.search
    return SearchConfig(
        chunk=given.chunk,
        align=given.align or None,
        max_trials=given.max_trials or None,
        max_minutes=given.max_minutes or None,
    )


def model_folder(scheme: str) -> str:
    """Where a scheme's integer encoder lies in the work folder."""
    return f"models/{scheme}"
