"""OpenAI's CLIP (`ViT-B-16.pt`, a TorchScript archive), whose names open_clip keeps."""

from __future__ import annotations

from regcache_jax.converters.engine import Rule, flat, oihw_to_hwio, out_heads_to_heads_out, out_in_to_in_out
from regcache_jax.converters.formats import Format, Given

from regcache_jax.core.spec import Activation, BlockSpec, EncoderSpec, ImageSpec, TextSpec
from regcache_jax.encoders import families


def transformer(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The blocks of a tower."""
    block, blocks = f"{theirs}transformer.resblocks.*", f"{ours}/blocks"
    qkv = tuple(f"{blocks}/attention/{name}" for name in ("query", "key", "value"))
    return (
        Rule(f"{block}.ln_1.weight", f"{blocks}/norm1/scale"),
        Rule(f"{block}.ln_1.bias", f"{blocks}/norm1/bias"),
        Rule(f"{block}.attn.in_proj_weight", tuple(f"{name}/kernel" for name in qkv), out_in_to_in_out),
        Rule(f"{block}.attn.in_proj_bias", tuple(f"{name}/bias" for name in qkv), flat),
        Rule(f"{block}.attn.out_proj.weight", f"{blocks}/attention/out/kernel", out_heads_to_heads_out),
        Rule(f"{block}.attn.out_proj.bias", f"{blocks}/attention/out/bias"),
        Rule(f"{block}.ln_2.weight", f"{blocks}/norm2/scale"),
        Rule(f"{block}.ln_2.bias", f"{blocks}/norm2/bias"),
        Rule(f"{block}.mlp.c_fc.weight", f"{blocks}/mlp/fc1/kernel", out_in_to_in_out),
        Rule(f"{block}.mlp.c_fc.bias", f"{blocks}/mlp/fc1/bias"),
        Rule(f"{block}.mlp.c_proj.weight", f"{blocks}/mlp/fc2/kernel", out_in_to_in_out),
        Rule(f"{block}.mlp.c_proj.bias", f"{blocks}/mlp/fc2/bias"),
    )


def text(theirs: str) -> tuple[Rule, ...]:
    """What surrounds the blocks of a text tower."""
    return (
        Rule(f"{theirs}token_embedding.weight", "text/token_embedding"),
        Rule(f"{theirs}positional_embedding", "text/position_embedding"),
        *transformer(theirs, "text"),
        Rule(f"{theirs}ln_final.weight", "text/final_norm/scale"),
        Rule(f"{theirs}ln_final.bias", "text/final_norm/bias"),
    )


RULES = (
    Rule("visual.class_embedding", "image/class_token"),
    Rule("visual.conv1.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("visual.positional_embedding", "image/position_embedding"),
    Rule("visual.ln_pre.weight", "image/pre_norm/scale"),
    Rule("visual.ln_pre.bias", "image/pre_norm/bias"),
    *transformer("visual.", "image"),
    Rule("visual.ln_post.weight", "image/final_norm/scale"),
    Rule("visual.ln_post.bias", "image/final_norm/bias"),
    Rule("visual.proj", "image/projection/kernel"),
    *text(""),
    Rule("text_projection", "text/projection/kernel"),
    Rule("logit_scale", "logit_scale"),
    Rule("logit_bias", "logit_bias"),
)


def text_spec(given: Given, theirs: str, activation: Activation, heads: int | None = None) -> TextSpec:
    """A text tower from its shapes; heads are 64 wide where nobody says how many there are. `theirs`: how its names begin."""
    vocabulary, width = given.shape(f"{theirs}token_embedding.weight", 2)
    block = f"{theirs}transformer.resblocks"
    size = (
        width,
        given.count(f"{block}.*.ln_1.weight"),
        heads or max(1, width // 64),
        given.shape(f"{block}.0.mlp.c_fc.weight", 2)[0],
    )
    context, out = given.shape(f"{theirs}positional_embedding", 2)[0], given.shape(f"{theirs}text_projection", 2)[1]
    return families.clip_text(size, out, context, vocabulary, activation)


def clip_spec(given: Given, activation: Activation, image_heads: int, text_heads: int) -> EncoderSpec:
    """A CLIP from its shapes and what they do not show: the activation and the heads."""
    width, _, patch, _ = given.shape("visual.conv1.weight", 4)
    pixels = given.side(given.shape("visual.positional_embedding", 2)[0] - 1) * patch
    _, out = given.shape("visual.proj", 2)
    image = ImageSpec(
        image_size=pixels,
        patch_size=patch,
        blocks=BlockSpec(
            width=width,
            num_blocks=given.count("visual.transformer.resblocks.*.ln_1.weight"),
            num_heads=image_heads,
            mlp_width=given.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            activation=activation,
            norm_eps=1e-5,
        ),
        class_token=True,
        pooling="class",
        patch_bias=False,
        pre_norm=True,
        projection=out,
    )
    towers = text_spec(given, "", activation, text_heads)
    return EncoderSpec(
        name=given.name,
        family="clip",
        image=image,
        preprocessing=families.clip_preprocessing(pixels),
        text=towers,
        tokenization=families.clip_tokenization(towers.context_length, towers.vocab_size),
        logit_bias=given.has("logit_bias"),
    )


def spec(given: Given) -> EncoderSpec:
    """OpenAI's models all have quick GELU and heads 64 wide."""
    width, text_width = given.shape("visual.conv1.weight", 4)[0], given.shape("token_embedding.weight", 2)[1]
    return clip_spec(given, "quick_gelu", max(1, width // 64), max(1, text_width // 64))


FORMAT = Format(
    name="OpenAI CLIP",
    marks=("visual.class_embedding", "visual.conv1.weight", "text_projection"),
    rules=RULES,
    spec=spec,
    ignored=("input_resolution", "context_length", "vocab_size", "attn_mask", "*.attn_mask"),
    torchscript=True,
)
