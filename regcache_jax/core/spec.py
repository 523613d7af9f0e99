"""What an encoder is, without its weights: frozen, hashable specs, saved as JSON beside every checkpoint.

The parameters of a spec are a nested dict of arrays (Flax's convention) with these leaves. Blocks are stacked on a
leading axis L and attention projections are head-major. Leaves in brackets exist where the spec asks for them.

    image/ patch_embedding/kernel [P, P, 3, D]  (bias [D])      text/ token_embedding [V, D]
           (class_token [D])  (registers [R, D])                      (position_embedding [T, D])
           (position_embedding [class token + grid**2, D])            blocks/...
           (patch_norm, pre_norm/{scale, bias} [D])                   final_norm/{scale, bias} [D]
           blocks/...                                                 (projection/{kernel [D, E], bias [E]})
           (final_norm/{scale, bias} [D])
           (head/...)  (probe/...)  (further/...)
           (projection/{kernel [D, E], bias [E]})             (logit_scale [], logit_bias []: log temperature and offset)

    blocks/ norm1/{scale, bias} [L, D]    attention/{query, key, value}/{kernel [L, D, H, K], (bias [L, H, K])}
            norm2/{scale, bias} [L, D]    attention/out/{kernel [L, H, K, D], (bias [L, D])}
            mlp/fc1/{kernel [L, D, F], (bias [L, F])}   mlp/fc2/{kernel [L, F, D], (bias [L, D])}
            (mlp/gate/{kernel [L, D, F], (bias [L, F])}: SwiGLU)   (layer_scale1 [L, D], layer_scale2 [L, D])
            (attention/{query_norm, key_norm}/{scale, bias} [L, K] or [L, H, K])
            (attention/norm/{scale, bias} [L, D], mlp/norm/{scale, bias} [L, F])   an RMSNorm has no bias
    head/   probe [D], attention/{query, key, value, out}/..., norm/..., mlp/{fc1, fc2}/...: as one block, without axis L
    probe/  query [D], {key, value, out}/...      further/ blocks/..., norm/{scale, bias} [D]
    (classifier/{kernel [E, C], bias [C]}: beside the towers)

The hashed text tower of the bundled encoder has instead `embedding [V, C]`, `fc1/{kernel [C, F], bias}`, `fc2/{kernel
[F, E], bias}`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

from regcache_jax.core.block_spec import (  # noqa: F401 - the words of a block stand beside, and are words of a spec
    BLOCKS,
    NAME,
    SIDE,
    TOKENS,
    WIDTH,
    WORDS,
    Activation,
    BlockSpec,
    ImpossibleSpec,
    Rotary,
    check_ranges,
)
from regcache_jax.core.errors import shown
from regcache_jax.core.spec_json import added, from_json, to_json

Resize = Literal["squash", "shortest", "patches"]
Filter = Literal["bicubic", "bilinear", "bilinear_tf", "lanczos"]
Interpolation = Literal[
    "bicubic", "bicubic_antialias", "bicubic_offset", "bilinear", "bilinear_antialias", "bilinear_centres"
]  # fmt: skip

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

LARGEST_MEAN, SMALLEST_STD = 1000.0, 1e-6
"""Of preprocessing, whose values lie in 0..1 before it: beyond these, float32 would lose what a picture shows."""


class Protected(NamedTuple):
    """How many class tokens and trained registers stand before the patches; they are never deleted."""

    class_tokens: int
    trained_registers: int


PATCHES_ONLY = Protected(0, 0)


@dataclasses.dataclass(frozen=True)
class Tap:
    """Where patch features are read: what leaves `block` (counted from the end below zero, as lists are), after the final norm or
    before it, with the class token in front or without."""

    block: int = -1
    normed: bool = True
    class_token: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """An image tower. `position_grid` is the side of the stored position table, in patches (37 for DINOv2); without `position_table`
    positions are rotary alone, and pictures may have any shape.

    `pooling="none"`: what is read are its patches; where one feature a picture is asked for, their mean stands in. Without
    `final_norm` its tokens are what leaves the last block. Attention pooling (`map`) has as many heads and as wide an MLP as a block,
    where it states no others; `probe` is attention pooling whose learned query asks as it is, without an MLP behind. `class_mean`: the
    class token, and beside it the mean of the patches. `normed_mean`: the mean of the patches that leave the last block, which the final
    norm then norms; its tokens are those patches. `summary_tokens`: so many of the tokens in front, class token first, stand side by
    side as the feature of `class` (several class tokens, which count as trained registers). `further`: blocks of another shape behind
    the final norm, and a norm behind them, which make the tokens that are pooled; they see no registers and are not quantised.

    `max_patches`: pictures of any shape come as sheets of at most so many patches (`encoders.sheets`), and the table of positions, that of
    a picture of `image_size`, is resampled to the grid of each; its blocks are padded. `patch_norm`: embedded patches are normed before
    they are given positions."""

    image_size: int
    patch_size: int
    blocks: BlockSpec
    class_token: bool
    pooling: Literal["class", "map", "mean", "none", "probe", "class_mean", "normed_mean"]
    trained_registers: int = dataclasses.field(default=0, metadata={"json": "num_registers"})
    patch_bias: bool = True
    pre_norm: bool = False
    projection: int | None = None
    projection_bias: bool = False
    position_grid: int | None = None
    position_interpolation: Interpolation = "bicubic"
    position_table: bool = added(True)
    final_norm: bool = added(True)
    head_heads: int | None = added(None)
    head_mlp_width: int | None = added(None)
    max_patches: int | None = added(None)
    patch_norm: bool = added(False)
    further: BlockSpec | None = added(None)
    summary_tokens: int = added(1)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            image_size=(1, SIDE),
            patch_size=(1, self.image_size),
            trained_registers=(0, BLOCKS),
            projection=(1, WIDTH),
            position_grid=(1, BLOCKS),
            max_patches=(1, TOKENS),
            summary_tokens=(1, max(1, self.num_protected if self.pooling == "class" else 1)),
        )
        check_ranges(self.blocks, num_blocks=(1, BLOCKS))
        _ = self.head  # which refuses heads that do not fill the width
        if self.further is not None and (
            self.further.width != self.blocks.width or self.further.rotary is not None or self.blocks.padded
        ):
            raise ImpossibleSpec(
                "further blocks are as wide as those before them, without rotary positions, and not of sheets"
            )
        if self.blocks.padded != (self.max_patches is not None):
            raise ImpossibleSpec("blocks are padded where pictures are sheets of patches (max_patches), and only there")
        table = self.position_table and self.position_interpolation == "bilinear_antialias"
        if self.blocks.padded and (self.num_protected or not table or self.blocks.rotary is not None):
            raise ImpossibleSpec(
                "sheets of patches have a table of positions, interpolated as bilinear_antialias, and nothing in front of the patches"
            )

    @property
    def grid(self) -> int:
        """Patches along one side; pixels that do not fill a patch are dropped (So400m/14 at 384)."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a picture, or the most that its sheet holds."""
        return self.max_patches or self.grid**2

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed picture: a square, or a sheet of patches, a line each."""
        side = self.image_size
        return (side, side, 3) if self.max_patches is None else (self.max_patches, self.patch_size**2 + 1, 3)

    @property
    def protected(self) -> Protected:
        """The tokens that stand before the patches."""
        return Protected(int(self.class_token), self.trained_registers)

    @property
    def num_protected(self) -> int:
        """Tokens in front that are never deleted: the class token and the trained registers."""
        return sum(self.protected)

    @property
    def num_tokens(self) -> int:
        """N, the tokens inside the blocks: class token, trained registers, patches."""
        return self.num_protected + self.num_patches

    @property
    def stored_grid(self) -> int:
        """Side of the position table as it is stored."""
        return self.position_grid or self.grid

    @property
    def head(self) -> BlockSpec:
        """Attention pooling as if it were a block: plain, with all biases."""
        heads, mlp_width = self.head_heads or self.blocks.num_heads, self.head_mlp_width or self.blocks.mlp_width
        plain = BlockSpec(self.blocks.width, 1, heads, mlp_width, self.blocks.activation, self.blocks.norm_eps)
        return dataclasses.replace(plain, norm=self.blocks.norm, padded=self.blocks.padded)

    @property
    def feature_dim(self) -> int:
        """E, the size of a pooled feature."""
        return self.projection or self.blocks.width * (2 if self.pooling == "class_mean" else self.summary_tokens)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """A text tower: a transformer, or (`kind="hashed"`) the bag of hashed words of the bundled encoder.

    `pooling="mean"`: the mean of all tokens but padding (id 0), which nothing sees. Without `position_table` positions are sinusoids."""

    vocab_size: int
    context_length: int
    blocks: BlockSpec
    pooling: Literal["eot", "argmax", "last", "mean"]
    kind: Literal["transformer", "hashed"] = "transformer"
    eot_id: int | None = None
    projection: int | None = None
    projection_bias: bool = False
    position_table: bool = added(True)

    def __post_init__(self) -> None:
        check_ranges(self, vocab_size=(1, WORDS), context_length=(1, TOKENS), projection=(1, WIDTH))
        check_ranges(self, eot_id=(0, self.vocab_size - 1))
        if self.kind == "transformer":  # a bag of words has no blocks
            check_ranges(self.blocks, num_blocks=(1, BLOCKS))


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a picture to the array a tower takes: resize, centre crop, scale to 0..1, normalise.

    `resize_size` is the side (squash) or the shortest side (shortest) before the crop to `image_size`. `patches`: the aspect is kept,
    nothing is cropped, and as many patches of `patch_size` as `max_patches` allows make a sheet."""

    image_size: int
    resize: Resize
    filter: Filter
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int | None = added(None)
    max_patches: int | None = added(None)

    def __post_init__(self) -> None:
        check_ranges(self, image_size=(1, SIDE), resize_size=(1, SIDE), patch_size=(1, SIDE), max_patches=(1, TOKENS))
        if {self.patch_size is not None, self.max_patches is not None} != {self.resize == "patches"}:
            raise ImpossibleSpec("patch_size and max_patches are those of resize 'patches', and of no other")
        if not all(abs(each) <= LARGEST_MEAN for each in self.mean):  # NaN is not either
            raise ImpossibleSpec(f"mean must be within {-LARGEST_MEAN}..{LARGEST_MEAN}, got {self.mean}")
        if not all(SMALLEST_STD <= each <= LARGEST_MEAN for each in self.std):
            raise ImpossibleSpec(f"std must be {SMALLEST_STD}..{LARGEST_MEAN}, got {self.std}")


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """How text becomes ids `[T]`: which tokenizer, which cleaning (before the tokenizer's own; see `tokenizers.CLEANING`),
    how it is padded to `context_length`."""

    kind: Literal["clip", "sentencepiece", "xlm", "bert", "hashed"]
    context_length: int
    vocab_size: int
    cleaning: Literal["none", "lower", "lower_ascii", "canonicalize", "drop_punctuation", "clip", "whitespace"]
    pad_id: int
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, context_length=(1, TOKENS), vocab_size=(1, WORDS))
        check_ranges(self, **dict.fromkeys(("pad_id", "bos_id", "eos_id"), (0, self.vocab_size - 1)))


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """One encoder: towers, preprocessing, tokenization and where it comes from. `text` is None for a lone image tower."""

    name: str
    family: Literal["clip", "siglip", "dinov2", "dinov3", "vit", "pe", "tips", "aimv2"]
    image: ImageSpec
    preprocessing: Preprocessing
    text: TextSpec | None = None
    tokenization: Tokenization | None = None
    normalize: bool = True
    logit_bias: bool = False
    """Whether a CLIP was trained with SigLIP's loss, and has its offset; a SigLIP always has."""
    num_classes: int | None = added(None)
    """Classes of the linear classifier on the pooled feature, where there is one."""

    def __post_init__(self) -> None:
        check_ranges(self, num_classes=(1, WORDS))
        if not 0 < len(self.name) <= NAME or not self.name.isprintable():
            raise ImpossibleSpec(f"name must be 1..{NAME} printable characters, got {shown(repr(self.name), 80)}")

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return to_json(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> EncoderSpec:
        """The inverse of `to_json`. Raises ValueError naming the first field that is missing, unknown or not what it may be."""
        return from_json(cls, tree, "spec")
