"""A row of the catalog, and what the rows of one family have in common."""

from __future__ import annotations

import dataclasses

from regcache_jax.core.spec import (
    CLIP_MEAN,
    CLIP_STD,
    Activation,
    EncoderSpec,
    Filter,
    Preprocessing,
)
from regcache_jax.encoders.families import (
    EXACT_GELU,
    QUICK_GELU,
    SIZES,
    Shape,
    clip_preprocessing,
    clip_spec,
    clip_text,
    clip_tower_spec,
    dinov2_spec,
    dinov3_spec,
    naflex,
    pe_image,
    pe_spec,
    siglip_spec,
    siglip_tower_spec,
    tips_image,
    tips_spec,
    tips_text,
    vit_spec,
    with_metaclip2_words,
)

Figures = tuple[float | None, float | None, float | None]
"""Millions of parameters of the image tower and of the text tower, published zero-shot accuracy on ImageNet in percent."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One checkpoint: its names and, where it can be built, its spec. `reason` says why it cannot be.

    `number` is the row's place in docs/encoders.md (None: another checkpoint of the same shapes); `open_clip` its model and
    tag; `big_vision` its file; `others` the names of torch hub and timm. `image_parameters` and `text_parameters` are millions. `since`:
    the version that has it first."""

    huggingface: str
    family: str
    spec: EncoderSpec | None
    number: int | None = None
    open_clip: tuple[str, str] | None = None
    big_vision: str | None = None
    others: tuple[str, ...] = ()
    image_parameters: float | None = None
    text_parameters: float | None = None
    published: float | None = None
    reason: str = ""
    since: str = "0.1.0"

    @property
    def supported(self) -> bool:
        """Whether it can be built."""
        return self.spec is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Everything a user may type for this row."""
        names = [self.huggingface, self.huggingface.split("/")[-1], *self.others]
        if self.open_clip:
            model, tag = self.open_clip
            names += [f"open_clip:{model},{tag}", f"{model},{tag}", f"{model}/{tag}"]
            if self.spec is not None and self.spec.image.blocks.activation == QUICK_GELU:
                names += [f"open_clip:{model}-quickgelu,{tag}", f"{model}-quickgelu,{tag}"]
        if self.big_vision:
            file = self.big_vision.split("/")[-1]
            names += [f"gs://big_vision/{self.big_vision}", self.big_vision, file, file.removesuffix(".npz")]
        return tuple(names)


_NO_FIGURES: Figures = (None, None, None)


CLIP_TEXTS = {
    "B": ("clip text B", 512),
    "B+": ("clip text B+", 640),
    "L": ("clip text L", 768),
    "H": ("clip text H", 1024),
    "g": ("clip text H", 1024),
    "bigG": ("clip text bigG", 1280),
}
"""The text tower beside an image tower of some size, and the width in which they meet."""


def clip_row(
    number: int | None,
    huggingface: str,
    open_clip: tuple[str, str],
    shape: Shape,
    activation: Activation,
    figures: Figures = _NO_FIGURES,
    preprocessing: Preprocessing | None = None,
    others: tuple[str, ...] = (),
) -> Row:
    """A CLIP, of OpenAI or of open_clip."""
    size = shape[0]
    text, out = CLIP_TEXTS[size]
    spec = clip_spec(huggingface.split("/")[-1], shape, text, out, activation)
    if preprocessing is not None:
        spec = dataclasses.replace(spec, preprocessing=preprocessing)
    return Row(huggingface, "CLIP", spec, number, open_clip, None, others, *figures)


def siglip_row(
    number: int | None,
    huggingface: str,
    open_clip: str | None,
    big_vision: str | None,
    shape: Shape,
    vocab: int = 32_000,
    context: int = 64,
    figures: Figures = _NO_FIGURES,
) -> Row:
    """A SigLIP or SigLIP 2 of one picture size."""
    size, patch, pixels = shape
    second = "2" if "siglip2" in huggingface else ""
    text = "So400m" if size == "g-opt" else None
    spec = siglip_spec(huggingface.split("/")[-1], shape, vocab, text, context)
    vanity = f"SigLIP{second} {size}/{patch}{'-i18n' if vocab == 250_000 else ''} {pixels}"
    tag = (open_clip, "webli") if open_clip else None
    others = (vanity, huggingface.replace("-multilingual", "-i18n")) if "multilingual" in huggingface else (vanity,)
    return Row(huggingface, f"SigLIP {second}".strip(), spec, number, tag, big_vision, others, *figures)


def dinov2_row(
    number: int | None, size: str, registers: int, parameters: float | None = None, published: float | None = None
) -> Row:
    """A DINOv2, with trained registers or without."""
    words = {"S": "small", "B": "base", "L": "large", "g/14": "giant"}
    word, letter = words[size], size[0].lower()
    huggingface = f"facebook/dinov2-{'with-registers-' if registers else ''}{word}"
    suffix = "_reg" if registers else ""
    hub = (f"dinov2_vit{letter}14{suffix}", f"vit_{word}_patch14{'_reg4' if registers else ''}_dinov2.lvd142m")
    others: tuple[str, ...] = (*hub, f"timm/{hub[1]}", f"{hub[0]}{'4' if registers else ''}_pretrain", f"{hub[0]}_lc")
    others += () if registers else (f"{huggingface}-imagenet1k-1-layer",)  # with linear heads, which are left out
    spec = dinov2_spec(huggingface.split("/")[-1], size, registers)
    return Row(huggingface, "DINOv2", spec, number, None, None, others, parameters, None, published)


def dinov3_row(
    number: int | None, size: str, file: str, parameters: float | None = None, data: str = "lvd1689m"
) -> Row:
    """`size` as in Meta's names (`vits`, `vitsplus`), `file` the end of the name of Meta's file."""
    letter, plus = size.removeprefix("vit").removesuffix("plus"), "plus" if size.endswith("plus") else ""
    word = {"s": "small", "b": "base", "l": "large", "h": "huge", "7b": "7b"}[letter]
    hub = f"dinov3_vit{letter}16{plus}"
    huggingface = f"facebook/{hub.replace('_', '-')}-pretrain-{data}"
    timm = [f"vit_{word}{'_plus' if plus else ''}_patch16_dinov3{bias}.{data}" for bias in ("", "_qkvb")]
    weights = f"{hub}_pretrain_{data}-{file}"
    others = (*timm, *(f"timm/{name}" for name in timm), weights, f"{weights}.pth")
    others += (hub,) if data == "lvd1689m" else ()
    shape = {"s": "S", "b": "B", "l": "L", "h": "H+", "7b": "7B"}[letter]
    spec = dinov3_spec(huggingface.split("/")[-1], shape, bool(plus) or letter == "7b", data == "sat493m")
    return Row(huggingface, "DINOv3", spec, number, None, None, others, parameters, since="0.2.0")


def metaclip2_row(huggingface: str, open_clip: str, shape: Shape, activation: Activation, figures: Figures) -> Row:
    """A MetaCLIP 2: a CLIP with XLM-V's words. Its larger pictures are squashed (open_clip's table)."""
    (size, _, pixels), word = shape, {"H": "huge", "bigG": "gigantic"}[shape[0]]
    text, out = CLIP_TEXTS[size]
    spec = clip_spec(huggingface.split("/")[-1], shape, text, out, activation)
    assert spec.text is not None
    spec = with_metaclip2_words(dataclasses.replace(spec, text=dataclasses.replace(spec.text, vocab_size=901_629)), 2)
    spec = spec if pixels == 224 else dataclasses.replace(spec, preprocessing=clip_squashed(pixels))
    others = (f"timm/vit_{word}_patch14_clip_{pixels}.metaclip2_worldwide",)
    return Row(
        huggingface, "MetaCLIP 2", spec, None, (open_clip, "metaclip2_worldwide"), None, others, *figures, since=NEXT
    )


def mobileclip2_row(huggingface: str, open_clip: str, shape: Shape, figures: Figures) -> Row:
    """A MobileCLIP2 that is a plain ViT: timm's tower, whose projection has a bias, and texts that are not causal."""
    text, out = CLIP_TEXTS[shape[0]]
    spec = clip_spec(open_clip, shape, text, out, EXACT_GELU)
    spec = dataclasses.replace(
        spec,
        image=dataclasses.replace(spec.image, projection_bias=True),
        text=clip_text(text, out, causal=False),
    )
    return Row(huggingface, "MobileCLIP 2", spec, None, (open_clip, "dfndr2b"), None, (), *figures, since=NEXT)


