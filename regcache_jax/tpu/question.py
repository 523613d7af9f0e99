"""What a compiler is asked: programs of an encoder at some batches, for a chip that is described and not there.

A process can describe one kind of chip, and must say which before JAX starts: so each question goes to a child process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from regcache_jax.core.errors import UserError, installing
from regcache_jax.core.plan import RegisterPlan, Schedule
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import catalog
from regcache_jax.tpu.programs import PROGRAMS


@dataclasses.dataclass(frozen=True)
class Question:
    """Programs (of `PROGRAMS`) of an encoder, and how its integer ones are quantised. `batches`: None asks for each program's best.
    `schedule`: None is that of `default_schedule`; `registers`: rows a block sees of the plan."""

    spec: EncoderSpec
    target: str
    programs: tuple[str, ...]
    batches: tuple[int, ...] | None
    scheme: Scheme
    schedule: Schedule | None = None
    registers: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain data, which `from_json` reads."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "spec": self.spec.to_json(),
            "scheme": self.scheme.to_json(),
            "schedule": None if self.schedule is None else dataclasses.asdict(self.schedule),
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Question:
        """The inverse of `to_json`."""
        spec, scheme = EncoderSpec.from_json(tree["spec"]), Scheme.from_json(tree["scheme"])
        schedule = None if tree["schedule"] is None else Schedule(**tree["schedule"])
        return cls(**{**tree, "spec": spec, "scheme": scheme, "schedule": schedule})


def question(
    name_or_spec: str | EncoderSpec,
    target: str,
    programs: tuple[str, ...],
    batches: tuple[int, ...] | None,
    scheme: Scheme | None,
    plan: RegisterPlan | None,
) -> Question:
    """A question; without a scheme of W8A8, and without a plan of a typical one. Raises UserError for names of no encoder or program."""
    spec = name_or_spec if isinstance(name_or_spec, EncoderSpec) else catalog.get(name_or_spec).spec
    assert spec is not None  # `get` refuses encoders that are known by name only
    unknown = sorted(set(programs) - set(PROGRAMS))
    if unknown or (batches is not None and min(batches, default=0) < 1):
        raise UserError(f"programs are {', '.join(PROGRAMS)}, batches at least 1; got {', '.join(unknown) or batches}")
    asked = Question(spec, target, programs, batches, (scheme or Scheme()).running)
    return asked if plan is None else dataclasses.replace(asked, schedule=plan.schedule(), registers=plan.key.shape[1])


def ask(module: str, request: dict[str, Any], environment: dict[str, str], about: str, extra: str) -> list[dict]:
    """Runs `module` on a request, and returns what it answers. `about` says in a fault what was asked, and the `extra` of this package
    brings the compiler.

    Raises UserError where there is no answer. XLA_FLAGS of this process are for its own platform."""
    environment = {"XLA_FLAGS": "", **environment, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-m", module]
    child = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ, **environment}
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        hint = f"; {installing(extra)} brings the compiler"
        missing = any(word in last for word in ("libtpu", "cuDNN", "cudnn", "No module named"))
        raise UserError(f"{about}: {last}{hint if missing else ''}")
    return json.loads(child.stdout.splitlines()[-1])
