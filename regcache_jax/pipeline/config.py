"""What a config of `regcache run` holds: every field with its type, checked once, before anything is read."""

from __future__ import annotations

import json
from typing import Literal

import pydantic
from ml_collections import ConfigDict
from pydantic.dataclasses import dataclass

from regcache_jax.core.scheme import Weights
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.evaluation.evaluators.knn import NEIGHBOURS, TEMPERATURE
from regcache_jax.files.bounded import parse_json

STRICT = pydantic.ConfigDict(extra="forbid", strict=True)
Count = pydantic.NonNegativeInt


@dataclass(frozen=True, config=STRICT)
class Pictures:
    """Some pictures; an empty `data_dir` or `split` and a `limit` of 0 are none."""

    dataset: str
    data_dir: str = ""
    split: str = ""
    limit: Count = 0


@dataclass(frozen=True, config=STRICT)
class Effort:
    """How long a search takes: pictures a chunk, rows a tile, budgets; 0 is none."""

    chunk: pydantic.PositiveInt = 32
    align: Count = 0
    max_trials: Count = 0
    max_minutes: pydantic.NonNegativeFloat = 0.0

    def search_config(self) -> SearchConfig:
        """The same for a search."""
        return SearchConfig(
            chunk=self.chunk,
            align=self.align or None,
            max_trials=self.max_trials or None,
            max_minutes=self.max_minutes or None,
        )


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """A config; configs/demo.py says what each field means."""

    model: str
    reference: Pictures
    calibration: Pictures
    evaluation: Pictures
    bank: Pictures
    schemes: tuple[str, ...]
    rows: tuple[str, ...]
    expected_acc1: pydantic.NonNegativeFloat = 0.0
    task: Literal["zeroshot_classification", "knn"] = "zeroshot_classification"
    protocol: Literal["open_clip", "big_vision"] = "open_clip"
    neighbours: pydantic.PositiveInt = NEIGHBOURS
    temperature: pydantic.PositiveFloat = TEMPERATURE
    classnames: str = ""
    templates: str = ""
    weights: Weights = "channel"
    auto: str = ""
    cost: str = "model"
    search: Effort = Effort()
    batch_size: pydantic.PositiveInt = 32
    micro_batch: Count = 0
    parallel: Literal["jit", "pmap"] = "jit"
    workers: Count = 0
    allow_missing: Count = 0


def read_config(config: ConfigDict, where: object = "the config") -> RunConfig:
    """The fields of a config. Raises UserError that names `where` and everything in it that is unknown, missing or of another type."""
    return parse_json(json.dumps(config.to_dict(), default=str), RunConfig, where)
