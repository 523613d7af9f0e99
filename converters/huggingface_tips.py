"""Hugging Face TIPSv2 (`Tipsv2Model`): DINOv2's image tower in Meta's names, a text tower in OpenAI's."""

from __future__ import annotations

import dataclasses

import numpy as np
from regcache_jax.converters import meta_dinov2, openai
from regcache_jax.converters.engine import Rule, StoredTensor, out_in_to_in_out
from regcache_jax.converters.formats import Format, Given, needs_config, preprocessing, setting
from regcache_jax.converters.huggingface_clip import block_spec, sub_config
from regcache_jax.converters.huggingface_dinov2 import dinov2_blocks
from regcache_jax.converters.tips import scaled, temperature

from regcache_jax.core.spec import EncoderSpec, ImageSpec, TextSpec
from regcache_jax.encoders import families

_IMAGE, _TEXT, _MLP = "vision_encoder.", "text_encoder.", "image/blocks/mlp"
_TEMPERATURE = 0.005065968260169029
"""What transformers fills in: published files have none."""
RULES = (
    *(
        dataclasses.replace(rule, theirs=f"{_IMAGE}{rule.theirs}")
        for rule in meta_dinov2.RULES
        if ".mlp.fc" not in rule.theirs
    ),
    Rule(f"{_IMAGE}blocks.*.mlp.c_fc.weight", f"{_MLP}/fc1/kernel", out_in_to_in_out),
    Rule(f"{_IMAGE}blocks.*.mlp.c_fc.bias", f"{_MLP}/fc1/bias"),
    Rule(f"{_IMAGE}blocks.*.mlp.c_proj.weight", f"{_MLP}/fc2/kernel", out_in_to_in_out),
    Rule(f"{_IMAGE}blocks.*.mlp.c_proj.bias", f"{_MLP}/fc2/bias"),
    Rule(f"{_TEXT}token_embedding.weight", "text/token_embedding", scaled),
    *openai.text(_TEXT)[1:],
    Rule("temperature", "logit_scale", temperature),
)


def spec(given: Given) -> EncoderSpec:
    """The spec of a TIPSv2 folder, from its `config.json`; a text tower that is not in the file is left out."""
    needs_config(given, "TIPSv2")
    vision, text = sub_config(given.config, "vision_config"), sub_config(given.config, "text_config")
    pixels, patch = setting(vision, "image_size", 448), setting(vision, "patch_size", families.TIPS_PATCH)
    image = ImageSpec(
        pixels,
        patch,
        dinov2_blocks(vision),
        class_token=True,
        pooling="class",
        trained_registers=given.shape(f"{_IMAGE}register_tokens", 3)[1],
        position_grid=pixels // patch,
        position_interpolation="bilinear_antialias",
    )
    default = families.tips_text("B")
    words = None
    if given.has(f"{_TEXT}*"):
        words = TextSpec(
            setting(text, "vocab_size", default.vocab_size),
            setting(text, "max_position_embeddings", default.context_length),
            block_spec(text, dataclasses.replace(default.blocks, norm_eps=1e-5), "relu"),
            "mean",
            position_table=False,
        )
    result = families.tips_spec(given.name, image, words)
    if result.tokenization is not None:  # its tokenizer's own: a character at a time
        result = dataclasses.replace(result, tokenization=dataclasses.replace(result.tokenization, cleaning="lower"))
    return dataclasses.replace(result, preprocessing=preprocessing(given.preprocessor, result.preprocessing))


def with_temperature(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with the temperature of scores that transformers fills in, where there is none."""
    value = StoredTensor((), np.dtype(np.float32), "config.json", lambda: np.asarray(_TEMPERATURE, np.float32))
    texts = any(name.startswith(_TEXT) for name in tensors)
    return {"temperature": value, **tensors} if texts else tensors


FORMAT = Format(
    name="Hugging Face TIPSv2",
    marks=(f"{_IMAGE}cls_token", f"{_IMAGE}register_tokens", f"{_IMAGE}blocks.*.ls1.gamma"),
    rules=RULES,
    spec=spec,
    model_types=("tipsv2",),
    classes=r"Tipsv2",
    ignored=(f"{_IMAGE}mask_token",),
    repair=with_temperature,
)
