"""SigLIP 2 NaFlex in the names of Hugging Face, timm, open_clip and big_vision: their tables of SigLIP, but for patches and positions.

All four cut patches beforehand and have a matrix where a SigLIP has a convolution, for the pixels of a patch row by row, colours last. The
table of positions is that of a square picture (16 x 16), under another shape in each library.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from regcache_jax.converters import big_vision, huggingface_siglip, open_clip, timm
from regcache_jax.converters.engine import Arrangement, Rule, Shape, keep
from regcache_jax.converters.formats import PROCESSOR, Format, Given, preprocessing, section, setting
from regcache_jax.converters.huggingface_clip import VISION_ALONE, sub_config

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import families

KERNEL, POSITIONS = "image/patch_embedding/kernel", "image/position_embedding"
GEMMA = 256_000
"""Words of SigLIP 2's tokenizer."""


def _sides(ours: Shape) -> Shape:
    return math.isqrt(ours[0]), math.isqrt(ours[0]), ours[1]


# [D, P * P * 3] and [P * P * 3, D] <-> [P, P, 3, D]: matrices of PyTorch and of Flax on the pixels of a patch
outputs_pixels = Arrangement(
    lambda ours: (ours[3], math.prod(ours[:3])),
    lambda array, ours: array.T.reshape(ours),
    lambda array: array.reshape(-1, array.shape[-1]).T,
)
pixels_outputs = Arrangement(
    lambda ours: (math.prod(ours[:3]), ours[3]), keep.to_ours, lambda array: array.reshape(-1, array.shape[-1])
)
# [S, S, D] and [1, S, S, D] <-> [S * S, D]
square = Arrangement(_sides, keep.to_ours, lambda array: array.reshape(_sides(array.shape)))
one_square = Arrangement(
    lambda ours: (1, *_sides(ours)), keep.to_ours, lambda array: array.reshape(1, *_sides(array.shape))
)


def with_rules(table: Iterable[Rule], *others: Rule) -> tuple[Rule, ...]:
    """A table with other rules for some of our parameters."""
    instead = {rule.ours: rule for rule in others}
    return tuple(instead.get(rule.ours, rule) for rule in table)


def huggingface_spec(given: Given) -> EncoderSpec:
    """The spec of a Siglip2Model's folder: its sizes from config.json and, where that is silent, from the table of words, its budget from
    `preprocessor_config.json`."""
    config, told = given.config, section(given.preprocessor, "image_processor", PROCESSOR) or given.preprocessor
    budget = setting(told, "max_num_patches", families.NAFLEX_PATCHES, PROCESSOR)
    if not config and given.row is not None and given.row.spec is not None:
        return given.row.spec
    vision, text = sub_config(config, "vision_config"), sub_config(config, "text_config")
    if given.has("text_model.*"):
        text.setdefault("vocab_size", given.shape("text_model.embeddings.token_embedding.weight", 2)[0])
    patch, rows = setting(vision, "patch_size", 16), setting(vision, "num_patches", 256)
    if setting(told, "patch_size", patch, PROCESSOR) != patch:
        raise UserError(
            f"{PROCESSOR}: patch_size is {told['patch_size']}, that of the tower {patch}; one of the files is of another model"
        )
    vision |= {"image_size": given.side(rows) * patch}
    square = dataclasses.replace(
        given, config={**config, "vision_config": vision, "text_config": text}, preprocessor={}
    )
    spec = huggingface_siglip.spec(square)
    steps = {name: value for name, value in told.items() if name not in ("size", "crop_size", "do_center_crop")}
    pictures = preprocessing(steps, families.siglip_preprocessing(spec.image.image_size, "bilinear"))
    return finished(dataclasses.replace(spec, preprocessing=pictures), budget)


