"""The classes of a linear classifier: how many a checkpoint says there are, and what it calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regcache_jax.converters.formats import Given, section

from regcache_jax.core.errors import UserError, shown


def count_classes(given: Given, kernel: str) -> int | None:
    """The classes of the classifier whose kernel is called `kernel`; None where there is none.

    Raises UserError where the configuration speaks of another number: one of the files is of another model."""
    if kernel not in given.tensors:
        return None
    count = given.shape(kernel, 2)[0]
    names = class_names(given.config)
    stated = {
        "names": None if names is None else len(names),
        "num_labels": given.config.get("num_labels"),
        "num_classes": given.config.get("num_classes"),
    }
    for what, number in stated.items():
        if number is not None and number != count:
            raise UserError(
                f"{given.name}: {kernel} has {count} classes, config.json says {shown(repr(number))} ({what}); one of the files is of "
                "another model"
            )
    return count


def class_names(config: Mapping[str, Any]) -> list[str] | None:
    """What the classes are called, in their order: transformers' `id2label`, timm's `label_names` (with their `label_descriptions`).

    None where the configuration does not say. Raises UserError for numbers that are not 0, 1, 2, ... and for what is no text."""
    names: Any = config.get("label_names")
    if config.get("id2label") is not None:
        told = section(config, "id2label", "config.json")
        if sorted(told) != sorted(map(str, range(len(told)))):
            raise UserError(
                f"config.json: id2label should have the numbers 0..{len(told) - 1}, got {shown(list(told)[:5])}"
            )
        names = [told[str(number)] for number in range(len(told))]
    elif isinstance(names, list):
        described = section(config, "label_descriptions", "config.json")
        names = [described.get(name, name) if isinstance(name, str) else name for name in names]
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"config.json: names of classes should be texts, got {shown(repr(names))}")
    return names
