"""The whole recipe: drawings, four phases, model folder. Stopped at any time, the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.demo.bundled import SPEC
from regcache_jax.demo.recipe.augment import batches
from regcache_jax.demo.recipe.concepts import least_confused, most_alike
from regcache_jax.demo.recipe.drawings import DrawingSet
from regcache_jax.demo.recipe.export import export
from regcache_jax.demo.recipe.phases import ALIKE, PHASES, Phase
from regcache_jax.demo.recipe.train import State, confusion, folded, initial_state, name_ids, prepare, run_phase
from regcache_jax.files.paths import refuse_existing, write_json
from regcache_jax.files.places import as_path

SETTINGS_FILE, CONCEPTS_FILE, STATES_FOLDER, MODEL_FOLDER = "recipe.json", "concepts.json", "states", "model"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the result: the phases, batch size, seed, the export's factor, and whether concepts are chosen anew."""

    phases: tuple[Phase, ...] = PHASES
    batch: int = 128
    seed: int = 1
    factor: float = 48.0
    choose_concepts: bool = False
    spec: EncoderSpec = SPEC


def cook(
    drawings: DrawingSet, out: epath.PathLike, recipe: Recipe, say: Callable[[str], None] = print, every: int = 100
) -> epath.Path:
    """Trains and exports; returns the model folder. `every`: steps between two saved states.

    Raises UserError if `out` holds a run with other settings, or a finished model."""
    out = as_path(out)
    refuse_existing(out / MODEL_FOLDER)
    _settle(out, recipe, drawings)
    if recipe.choose_concepts:
        drawings = drawings.keep(most_alike(drawings, ALIKE))
    state = initial_state(recipe.spec, recipe.seed)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager(out / STATES_FOLDER, options=options) as states:
        done = states.latest_step() or 0
        if done:
            template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(state))
            state = State(**states.restore(done, args=ocp.args.StandardRestore(template)))
            say(f"going on after {done} steps")
        begin = 0
        for phase in recipe.phases:
            end = begin + phase.steps
            if done < end:
                if recipe.choose_concepts:
                    drawings = _fewer_concepts(out, state, phase, drawings, recipe.spec)
                if done <= begin:
                    state = prepare(state, phase, recipe.spec, drawings)
                state = _train(state, phase, drawings, recipe, begin, every, states, say)
            elif recipe.choose_concepts and phase.concepts < len(drawings.names):
                drawings = drawings.keep_named(json.loads((out / CONCEPTS_FILE).read_text()))
            begin = end
    told = {"vendors": list(drawings.vendors), "concepts": list(drawings.names)}
    return export(out / MODEL_FOLDER, state, recipe.spec, factor=recipe.factor, metadata=told)


def _train(
    state: State,
    phase: Phase,
    drawings: DrawingSet,
    recipe: Recipe,
    begin: int,
    every: int,
    states: ocp.CheckpointManager,
    say: Callable[[str], None],
) -> State:
    """The rest of one phase, with a state saved now and then and at the end. `begin`: steps of the phases before."""
    ids = name_ids(drawings.names, recipe.spec)
    steps = range(begin + int(state.step), begin + phase.steps)
    made = batches(drawings, recipe.batch, recipe.seed, steps)
    started = time.monotonic()
    for number, (current, metrics) in zip(
        steps, run_phase(state, phase, recipe.spec, made, ids, recipe.seed), strict=True
    ):
        state = current
        last = number + 1 == steps.stop
        if (number - begin) % 20 == 0 or last:
            numbers = " ".join(f"{name} {float(value):.3f}" for name, value in metrics.items())
            say(f"{phase.name} {number - begin + 1}/{phase.steps} {time.monotonic() - started:.0f}s {numbers}")
        if not bool(jnp.isfinite(metrics["loss"])):
            raise FloatingPointError(f"the loss of phase {phase.name} is not finite at step {number - begin + 1}")
        if (number + 1) % every == 0 or last:
            states.save(number + 1, args=ocp.args.StandardSave(_tree(state)), force=True)
    return state


def _tree(state: State) -> dict[str, Any]:
    """The state as a plain dict, which may also hold shapes in place of arrays."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _fewer_concepts(out: epath.Path, state: State, phase: Phase, drawings: DrawingSet, spec: EncoderSpec) -> DrawingSet:
    """The drawings of the phase's concepts; chosen once, by confusion, and then kept in a file."""
    if phase.concepts >= len(drawings.names):
        return drawings
    file = out / CONCEPTS_FILE
    if not file.exists():
        ids = name_ids(drawings.names, spec)
        chosen = least_confused(confusion(folded(state), spec, drawings, ids), phase.concepts)
        write_json(file, [drawings.names[index] for index in chosen])
    return drawings.keep_named(json.loads(file.read_text()))


def _settle(out: epath.Path, recipe: Recipe, drawings: DrawingSet) -> None:
    """Writes down what this folder is made from, or checks that it is the same as before."""
    settings = {**dataclasses.asdict(recipe), "vendors": list(drawings.vendors), "concepts": list(drawings.names)}
    settings = json.loads(json.dumps(settings))
    file = out / SETTINGS_FILE
    if file.exists():
        before = json.loads(file.read_text())
        differing = sorted(name for name in settings if before.get(name) != settings[name])
        if differing:
            raise UserError(
                f"{out} holds a run with other {', '.join(differing)}; choose another folder or remove it first"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)
