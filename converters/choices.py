"""What a user replaces of a checkpoint: things that published implementations do differently, and where they stand in a spec."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, get_args

from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Activation, EncoderSpec, Filter, Interpolation


class Choice(NamedTuple):
    """Something that published implementations do differently: where it stands in a spec, and what it may be."""

    places: tuple[str, ...]
    values: tuple[str, ...]


CHOICES = {
    "activation": Choice(("image.blocks.activation", "text.blocks.activation"), get_args(Activation)),
    "interpolation": Choice(("image.position_interpolation",), get_args(Interpolation)),
    "filter": Choice(("preprocessing.filter",), get_args(Filter)),
}


def choose(spec: EncoderSpec, choices: Choices) -> EncoderSpec:
    """The spec with a user's choices in place. Raises UserError for a value that there is not."""
    spec = spec if choices.image_size is None else at_image_size(spec, choices.image_size)
    for choice in CHOICES:
        value = getattr(choices, choice)
        if value is None:
            continue
        if choice == "interpolation" and not spec.image.position_table:
            raise UserError(f"{spec.name} has no table of positions that could be resampled; leave out --interpolation")
        if value not in CHOICES[choice].values:
            raise UserError(f"{choice} must be one of {', '.join(CHOICES[choice].values)}, got {value!r}")
        for place in CHOICES[choice].places:
            if spec.text is not None or not place.startswith("text."):
                spec = _with(spec, place.split("."), value)
    return spec


def at_image_size(spec: EncoderSpec, pixels: int) -> EncoderSpec:
    """The encoder for pictures of another side: the stored positions stay, and are resampled when it runs."""
    image, pictures = spec.image, spec.preprocessing
    if pixels < image.patch_size:
        raise UserError(f"image_size must be at least one patch of {image.patch_size} pixels, got {pixels}")
    resized = dataclasses.replace(
        pictures, image_size=pixels, resize_size=round(pictures.resize_size * pixels / pictures.image_size)
    )
    return dataclasses.replace(
        spec,
        image=dataclasses.replace(
            image, image_size=pixels, position_grid=image.stored_grid if image.position_table else None
        ),
        preprocessing=resized,
    )


def chosen(spec: EncoderSpec) -> dict[str, str]:
    """What stands in a spec for each choice."""
    return {
        choice: _value(spec, known.places[0])
        for choice, known in CHOICES.items()
        if choice != "interpolation" or spec.image.position_table
    }


def _value(spec: Any, place: str) -> Any:
    for field in place.split("."):
        spec = getattr(spec, field)
    return spec


def _with(node: Any, place: list[str], value: Any) -> Any:
    first, *rest = place
    return dataclasses.replace(node, **{first: _with(getattr(node, first), rest, value) if rest else value})