_PE_WORDS = {"T": "tiny", "S": "small", "B": "base", "L": "large", "G": "gigantic"}
_PE_TEXTS = {
    "T": ("clip text B", 512, 32),
    "S": ("clip text B", 512, 32),
    "B": ("clip text H", 1024, 32),
    "L": ("clip text H", 1024, 32),
    "G": ("PE text G", 1280, 72),
}
"""Core's text tower beside an image tower of some size: its own size, the width in which they meet, its context."""


def pe_row(
    kind: str,
    shape: Shape,
    figures: Figures,
    *,
    open_clip: str | None = None,
    depth: int | None = None,
    layer_scale: bool = False,
    timm: str = "fb",
) -> Row:
    """A Perception Encoder: `kind` is Core, Spatial, Lang or Lang-Tiling, `depth` says how many blocks are left of the size's."""
    size, patch, pixels = shape
    width, blocks, heads, mlp_width = SIZES[{"T": "Ti", "G": "PE G"}.get(size, size)]
    whole, _, ending = kind.partition("-")
    text, out, context = _PE_TEXTS[size]
    core = kind == "Core"
    image = pe_image(
        (width, depth or blocks, heads, mlp_width),
        patch,
        pixels,
        class_token=size != "G",
        layer_scale=layer_scale,
        out=out if core else None,
    )
    name = f"PE-{whole}-{size}{patch}-{pixels}{'-' * bool(ending)}{ending}"
    trunk = f"vit_pe_{whole.lower()}_{_PE_WORDS[size]}_patch{patch}_{pixels}.{timm}"
    spec = pe_spec(name, image, clip_text(text, out, context) if core else None)
    others = (f"{name}.pt", *([f"timm/{open_clip}"] if open_clip else []), trunk, f"timm/{trunk}")
    tag = (open_clip, "meta") if open_clip else None
    return Row(f"facebook/{name}", f"PE {whole}", spec, None, tag, None, others, *figures, since=NEXT)


