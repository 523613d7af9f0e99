"""Meta's dino.txt: the file of the head and the texts, and beside it that of the trunk (a DINOv3); or both in one state dict."""

from __future__ import annotations

import dataclasses

from regcache_jax.converters.engine import Rule, flat, keep, out_heads_to_heads_out, out_in_to_in_out
from regcache_jax.converters.formats import Format, Given
from regcache_jax.converters.meta_dinov3 import META_RULES, meta_spec, with_masked_bias

from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import catalog, dinotxt

TRUNK, HEAD, TEXT = "visual_model.backbone.", "visual_model.head.", "text_model.backbone."
_WORDS = (
    ("attention_norm.weight", "norm1/scale", keep),
    ("attention_norm.bias", "norm1/bias", keep),
    ("attention.proj.weight", "attention/out/kernel", out_heads_to_heads_out),
    ("attention.proj.bias", "attention/out/bias", keep),
    ("ffn_norm.weight", "norm2/scale", keep),
    ("ffn_norm.bias", "norm2/bias", keep),
    ("feed_forward.fc1.weight", "mlp/fc1/kernel", out_in_to_in_out),
    ("feed_forward.fc1.bias", "mlp/fc1/bias", flat),
    ("feed_forward.fc2.weight", "mlp/fc2/kernel", out_in_to_in_out),
    ("feed_forward.fc2.bias", "mlp/fc2/bias", keep),
)
_QKV = tuple(f"text/blocks/attention/{name}/kernel" for name in ("query", "key", "value"))


def _further(rule: Rule) -> Rule:
    """A rule of the trunk's blocks for those behind it, which have the same names."""

    def ours(path: str | None) -> str | None:
        return None if path is None else path.replace("image/blocks", "image/further/blocks")

    paths = ours(rule.ours) if isinstance(rule.ours, str) else tuple(map(ours, rule.ours))
    assert paths is not None
    return dataclasses.replace(
        rule, theirs=HEAD + rule.theirs, ours=paths, beside=rule.beside.replace("image/blocks", "image/further/blocks")
    )


RULES = (
    *(dataclasses.replace(rule, theirs=TRUNK + rule.theirs) for rule in META_RULES),
    *(_further(rule) for rule in META_RULES if rule.theirs.startswith("blocks.")),
    Rule(f"{HEAD}ln_final.weight", "image/further/norm/scale"),
    Rule(f"{HEAD}ln_final.bias", "image/further/norm/bias"),
    Rule(f"{TEXT}token_embedding.weight", "text/token_embedding"),
    Rule(f"{TEXT}positional_embedding", "text/position_embedding"),
    Rule(f"{TEXT}blocks.*.attention.qkv.weight", _QKV, out_in_to_in_out),
    *(Rule(f"{TEXT}blocks.*.{theirs}", f"text/blocks/{ours}", arranged) for theirs, ours, arranged in _WORDS),
    Rule(f"{TEXT}ln_final.weight", "text/final_norm/scale"),
    Rule(f"{TEXT}ln_final.bias", "text/final_norm/bias"),
    Rule("text_model.head.linear_projection.weight", "text/projection/kernel", out_in_to_in_out),
    Rule("logit_scale", "logit_scale", flat),
)


def spec(given: Given) -> EncoderSpec:
    """The spec of a dino.txt, its trunk's included, from shapes: heads of both towers are 64 wide."""
    trunk = {name.removeprefix(TRUNK): each for name, each in given.tensors.items() if name.startswith(TRUNK)}
    row = given.row or catalog.find("dinov3_vitl16")  # whose pictures are of no matter here
    image = meta_spec(dataclasses.replace(given, tensors=trunk, row=row)).image
    further = dinotxt.further_blocks(
        image.blocks, given.count(f"{HEAD}blocks.*.norm1.weight"), given.shape(f"{HEAD}blocks.0.mlp.w1.weight", 2)[0]
    )
    words, width = given.shape(f"{TEXT}token_embedding.weight", 2)
    text = dinotxt.dinotxt_text(
        width,
        given.count(f"{TEXT}blocks.*.attention_norm.weight"),
        given.shape(f"{TEXT}blocks.0.feed_forward.fc1.weight", 2)[0],
        given.shape(f"{TEXT}positional_embedding", 2)[0],
        words,
        given.shape("text_model.head.linear_projection.weight", 2)[0],
    )
    return dinotxt.dinotxt_spec(given.name, image, further, text)


FORMAT = Format(
    name="Meta dino.txt",
    marks=(f"{HEAD}blocks.*.mlp.w1.weight", f"{TEXT}blocks.*.attention_norm.weight"),
    rules=RULES,
    spec=spec,
    ignored=(f"{TRUNK}mask_token", f"{TRUNK}rope_embed.periods", f"{TRUNK}local_cls_norm.*"),
    repair=with_masked_bias,
)
