"""CLIPA: CLIPs without a norm in front of the blocks; pictures are pooled by the mean, texts are BERT's words, read at the last place."""

from __future__ import annotations

import dataclasses

from regcache_jax.core.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, Preprocessing, Tokenization
from regcache_jax.encoders.families import EXACT_GELU, clip_spec, clip_text
from regcache_jax.encoders.rows import CLIP_TEXTS, NEXT, Figures, Row

START, PADDING = 101, 0
"""[CLS] and [PAD] of BERT's words. open_clip puts padding in the place of [SEP]."""


def with_mean_and_words(spec: EncoderSpec) -> EncoderSpec:
    """A CLIP pooled as CLIPA is: the mean of patches before the final norm; a text at its last place, which has seen all of it."""
    assert spec.text is not None
    text = dataclasses.replace(
        spec.text,
        pooling="last",
        eot_id=PADDING,
        blocks=dataclasses.replace(spec.text.blocks, causal=False),
    )
    words = Tokenization("bert", text.context_length, text.vocab_size, "whitespace", PADDING, START, PADDING)
    image = dataclasses.replace(spec.image, pre_norm=False, pooling="normed_mean")
    return dataclasses.replace(spec, image=image, text=text, tokenization=words)


def clipa_row(size: str, pixels: int, figures: Figures, tag: str = "datacomp1b") -> Row:
    """A CLIPA by open_clip's name, of 14 px a patch."""
    model = f"ViT-{size}-14-CLIPA{'' if pixels == 224 else f'-{pixels}'}"
    text, out = CLIP_TEXTS[size]
    spec = clip_spec(model, (size, 14, pixels), text, out, EXACT_GELU)
    spec = with_mean_and_words(dataclasses.replace(spec, text=clip_text(text, out, context=32, vocab=32_000)))
    pictures = Preprocessing(pixels, "squash", "bilinear", pixels, IMAGENET_MEAN, IMAGENET_STD)
    spec = dataclasses.replace(spec, preprocessing=pictures)
    ending = {"datacomp1b": "datacomp1B", "laion2b": "laion2B"}[tag]
    return Row(f"UCSC-VLAA/{model}-{ending}", "CLIPA", spec, None, (model, tag), None, (), *figures, since=NEXT)
