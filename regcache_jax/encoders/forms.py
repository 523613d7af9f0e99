"""Forms of the serving program: the same numbers by other products, chosen by chip from a small table.

A form is a choice, not a setting: `form_for` makes it from what the chip's compiler says of each (docs/performance.md), a test holds
every form to the plain one, and what is exported says which it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float

from regcache_jax.core.plan import BlockRegister
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import ImageSpec
from regcache_jax.ops.attention_forms import CHUNK, ON_CHIP, attend_flash, attend_kept, attend_pairs, attend_plain

LANES = 128
"""Columns of a TPU's matrix unit."""

TILE = 8
"""Rows of a TPU's registers: the multiple to which a serving program pads its tokens."""

Attention = Literal["slot", "kept", "pairs", "flash"]

ATTENTION: dict[str, Callable[..., Float[Array, "B T H K"]]] = {
    "slot": attend_plain,
    "kept": attend_kept,
    "pairs": attend_pairs,
    "flash": attend_flash,
}
"""Attention of a block, by form."""

DEVICES = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU v5": "v5p",
    "TPU v4": "v4",
}
"""Chips by the kind that a device says it is."""

WIDE_CHIPS = ("v5e", "v6e")
"""Where keys and values pay that are kept wide; v4 and v5p are slower with them."""


@dataclasses.dataclass(frozen=True)
class Form:
    """`attention`: `slot`, one head a product; `kept`, the same with keys and values kept wide; `pairs`, two heads of 64 a product.
    `flash`: cuDNN's on a GPU.
    `folded_probe`: the pooling head's constant query is multiplied into its keys before the program runs. `class_alone`: the last
    block runs its queries and MLP for the class token alone, where only features are asked for.
    `outputs_first`: integer kernels lie in memory with their inputs last, as a GPU's tensor cores read them."""

    attention: Attention = "slot"
    folded_probe: bool = False
    class_alone: bool = False
    outputs_first: bool = False

    @property
    def hides_padding(self) -> bool:
        """Whether rows of padding may hold anything: attention hides them, and no scale is measured."""
        return self.attention != "slot"

    @property
    def keeps_wide(self) -> bool:
        """Whether keys and values stand in float32 until a product reads them; so do registers, then, whose widening would be two
        operations a block."""
        return self.attention in ("kept", "pairs")

    @property
    def two_passes(self) -> bool:
        """Whether the norms of blocks take the mean away before they square: one kernel of a GPU."""
        return self.attention == "flash"

    @property
    def by_logistic(self) -> bool:
        """Whether GELUs are inputs times a logistic function, which takes a GPU fewer instructions than tanh."""
        return self.attention == "flash"

    @property
    def tile(self) -> int | None:
        """Tokens and registers are padded to a multiple of so many rows; None: there are as many rows as tokens."""
        return None if self.attention == "flash" else TILE

    def rows_for(self, registers: BlockRegister | None, num_tokens: int, num_heads: int) -> int:
        """Rows of padding that registers must find beside so many tokens. None where one picture's logits are more than a chunk of queries
        has: there keys alone get longer, which is cheaper than rows that all of a block would take along."""
        if registers is None:
            return 0
        of_one_picture = num_tokens**2 * num_heads // (2 if self.attention == "pairs" else 1)
        return 0 if self.keeps_wide and of_one_picture > CHUNK else registers.key.shape[-3]

    @property
    def name(self) -> str:
        """As it stands in reports and metadata."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ", ".join([parts.pop("attention"), *(name.replace("_", " ") for name, on in parts.items() if on)])


PLAIN = Form()


def chip_of(device: jax.Device) -> str | None:
    """The chip of a device, as `form_for` takes it; None for one of which nothing is known."""
    return "gpu" if device.platform == "gpu" else DEVICES.get(device.device_kind)


def form_for(chip: str | None, spec: ImageSpec, scheme: Scheme | None) -> Form:
    """The form of an image tower on a chip (`v4`, `v5e`, `v5p`, `v6e`, `gpu`; None: the plain one).

    Only blocks in float (on a GPU, and where pictures are so long that queries come in chunks), or with one calibrated scale a site and
    quantised alike, have another form than the plain one: the others were not measured."""
    blocks, folded, alone = spec.blocks, spec.pooling == "map", spec.pooling == "class" and spec.summary_tokens == 1
    if blocks.rotary is not None or blocks.qk_norm != "none":
        return PLAIN  # no form turns or norms queries and keys head by head
    if blocks.padded and chip == "gpu":  # not measured: a mask beside cuDNN's bias
        return PLAIN
    wide: Attention = "pairs" if 2 * blocks.head_dim == LANES and blocks.num_heads % 2 == 0 else "kept"
    if scheme is None and chip == "gpu":
        return Form("flash", folded, alone)
    if scheme is None:
        is_long = blocks.num_heads * spec.num_tokens**2 > ON_CHIP
        return Form(wide, folded, alone) if is_long and chip in WIDE_CHIPS else PLAIN
    if chip is None or not plainly_static(scheme):
        return PLAIN
    folded = folded and "head" not in scheme.also
    if chip == "gpu":
        return Form("flash", folded, alone, outputs_first=True)
    return Form(wide if chip in WIDE_CHIPS else "slot", folded, alone)


def plainly_static(scheme: Scheme) -> bool:
    """Whether all blocks are integer alike, with one calibrated scale a site, and attention's products in float."""
    return scheme.activations == "static" and not (scheme.rules or scheme.products or scheme.float_sites)