def tips_row(huggingface: str, file: str, size: str, pixels: int, grid: int, parameters: float, texts: float) -> Row:
    """A TIPS by the name of its JAX files. Texts have 12 blocks, but So400m's as many as its pictures."""
    width, blocks, heads, mlp_width = SIZES[size]
    image = tips_image(size, pixels, grid, gated=size == "g/14")
    text = tips_text((width, blocks if size == "So400m" else 12, heads, 6144 if size == "g/14" else mlp_width))
    spec = tips_spec(huggingface.split("/")[-1], image, text)
    others = (*([file] if file != huggingface else []), f"{file}_vision", f"{file}_vision.npz")
    return Row(
        huggingface, "TIPSv2" if grid == 32 else "TIPS", spec, None, None, None, others, parameters, texts, since=NEXT
    )


def clip_squashed(pixels: int) -> Preprocessing:
    """DFN-5B: CLIP's numbers, aspect not kept."""
    return Preprocessing(pixels, "squash", "bicubic", pixels, CLIP_MEAN, CLIP_STD)


def vit_row(
    huggingface: str,
    shape: Shape,
    pictures: Preprocessing,
    parameters: float,
    classes: int | None = 1000,
    *others: str,
    layer_scale: bool = False,
) -> Row:
    """A plain ViT."""
    name, eps = huggingface.split("/")[-1], 1e-6 if huggingface.startswith("timm/") else 1e-12
    spec = vit_spec(name, shape, pictures, classes, layer_scale=layer_scale, eps=eps)
    names = (name.partition(".")[0], *others) if huggingface.startswith("timm/") and classes else others
    return Row(huggingface, "ViT", spec, others=names, image_parameters=parameters, since=NEXT)


def tower_row(
    family: str, huggingface: str, parameters: float, shape: Shape | None = None, filter: Filter = "bilinear"
) -> Row:
    """The tower of a vision-language model: SigLIP's of some shape, or (None) LLaVA's."""
    name = huggingface.split("/")[-1]
    if shape is not None:
        spec = siglip_tower_spec(name, shape, filter)
    else:
        squashed = "1.6" in family
        spec = clip_tower_spec(name, clip_squashed(336) if squashed else clip_preprocessing(336))
    return Row(huggingface, family, spec, image_parameters=parameters, since=NEXT)


def unsupported_row(huggingface: str, family: str, reason: str, others: tuple[str, ...]) -> Row:
    """An encoder that cannot be built, and why."""
    return Row(huggingface, family, None, others=others, reason=reason)


def naflex_row(number: int | None, word: str, shape: Shape, file: str, figures: Figures) -> Row:
    """A SigLIP 2 that takes pictures of any shape."""
    title, huggingface = "B" if word == "base" else word.upper(), f"google/siglip2-{word}-patch16-naflex"
    model = f"ViT-{title}-16-SigLIP2-naflex"
    spec = naflex(siglip_spec(huggingface.split("/")[-1], shape, 256_000), "bilinear")
    timm = f"naflexvit_{word}_patch16_siglip.v2_webli"
    others = (timm, f"timm/{timm}", f"timm/{model}")
    return Row(huggingface, "SigLIP 2", spec, number, (model, "webli"), f"siglip2/{file}", others, *figures, since=NEXT)


NEXT = "0.2.0"
"""The version that is being made."""