def shaped_spec(
    square: Callable[[Given], EncoderSpec], names: tuple[str, str], theirs: tuple[str, str]
) -> Callable[[Given], EncoderSpec]:
    """The spec of a file without a configuration: that of the SigLIP, as `square` finds it by the shapes of a convolution and of a row of
    positions under `names`, whose patches and positions are those of the tensors `theirs` (in Flax under the same names)."""
    flax = names == theirs

    def spec(given: Given) -> EncoderSpec:
        pixels, width = given.shape(theirs[0], 2)[:: 1 if flax else -1]
        rows = math.prod(given.shape(theirs[1], 3 if flax else 4)[:-1])
        side = math.isqrt(pixels // 3)
        shapes = (side, side, 3, width) if flax else (width, 3, side, side), (1, rows, width)
        convolution = {
            name: dataclasses.replace(given.tensors[their], shape=shape)
            for name, their, shape in zip(names, theirs, shapes, strict=True)
        }
        return finished(square(dataclasses.replace(given, tensors={**given.tensors, **convolution}, row=None)))

    return spec


def finished(spec: EncoderSpec, budget: int = families.NAFLEX_PATCHES) -> EncoderSpec:
    """The same for pictures of any shape, with the words and the activation of SigLIP 2."""
    if spec.text is not None and spec.tokenization is not None:
        own = families.siglip_tokenization(spec.text.context_length, GEMMA)
        cleaning = own.cleaning if spec.tokenization.cleaning == "drop_punctuation" else spec.tokenization.cleaning
        blocks = dataclasses.replace(spec.text.blocks, activation=families.TANH_GELU)
        spec = dataclasses.replace(
            spec,
            text=dataclasses.replace(spec.text, blocks=blocks),
            tokenization=dataclasses.replace(own, vocab_size=spec.text.vocab_size, cleaning=cleaning),
        )
    antialiased = "bilinear" if spec.preprocessing.filter == "bilinear_tf" else spec.preprocessing.filter
    return families.naflex(spec, antialiased, budget)


def timm_rules(table: Iterable[Rule], trunk: str = "") -> tuple[Rule, ...]:
    """A table of timm's SigLIP for its NaFlex."""
    return with_rules(
        table,
        Rule(f"{trunk}embeds.proj.weight", KERNEL, outputs_pixels),
        Rule(f"{trunk}embeds.proj.bias", "image/patch_embedding/bias"),
        Rule(f"{trunk}embeds.pos_embed", POSITIONS, one_square),
    )


def timm_spec(square: Callable[[Given], EncoderSpec], trunk: str = "") -> Callable[[Given], EncoderSpec]:
    """The spec of a file with such a table."""
    convolution = (f"{trunk}patch_embed.proj.weight", f"{trunk}pos_embed")
    return shaped_spec(square, convolution, (f"{trunk}embeds.proj.weight", f"{trunk}embeds.pos_embed"))


TRUNK = "visual.trunk."
FLAX = (big_vision.PATCHES, "img/pos_embedding")
FORMATS = (
    Format(
        name="Hugging Face SigLIP 2 NaFlex",
        marks=("vision_model.embeddings.patch_embedding.bias",),
        rules=with_rules(huggingface_siglip.RULES, Rule(huggingface_siglip.PATCHES, KERNEL, outputs_pixels)),
        spec=huggingface_spec,
        model_types=("siglip2", "siglip2_vision_model"),
        classes=r"Siglip2",
        prefixes=VISION_ALONE,
        ignored=("*.embeddings.position_ids",),
        axes=((huggingface_siglip.PATCHES, 2),),
    ),
    Format(
        name="open_clip SigLIP 2 NaFlex",
        marks=(f"{TRUNK}embeds.pos_embed", f"{TRUNK}attn_pool.latent", "text.token_embedding.weight"),
        rules=timm_rules(open_clip.SIGLIP_RULES, TRUNK),
        spec=timm_spec(open_clip.siglip_spec, TRUNK),
        ignored=("text.attn_mask",),
    ),
    Format(
        name="timm SigLIP 2 NaFlex",
        marks=("embeds.pos_embed", "attn_pool.latent"),
        rules=timm_rules(timm.SIGLIP_RULES),
        spec=timm_spec(timm.siglip_tower_spec),
    ),
    *(
        Format(
            name=f"big_vision NaFlex{title}",
            marks=(big_vision.PATCHES, f"img/Transformer/{first}/*"),
            rules=with_rules(
                big_vision.rules(block), Rule(FLAX[0], KERNEL, pixels_outputs), Rule(FLAX[1], POSITIONS, square)
            ),
            spec=shaped_spec(big_vision.spec, FLAX, FLAX),
            prefixes=big_vision.PREFIXES,
            ignored=big_vision.IGNORED,
            axes=((big_vision.PATCHES, 2),),
            repair=big_vision.repair,
        )
        for title, first, block in (
            ("", "encoderblock_0", "encoderblock_*"),
            (" scanned", "encoderblock", "encoderblock"),
        )
    ),
)
