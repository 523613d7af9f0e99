"""Flax Linen modules that define the parameters and call the functional towers: `init` and `apply` for those who expect them."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, Int

from regcache_jax.core import sites
from regcache_jax.core.names import part_from_tree
from regcache_jax.core.spec import EncoderSpec, ImageSpec, TextSpec
from regcache_jax.encoders.parameters import Leaf, Table, image_table, parameter_table, text_table
from regcache_jax.encoders.text import text_features
from regcache_jax.encoders.vision import image_features


class ParameterGroup(nn.Module):
    """One group of the parameter tree; `path` leads to it in the table of `spec`."""

    spec: EncoderSpec | ImageSpec | TextSpec
    path: tuple[str, ...] = ()

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        """The group's parameters, nested as in the table."""
        table = _table(self.spec)
        for name in self.path:
            table = table[name]
        return {
            name: self.param(name, entry.initializer, entry.shape)
            if isinstance(entry, Leaf)
            else ParameterGroup(self.spec, (*self.path, name), name=name)()
            for name, entry in table.items()
        }


def _table(spec: EncoderSpec | ImageSpec | TextSpec) -> Table:
    if isinstance(spec, EncoderSpec):
        return parameter_table(spec)
    return image_table(spec) if isinstance(spec, ImageSpec) else text_table(spec)


class ImageTower(nn.Module):
    """An image tower: images `[B, S, S, 3]` (preprocessed) -> features `[B, E]`, not normalised."""

    spec: ImageSpec

    @nn.compact
    def __call__(self, images: Float[Array, "B Y X 3"]) -> Float[Array, "B E"]:
        """Pooled features."""
        tower = part_from_tree(sites.ImageTower, _own_parameters(self, self.spec))
        return image_features(tower, images, self.spec).features


class TextTower(nn.Module):
    """A text tower: padded ids `[B, T]` -> features `[B, E]`, not normalised."""

    spec: TextSpec

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Pooled features."""
        kind = sites.HashedText if self.spec.kind == "hashed" else sites.TextTower
        return text_features(part_from_tree(kind, _own_parameters(self, self.spec)), ids, self.spec)[0]


class TwoTower(nn.Module):
    """An encoder: images and, where there is a text tower, ids; its `params` are those of `Encoder`."""

    spec: EncoderSpec

    @nn.compact
    def __call__(
        self, images: Float[Array, "B Y X 3"], ids: Int[Array, "T S"] | None = None
    ) -> tuple[Float[Array, "B E"], Float[Array, "T E"] | None]:
        """Image features, and text features where ids were given; not normalised."""
        for name, entry in parameter_table(self.spec).items():
            if isinstance(entry, Leaf):
                self.param(name, entry.initializer, entry.shape)
            elif name == "classifier":
                ParameterGroup(self.spec, (name,), name=name)()
        features = ImageTower(self.spec.image, name="image")(images)
        texts = None
        if self.spec.text is not None and ids is not None:
            texts = TextTower(self.spec.text, name="text")(ids)
        return features, texts


def _own_parameters(module: nn.Module, spec: ImageSpec | TextSpec) -> dict[str, Any]:
    """Declares the top level of a tower's table on `module` itself, the groups below it as submodules."""
    return {
        name: module.param(name, entry.initializer, entry.shape)
        if isinstance(entry, Leaf)
        else ParameterGroup(spec, (name,), name=name)()
        for name, entry in _table(spec).items()
    }
