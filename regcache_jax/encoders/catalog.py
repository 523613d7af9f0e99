# ruff: noqa: E501 - the table has one line a checkpoint
"""The encoders that are known by name: every published fact that a checkpoint file does not hold, as data.

A row is one checkpoint under all the names it goes by. Sizes, activations and tokenizers are from the checkpoints' own
configurations; `published` is the float ImageNet zero-shot top-1 of open_clip's result table (rows 1-16), of big_vision's
README (17-23), or the k-NN accuracy of Meta's README (24-28). Of plain ViTs parameters are counted with their classifier, as timm's
and Meta's tables do; of a vision-language model they are those of the tower as its language model reads it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from regcache_jax.encoders.clipa import clipa_row
from regcache_jax.encoders.dinotxt import dinotxt_row
from regcache_jax.encoders.families import (
    EXACT_GELU,
    QUICK_GELU,
    clip_preprocessing,
    timm_preprocessing,
    vit_preprocessing,
)
from regcache_jax.encoders.normed_families import aimv2_row, eva_row, internvit_spec, qwen_spec
from regcache_jax.encoders.radio import radio_row
from regcache_jax.encoders.rows import (
    NEXT,
    Row,
    clip_row,
    clip_squashed,
    dinov2_row,
    dinov3_row,
    metaclip2_row,
    mobileclip2_row,
    naflex_row,
    pe_row,
    siglip_row,
    tips_row,
    tower_row,
    unsupported_row,
    vit_row,
)
from regcache_jax.encoders.unsupported import UNSUPPORTED

_FILTERS = ("", "clip", "laion", "image", "text", "basic")
"""How CommonPool was filtered ("": not at all)."""


def _pools(size: str, filters: tuple[str, ...], datacomp: bool) -> list[tuple[str, str]]:
    """Titles and tags of one scale of DataComp: the set itself, where it is asked for, and its pool by filters."""
    named = [(f"DataComp.{size}", f"datacomp_{size.lower()}")] * datacomp
    return named + [
        (f"CommonPool.{size}{'.' * bool(each)}{each}", f"commonpool_{size.lower()}{'_' * bool(each)}{each}")
        for each in filters
    ]


_GOOGLE, _LAION = "google/siglip", "laion/CLIP-ViT"
_QUICK, _EXACT = QUICK_GELU, EXACT_GELU

# fmt: off
ROWS: tuple[Row, ...] = (
    clip_row(1, "openai/clip-vit-base-patch32", ("ViT-B-32", "openai"), ("B", 32, 224), _QUICK, (87.8, 63.4, 63.32), others=("ViT-B/32", "timm/vit_base_patch32_clip_224.openai")),
    clip_row(2, "openai/clip-vit-base-patch16", ("ViT-B-16", "openai"), ("B", 16, 224), _QUICK, (86.2, 63.4, 68.34), others=("ViT-B/16", "timm/vit_base_patch16_clip_224.openai")),
    clip_row(3, "openai/clip-vit-large-patch14", ("ViT-L-14", "openai"), ("L", 14, 224), _QUICK, (304.0, 123.7, 75.54), others=("ViT-L/14", "timm/vit_large_patch14_clip_224.openai")),
    clip_row(4, "openai/clip-vit-large-patch14-336", ("ViT-L-14-336", "openai"), ("L", 14, 336), _QUICK, (304.3, 123.7, 76.56), others=("ViT-L/14@336px", "timm/vit_large_patch14_clip_336.openai")),
    clip_row(5, f"{_LAION}-B-32-laion2B-s34B-b79K", ("ViT-B-32", "laion2b_s34b_b79k"), ("B", 32, 224), _EXACT, (87.8, 63.4, 66.56)),
    clip_row(6, f"{_LAION}-B-16-laion2B-s34B-b88K", ("ViT-B-16", "laion2b_s34b_b88k"), ("B", 16, 224), _EXACT, (86.2, 63.4, 70.23)),
    clip_row(7, f"{_LAION}-B-16-DataComp.XL-s13B-b90K", ("ViT-B-16", "datacomp_xl_s13b_b90k"), ("B", 16, 224), _EXACT, (86.2, 63.4, 73.49)),
    clip_row(8, f"{_LAION}-L-14-DataComp.XL-s13B-b90K", ("ViT-L-14", "datacomp_xl_s13b_b90k"), ("L", 14, 224), _EXACT, (304.0, 123.7, 79.21)),
    clip_row(9, f"{_LAION}-H-14-laion2B-s32B-b79K", ("ViT-H-14", "laion2b_s32b_b79k"), ("H", 14, 224), _EXACT, (632.1, 354.0, 77.96)),
    clip_row(10, f"{_LAION}-bigG-14-laion2B-39B-b160k", ("ViT-bigG-14", "laion2b_s39b_b160k"), ("bigG", 14, 224), _EXACT, (1844.9, 694.7, 80.09)),
    siglip_row(11, f"{_GOOGLE}-base-patch16-224", "ViT-B-16-SigLIP", "siglip/webli_en_b16_224_63724782.npz", ("B", 16, 224), figures=(92.9, 110.3, 76.04)),
    siglip_row(12, f"{_GOOGLE}-base-patch16-384", "ViT-B-16-SigLIP-384", "siglip/webli_en_b16_384_68578854.npz", ("B", 16, 384), figures=(93.2, 110.3, 78.49)),
    siglip_row(13, f"{_GOOGLE}-large-patch16-256", "ViT-L-16-SigLIP-256", "siglip/webli_en_l16_256_60552751.npz", ("L", 16, 256), figures=(316.0, 336.2, 80.45)),
    siglip_row(14, f"{_GOOGLE}-large-patch16-384", "ViT-L-16-SigLIP-384", "siglip/webli_en_l16_384_63634585.npz", ("L", 16, 384), figures=(316.3, 336.2, 82.07)),
    siglip_row(15, f"{_GOOGLE}-so400m-patch14-224", "ViT-SO400M-14-SigLIP", "siglip/webli_en_so400m_224_57633886.npz", ("So400m", 14, 224), context=16, figures=(427.7, 449.7, 82.03)),
    siglip_row(16, f"{_GOOGLE}-so400m-patch14-384", "ViT-SO400M-14-SigLIP-384", "siglip/webli_en_so400m_384_58765454.npz", ("So400m", 14, 384), figures=(428.2, 449.7, 83.08)),
    siglip_row(17, f"{_GOOGLE}2-base-patch16-224", "ViT-B-16-SigLIP2", "siglip2/siglip2_b16_224.npz", ("B", 16, 224), 256_000, figures=(92.9, 282.3, 78.2)),
    siglip_row(18, f"{_GOOGLE}2-base-patch32-256", "ViT-B-32-SigLIP2-256", "siglip2/siglip2_b32_256.npz", ("B", 32, 256), 256_000, figures=(94.6, 282.3, 74.0)),
    siglip_row(19, f"{_GOOGLE}2-large-patch16-256", "ViT-L-16-SigLIP2-256", "siglip2/siglip2_l16_256.npz", ("L", 16, 256), 256_000, figures=(316.0, 565.6, 82.5)),
    siglip_row(20, f"{_GOOGLE}2-so400m-patch14-384", "ViT-SO400M-14-SigLIP2-378", "siglip2/siglip2_so400m14_384.npz", ("So400m", 14, 384), 256_000, figures=(428.2, 707.8, 84.1)),
    siglip_row(21, f"{_GOOGLE}2-so400m-patch16-384", "ViT-SO400M-16-SigLIP2-384", "siglip2/siglip2_so400m16_384.npz", ("So400m", 16, 384), 256_000, figures=(428.2, 707.8, 84.1)),
    siglip_row(22, f"{_GOOGLE}2-giant-opt-patch16-256", "ViT-gopt-16-SigLIP2-256", "siglip2/siglip2_g-opt16_256.npz", ("g-opt", 16, 256), 256_000, figures=(1163.2, 708.2, 84.5)),
    naflex_row(23, "base", ("B", 16, 256), "siglip2_b16_naflex.npz", (92.9, 282.3, 78.5)),
    dinov2_row(24, "S", 0, 22.1, 79.0),
    dinov2_row(25, "B", 0, 86.6, 82.1),
    dinov2_row(26, "L", 0, 304.4, 83.5),
    dinov2_row(27, "g/14", 0, 1136.5, 83.5),
    dinov2_row(28, "B", 4, 86.6, 82.0),
    dinov3_row(29, "vits", "08c60483", 21.6),
    dinov3_row(30, "vitb", "73cec8be", 85.6),
    dinov3_row(31, "vitl", "8aa4cbdd", 303.1),
    # Other checkpoints of the same shapes.
    clip_row(None, f"{_LAION}-L-14-laion2B-s32B-b82K", ("ViT-L-14", "laion2b_s32b_b82k"), ("L", 14, 224), _EXACT, preprocessing=clip_preprocessing(224, HALF, HALF)),
    clip_row(None, f"{_LAION}-g-14-laion2B-s34B-b88K", ("ViT-g-14", "laion2b_s34b_b88k"), ("g", 14, 224), _EXACT),
    *(clip_row(None, f"timm/vit_base_patch32_clip_224.laion400m_{e}", ("ViT-B-32", f"laion400m_{e}"), ("B", 32, 224), _QUICK) for e in ("e31", "e32")),
    *(clip_row(None, f"timm/vit_base_patch16_clip_224.laion400m_{e}", ("ViT-B-16", f"laion400m_{e}"), ("B", 16, 224), _EXACT) for e in ("e31", "e32")),
    *(clip_row(None, f"timm/vit_large_patch14_clip_224.laion400m_{e}", ("ViT-L-14", f"laion400m_{e}"), ("L", 14, 224), _EXACT) for e in ("e31", "e32")),
    clip_row(None, "apple/DFN2B-CLIP-ViT-B-16", ("ViT-B-16", "dfn2b"), ("B", 16, 224), _QUICK),
    clip_row(None, "apple/DFN2B-CLIP-ViT-L-14", ("ViT-L-14", "dfn2b"), ("L", 14, 224), _QUICK),
    clip_row(None, "apple/DFN5B-CLIP-ViT-H-14", ("ViT-H-14", "dfn5b"), ("H", 14, 224), _QUICK, preprocessing=clip_squashed(224)),
    clip_row(None, "apple/DFN5B-CLIP-ViT-H-14-378", ("ViT-H-14-378", "dfn5b"), ("H", 14, 378), _QUICK, preprocessing=clip_squashed(378)),
    clip_row(None, "facebook/metaclip-b32-400m", ("ViT-B-32", "metaclip_400m"), ("B", 32, 224), _QUICK),
    clip_row(None, "facebook/metaclip-b16-400m", ("ViT-B-16", "metaclip_400m"), ("B", 16, 224), _QUICK),
    clip_row(None, "facebook/metaclip-l14-400m", ("ViT-L-14", "metaclip_400m"), ("L", 14, 224), _QUICK),
    clip_row(None, "facebook/metaclip-b32-fullcc2.5b", ("ViT-B-32", "metaclip_fullcc"), ("B", 32, 224), _QUICK),
    clip_row(None, "facebook/metaclip-b16-fullcc2.5b", ("ViT-B-16", "metaclip_fullcc"), ("B", 16, 224), _QUICK),
    clip_row(None, "facebook/metaclip-l14-fullcc2.5b", ("ViT-L-14", "metaclip_fullcc"), ("L", 14, 224), _QUICK),
    clip_row(None, "facebook/metaclip-h14-fullcc2.5b", ("ViT-H-14", "metaclip_fullcc"), ("H", 14, 224), _QUICK),
    # The other tags of plain ViTs that open_clip lists.
    *(dataclasses.replace(row, since=NEXT) for row in (
        clip_row(None, "apple/DFN2B-CLIP-ViT-L-14-39B", ("ViT-L-14", "dfn2b_s39b"), ("L", 14, 224), _EXACT),
        clip_row(None, "timm/vit_huge_patch14_clip_224.metaclip_altogether", ("ViT-H-14", "metaclip_altogether"), ("H", 14, 224), _EXACT),
        clip_row(None, "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b", ("ViT-bigG-14", "metaclip_fullcc"), ("bigG", 14, 224), _QUICK),
        clip_row(None, f"{_LAION}-g-14-laion2B-s12B-b42K", ("ViT-g-14", "laion2b_s12b_b42k"), ("g", 14, 224), _EXACT),
        clip_row(None, "timm/vit_base_patch32_clip_224.laion2b_e16", ("ViT-B-32", "laion2b_e16"), ("B", 32, 224), _EXACT),
        clip_row(None, f"{_LAION}-B-32-256x256-DataComp-s34B-b86K", ("ViT-B-32-256", "datacomp_s34b_b86k"), ("B", 32, 256), _EXACT),
        *(clip_row(None, f"timm/vit_base_patch16_plus_clip_240.laion400m_{e}", ("ViT-B-16-plus-240", f"laion400m_{e}"), ("B+", 16, 240), _EXACT) for e in ("e31", "e32")),
        *(clip_row(None, f"{_LAION}-{model}-{title}-{scale}", (f"ViT-{model}", f"{tag}_{scale.lower().replace('-', '_')}"), shape, _EXACT)
          for model, shape, scale, size, filters in (
              ("B-32", ("B", 32, 224), "s13B-b90K", "XL", ()), ("B-32", ("B", 32, 224), "s128M-b4K", "M", _FILTERS),
              ("B-32", ("B", 32, 224), "s13M-b4K", "S", _FILTERS), ("B-16", ("B", 16, 224), "s1B-b8K", "L", _FILTERS),
              ("L-14", ("L", 14, 224), "s13B-b90K", "XL", ("", "clip", "laion")))
          for title, tag in _pools(size, filters, datacomp=model != "L-14")),
    )),
    dataclasses.replace(siglip_row(None, "timm/ViT-SO400M-14-SigLIP-378", "ViT-SO400M-14-SigLIP-378", None, ("So400m", 14, 378)), since=NEXT),
    siglip_row(None, f"{_GOOGLE}-base-patch16-256", "ViT-B-16-SigLIP-256", "siglip/webli_en_b16_256_60500360.npz", ("B", 16, 256)),
    siglip_row(None, f"{_GOOGLE}-base-patch16-512", "ViT-B-16-SigLIP-512", "siglip/webli_en_b16_512_68580893.npz", ("B", 16, 512)),
    siglip_row(None, f"{_GOOGLE}-base-patch16-256-multilingual", "ViT-B-16-SigLIP-i18n-256", "siglip/webli_i18n_b16_256_66117334.npz", ("B", 16, 256), 250_000),
    siglip_row(None, f"{_GOOGLE}-so400m-patch16-256-i18n", "ViT-SO400M-16-SigLIP-i18n-256", None, ("So400m", 16, 256), 250_000),
    *(siglip_row(None, f"{_GOOGLE}2-base-patch16-{px}", f"ViT-B-16-SigLIP2-{px}", f"siglip2/siglip2_b16_{px}.npz", ("B", 16, px), 256_000) for px in (256, 384, 512)),
    *(siglip_row(None, f"{_GOOGLE}2-large-patch16-{px}", f"ViT-L-16-SigLIP2-{px}", f"siglip2/siglip2_l16_{px}.npz", ("L", 16, px), 256_000) for px in (384, 512)),
    siglip_row(None, f"{_GOOGLE}2-so400m-patch14-224", "ViT-SO400M-14-SigLIP2", "siglip2/siglip2_so400m14_224.npz", ("So400m", 14, 224), 256_000),
    *(siglip_row(None, f"{_GOOGLE}2-so400m-patch16-{px}", f"ViT-SO400M-16-SigLIP2-{px}", f"siglip2/siglip2_so400m16_{px}.npz", ("So400m", 16, px), 256_000) for px in (256, 512)),
    siglip_row(None, f"{_GOOGLE}2-giant-opt-patch16-384", "ViT-gopt-16-SigLIP2-384", "siglip2/siglip2_g-opt16_384.npz", ("g-opt", 16, 384), 256_000),
    *(dinov2_row(None, size, 4) for size in ("S", "L", "g/14")),
    dataclasses.replace(siglip_row(None, "google/medsiglip-448", None, None, ("So400m", 14, 448)), since=NEXT),  # patch by its card
    # Plain ViTs, with their classifiers.
    *(vit_row(f"timm/vit_{word}_patch{patch}_{px}.augreg_in21k_ft_in1k", (size, patch, px), timm_preprocessing(px), count)
      for word, size, patch, px, count in (
          ("tiny", "Ti", 16, 224, 5.72), ("small", "S", 16, 224, 22.05), ("small", "S", 32, 224, 22.88), ("base", "B", 16, 224, 86.57),
          ("base", "B", 16, 384, 86.86), ("base", "B", 32, 224, 88.22), ("large", "L", 16, 224, 304.33), ("large", "L", 16, 384, 304.72))),
    *(vit_row(f"google/vit-{word}-patch{patch}-{px}", (size, patch, px), vit_preprocessing(px), count)
      for word, size, patch, px, count in (
          ("base", "B", 16, 224, 86.57), ("base", "B", 16, 384, 86.86), ("base", "B", 32, 384, 88.30), ("large", "L", 16, 224, 304.33),
          ("large", "L", 16, 384, 304.72), ("large", "L", 32, 384, 306.63))),
    *(vit_row(f"google/vit-{word}-patch{patch}-224-in21k", (size, patch, 224), vit_preprocessing(224), count, None)
      for word, size, patch, count in (("base", "B", 16, 85.80), ("base", "B", 32, 87.46), ("large", "L", 16, 303.30), ("huge", "H", 14, 630.76))),
    *(vit_row(f"facebook/deit-{word}-patch16-224", (size, 16, 224), timm_preprocessing(224, IMAGENET_MEAN, IMAGENET_STD), count, 1000,
           f"timm/deit_{word}_patch16_224.fb_in1k", f"deit_{word}_patch16_224")
      for word, size, count in (("tiny", "Ti", 5.72), ("small", "S", 22.05), ("base", "B", 86.57))),
    *(vit_row(f"timm/deit3_{word}_patch{patch}_224.fb_in1k", (size, patch, 224), timm_preprocessing(224, IMAGENET_MEAN, IMAGENET_STD), count,
           layer_scale=True)
      for word, size, patch, count in (("small", "S", 16, 22.06), ("base", "B", 16, 86.59), ("large", "L", 16, 304.37), ("huge", "H", 14, 632.13))),
    *(vit_row(f"facebook/vit-mae-{word}", (size, patch, 224), timm_preprocessing(224, IMAGENET_MEAN, IMAGENET_STD), count, None,
           f"timm/vit_{word}_patch{patch}_224.mae", f"mae_pretrain_vit_{word}", f"mae_pretrain_vit_{word}.pth")
      for word, size, patch, count in (("base", "B", 16, 85.80), ("large", "L", 16, 303.30), ("huge", "H", 14, 630.76))),
    *(vit_row(f"facebook/dino-vit{letter}{patch}", (size, patch, 224), timm_preprocessing(224, IMAGENET_MEAN, IMAGENET_STD), count, None,
           f"timm/vit_{word}_patch{patch}_224.dino", f"dino_vit{letter}{patch}", f"dino_{'deit' if letter == 's' else 'vit'}{word}{patch}_pretrain")
      for word, letter, size, patch, count in (("small", "s", "S", 16, 21.67), ("small", "s", "S", 8, 21.67), ("base", "b", "B", 16, 85.80), ("base", "b", "B", 8, 85.81))),
    # CLIPs with other texts; parameters as open_clip counts them.
    metaclip2_row("facebook/metaclip-2-worldwide-huge-quickgelu", "ViT-H-14-worldwide", ("H", 14, 224), _QUICK, (632.08, 1226.71, None)),
    metaclip2_row("facebook/metaclip-2-worldwide-huge-378", "ViT-H-14-worldwide-378", ("H", 14, 378), _EXACT, (632.69, 1226.71, None)),
    metaclip2_row("facebook/metaclip-2-worldwide-giant", "ViT-bigG-14-worldwide", ("bigG", 14, 224), _EXACT, (1844.91, 1785.5, None)),
    metaclip2_row("facebook/metaclip-2-worldwide-giant-378", "ViT-bigG-14-worldwide-378", ("bigG", 14, 378), _EXACT, (1845.69, 1785.5, None)),
    mobileclip2_row("timm/MobileCLIP2-L-14-OpenCLIP", "MobileCLIP2-L-14", ("L", 14, 224), (303.97, 123.65, None)),
    # C-RADIO; which tokens are read stands in its files (of version 4 by its report: SAM has no summary).
    radio_row(3, "B", "B", 3, 10),
    radio_row(3, "L", "L", 3, 10),
    radio_row(3, "H", "H", 3, 10),
    radio_row(4, "H", "H", 2, 10),
    radio_row(4, "SO400M", "So400m", 2, 10),
    # CLIPA; parameters and accuracy of open_clip's tables.
    clipa_row("L", 224, (303.96, 110.25, 79.6)),
    clipa_row("L", 336, (304.29, 110.25, 80.3)),
    clipa_row("H", 224, (632.07, 336.16, 81.5)),
    clipa_row("H", 336, (632.48, 336.16, 81.8)),
    clipa_row("H", 336, (632.48, 336.16, 79.1), "laion2b"),
    clipa_row("bigG", 224, (1844.9, 672.32, 82.7)),
    clipa_row("bigG", 336, (1845.44, 672.32, 83.1)),
    # Meta's Perception Encoders; parameters as its code counts them, accuracy of its README.
    pe_row("Core", ("T", 16, 384), (6.14, 63.41, 62.1), open_clip="PE-Core-T-16-384"),
    pe_row("Core", ("S", 16, 384), (23.78, 63.41, 72.7), open_clip="PE-Core-S-16-384"),
    pe_row("Core", ("B", 16, 224), (93.67, 353.99, 78.4), open_clip="PE-Core-B-16"),
    pe_row("Core", ("L", 14, 336), (317.15, 353.99, 83.5), open_clip="PE-Core-L-14-336"),
    pe_row("Core", ("G", 14, 448), (1882.03, 537.23, 85.4), open_clip="PE-Core-bigG-14-448"),
    *(pe_row("Spatial", (size, patch, px), (count, None, None), layer_scale=size == "G")
      for size, patch, px, count in (("T", 16, 512, 5.68), ("S", 16, 512, 21.98), ("B", 16, 512, 86.43), ("L", 14, 448, 303.96), ("G", 14, 448, 1851.89))),
    *(pe_row(f"Lang{tiling}", (size, 14, 448), (count, None, None), depth=depth, layer_scale=True, timm=f"fb{tiling.lower().replace('-', '_')}")
      for size, depth, count in (("L", 23, 291.42), ("G", 47, 1740.92)) for tiling in ("", "-Tiling")),
    *(Row(f"OpenGVLab/{name}", "InternViT", internvit_spec(name), image_parameters=304.01, since=NEXT)
      for name in ("InternViT-300M-448px", "InternViT-300M-448px-V2_5")),
    *(Row(f"OpenGVLab/InternViT-6B-{name}", "InternViT", internvit_spec(f"InternViT-6B-{name}", depth, px, large=True), image_parameters=count, since=NEXT)
      for name, depth, px, count in (
          ("224px", 48, 224, 5902.79), ("448px-V1-2", 45, 448, 5536.5), ("448px-V1-5", 45, 448, 5536.5), ("448px-V2_5", 45, 448, 5536.5))),
    # Apple's AIMv2; parameters as timm and transformers count them.
    *(aimv2_row(size, px, count) for size, counts in (
        ("large", (309.2, 309.53, 310.0)), ("huge", (680.85, 681.34, 682.03)), ("1B", (1234.96, 1235.61, 1236.53)), ("3B", (2720.66, 2721.64, 2723.02)))
      for px, count in zip((224, 336, 448), counts, strict=True)),
    *(aimv2_row("large", px, count, "-distilled") for px, count in ((224, 309.2), (336, 309.53))),
    aimv2_row("large", 224, 313.13, "-lit"),
    # Google's TIPS; parameters as its code counts them (of version 2 its table repeats those of version 1).
    *(tips_row(f"google/tipsv2-{name}", f"tips_v2_{name}", size, 448, 32, count, texts)
      for name, size, count, texts in (
          ("b14", "B", 86.3, 109.63), ("l14", "L", 303.97, 183.92), ("so400m14", "So400m", 413.33, 448.3), ("g14", "g/14", 1135.83, 389.13))),
    *(tips_row(f"tips_oss_{name}", f"tips_oss_{name}", size, px, 16, count, texts)
      for name, size, px, count, texts in (
          ("s14_highres_distilled", "S", 448, 21.62, 33.58), ("b14_highres_distilled", "B", 448, 85.71, 109.63),
          ("l14_highres_distilled", "L", 448, 303.18, 183.92), ("so400m14_highres_largetext_distilled", "So400m", 448, 412.44, 448.3),
          ("g14_highres", "g/14", 448, 1134.65, 389.13), ("g14_lowres", "g/14", 224, 1134.65, 389.13))),
    eva_row(("EVA02-B-16", "merged2b_s8b_b131k"), (16, 224), (86.26, 63.43, 74.72)),
    eva_row(("EVA02-L-14", "merged2b_s4b_b131k"), (14, 224), (304.11, 123.65, 79.77)),
    eva_row(("EVA02-L-14-336", "merged2b_s6b_b61k"), (14, 336), (304.43, 123.65, 80.39)),
    dinotxt_row(),
    # Towers of vision-language models.
    *(tower_row("Gemma 3 tower", f"google/{name}", 416.9, ("So400m", 14, 896))
      for name in ("gemma-3-4b-it", "gemma-3-4b-pt", "gemma-3-12b-it", "gemma-3-12b-pt", "gemma-3-27b-it", "gemma-3-27b-pt",
                   "medgemma-4b-it", "medgemma-4b-pt", "medgemma-27b-it")),
    *(tower_row("PaliGemma tower", f"google/{name}-pt-{px}", count, ("So400m", 14, px), "bicubic")
      for name in ("paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b") for px, count in ((224, 412.4), (448, 413.3), (896, 416.9))),
    *(tower_row("LLaVA 1.5 tower", f"llava-hf/llava-1.5-{size}-hf", 290.9) for size in ("7b", "13b")),
    *(tower_row("LLaVA 1.6 tower", f"llava-hf/llava-v1.6-{size}-hf", 290.9) for size in ("mistral-7b", "vicuna-7b", "vicuna-13b", "34b")),
    *(tower_row("SmolVLM tower", f"HuggingFaceTB/SmolVLM-{size}-Instruct", 86.4, ("B", 16, 512), "lanczos") for size in ("256M", "500M")),
    *(Row(f"Qwen/Qwen3-VL-{name}-{kind}", "Qwen3-VL tower", qwen_spec(f"Qwen3-VL-{name}-{kind}", size), image_parameters=count, since=NEXT)
      for name, size, count in (("2B", "L", 305.46), ("4B", "L", 305.46), ("8B", "So400m", 415.01), ("30B-A3B", "So400m", 415.01), ("32B", "So400m", 415.01))
      for kind in ("Instruct", "Thinking")),
    *(Row(f"OpenGVLab/InternVL3-{size}-hf", "InternVL tower", internvit_spec(f"InternVL3-{size}-hf", 45, 448, large, squashed=True), image_parameters=5536.5 if large else 304.01, since=NEXT)
      for size, large in (("1B", False), ("2B", False), ("8B", False), ("14B", False), ("38B", True), ("78B", True))),
    tower_row("SmolVLM tower", "HuggingFaceTB/SmolVLM-Instruct", 413.0, ("So400m", 14, 384), "lanczos"),
    tower_row("Idefics 3 tower", "HuggingFaceM4/Idefics3-8B-Llama3", 412.9, ("So400m", 14, 364), "lanczos"),
    naflex_row(None, "so400m", ("So400m", 16, 256), "siglip2_so400m16_naflex.npz", (427.9, 707.8, 83.5)),
    *(unsupported_row(huggingface, family, reason, others) for family, (reason, huggingface, others) in UNSUPPORTED.items()),
    dinov3_row(None, "vitsplus", "4057cbaa", 28.7),
    dinov3_row(None, "vitlplus", "46503df0"),
    dinov3_row(None, "vithplus", "7c1da9a5", 840.5),
    dinov3_row(None, "vit7b", "a955f4ea", 6716.0),
    dinov3_row(None, "vitl", "eadcf0ff", 303.1, "sat493m"),
    dinov3_row(None, "vit7b", "a6675841", 6716.0, "sat493m"),
)
# fmt: on


def _names() -> Iterator[tuple[str, Row]]:
    for row in ROWS:
        for name in row.names:
            yield name.lower(), row


_BY_NAME: dict[str, Row] = dict(_names())
_OWNERS = {row.huggingface.split("/")[0] for row in ROWS}


def repositories(name: str) -> list[str]:
    """The hub's repositories that may hold what `name` names: its own, if it is a hub id, then that of its row."""
    row, (owner, slash, _) = find(name), name.partition("/")
    own = [name] if slash and (row is None or owner in _OWNERS) else []
    return list(dict.fromkeys([*own, row.huggingface] if row is not None else own))


def containing(words: Iterable[str]) -> list[Row]:
    """The rows in whose family or names every word occurs, whatever the case."""
    return [row for row in ROWS if all(word.lower() in " ".join((row.family, *row.names)).lower() for word in words)]


def find(name: str) -> Row | None:
    """The row of any of its names, whatever the case; None if there is none."""
    return _BY_NAME.get(name.strip().lower())


def nearest(name: str, count: int = 3) -> list[str]:
    """The known names most like `name`, one a row, as a user would type them."""
    close = difflib.get_close_matches(name.strip().lower(), _BY_NAME, n=4 * count, cutoff=0.5)
    return list(dict.fromkeys(_BY_NAME[match].huggingface for match in close))[:count]


def get(name: str) -> Row:
    """The row of a name. Raises UserError with the nearest names, or with why this encoder cannot be built."""
    row = find(name)
    if row is None:
        close = nearest(name)
        hint = f"did you mean {' or '.join(close)}?" if close else "`regcache models` lists the known ones"
        raise UserError(f"no encoder is called {name!r}; {hint}")
    if row.spec is None:
        raise UserError(f"{row.huggingface} is not supported yet: {row.reason}")
    return row
