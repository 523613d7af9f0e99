"""TIPS and TIPSv2 in JAX (google-deepmind/tips): `*_vision.npz`, and `*_text.npz` where it stands beside it.

Flax's defaults hold, as its own code runs them: epsilon 1e-6, the tanh GELU in image towers. LayerScale is folded into the weights.
`huggingface_tips` reads the folders of transformers."""

from __future__ import annotations

import numpy as np
from regcache_jax.converters import big_vision
from regcache_jax.converters.engine import Arrangement, Rule
from regcache_jax.converters.formats import Format, Given

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import families

_ENCODER, _TOKENS = "encoder", "encoder/ToTokenSequence_0"
_GATED, _MLP = "encoder/transformer/encoderblock_*/FFNSwiGluFused_0", "image/blocks/mlp"
# [1, G, G, D] <-> [1 + G * G, D]: a square of positions of patches alone
square = Arrangement(
    lambda ours: (1, *[round((ours[0] - 1) ** 0.5)] * 2, ours[1]),
    lambda array, ours: np.concatenate([np.zeros((1, ours[1]), array.dtype), array.reshape(-1, ours[1])]),
    lambda array: array[None, 1:].reshape(1, *[round((len(array) - 1) ** 0.5)] * 2, -1),
)
# [1, 1, D] <-> [D] and [1, D]: one of two class tokens
one_token = Arrangement(
    lambda ours: (1, 1, ours[-1]), lambda array, ours: array.reshape(ours), lambda array: array.reshape(1, 1, -1)
)
# their code multiplies embeddings by sqrt(D)
scaled = Arrangement(
    lambda ours: ours,
    lambda array, ours: array * np.float32(ours[-1] ** 0.5),
    lambda array: array / np.float32(array.shape[-1] ** 0.5),
)
# scores are divided by a temperature, of which ours is the logarithm of the inverse
temperature = Arrangement(lambda ours: ours, lambda array, ours: -np.log(array), lambda array: np.exp(-array))

RULES = (
    Rule(f"{_TOKENS}/embedding/kernel", "image/patch_embedding/kernel"),
    Rule(f"{_TOKENS}/embedding/bias", "image/patch_embedding/bias"),
    Rule(f"{_TOKENS}/posembed_input", "image/position_embedding", square),
    Rule(f"{_TOKENS}/cls", ("image/class_token", "image/registers"), one_token, axis=1),
    *big_vision.blocks(f"{_ENCODER}/transformer/encoderblock_*", "image/blocks"),
    *(
        Rule(f"{_GATED}/Dense_{layer}/{leaf}", f"{_MLP}/{ours}/{leaf}", beside=f"{_MLP}/gate/kernel")
        for layer, ours in enumerate(("gate", "fc1", "fc2"))
        for leaf in ("kernel", "bias")
    ),
    Rule(f"{_ENCODER}/encoder_norm/scale", "image/final_norm/scale"),
    Rule(f"{_ENCODER}/encoder_norm/bias", "image/final_norm/bias"),
    Rule("token_emb/emb_var", "text/token_embedding", scaled),
    *big_vision.blocks("transformer/encoderblock_*", "text/blocks"),
    Rule("text_encoder_norm/scale", "text/final_norm/scale"),
    Rule("text_encoder_norm/bias", "text/final_norm/bias"),
    Rule("temperature_contrastive", "logit_scale", temperature),
)


def _size(given: Given, tower: str, mlp: str) -> tuple[int, int, int, int]:
    block = f"{tower}transformer/encoderblock"
    width, heads, _ = given.shape(f"{block}_0/MultiHeadDotProductAttention_0/query/kernel", 3)
    return (
        width,
        given.count(f"{block}_*/LayerNorm_0/scale"),
        heads,
        given.shape(f"{block}_0/{mlp}/Dense_0/kernel", 2)[1],
    )


def spec(given: Given) -> EncoderSpec:
    """The spec of a TIPS from its shapes; its row of the catalog says where pictures are larger than the table of positions."""
    patch, grid = given.shape(f"{_TOKENS}/embedding/kernel", 4)[0], given.shape(f"{_TOKENS}/posembed_input", 4)[1]
    if patch != families.TIPS_PATCH:
        raise UserError(f"{given.name}: patches of a TIPS have {families.TIPS_PATCH} pixels a side, these have {patch}")
    row, gated = None if given.row is None else given.row.spec, given.has(f"{_GATED}/*")
    if row is None and grid == 16:
        raise UserError(
            f"{given.name} is a TIPS of version 1, whose tensors do not show whether it takes pictures of 224 or 448 px; name its row "
            "of the catalog with --name, e.g. --name tips_oss_b14_highres_distilled"
        )
    pixels = grid * patch if row is None else row.image.image_size
    size = _size(given, f"{_ENCODER}/", "FFNSwiGluFused_0" if gated else "MlpBlock_0")
    text = None
    if given.has("token_emb/emb_var"):
        text = families.tips_text(_size(given, "", "MlpBlock_0"), given.shape("token_emb/emb_var", 2)[0])
    return families.tips_spec(given.name, families.tips_image(size, pixels, grid, gated), text)


FORMAT = Format("TIPS", (f"{_TOKENS}/cls", f"{_ENCODER}/transformer/encoderblock_0/*"), RULES, spec)
