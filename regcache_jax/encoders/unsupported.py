"""Encoders that are known and cannot be built: what is missing, said in one line by whatever name they are asked for."""

from __future__ import annotations

UNSUPPORTED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "EVA-02": (
        "the norms of E/14 stand behind attention and MLP, not before them; B/16 and L/14 are supported",
        "timm/eva02_enormous_patch14_clip_224",
        (
            "open_clip:EVA02-E-14,laion2b_s4b_b115k",
            "open_clip:EVA02-E-14-plus,laion2b_s9b_b144k",
        ),
    ),
    "AIMv2": (
        "its pictures may have any size, and its positions are sinusoids of them; the others are supported",
        "apple/aimv2-large-patch14-native",
        (),
    ),
    "C-RADIO": (
        "its MLP is gated, and what lies where is not known; B, L, H and So400m are supported",
        "nvidia/C-RADIOv3-g",
        ("c-radio_v3-g",),
    ),
    "CoCa": (
        "its pictures are pooled by attention with many queries, its texts by a token of their own",
        "laion/CoCa-ViT-L-14-laion2B-s13B-b90k",
        (
            "open_clip:coca_ViT-L-14,laion2b_s13b_b90k",
            "laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
            "open_clip:coca_ViT-B-32,laion2b_s13b_b90k",
        ),
    ),
    "MobileCLIP": (
        "its image tower is FastViT's, or begins with convolutions",
        "apple/MobileCLIP-B",
        (
            *(f"apple/MobileCLIP-{size}" for size in ("S0", "S1", "S2", "B-LT")),
            *(f"open_clip:MobileCLIP-{size},datacompdr" for size in ("S1", "S2", "B")),
            "open_clip:MobileCLIP-B,datacompdr_lt",
        ),
    ),
    "ViTamin": (
        "its image tower begins with convolutions",
        "jienengchen/ViTamin-L-224px",
        tuple(
            f"open_clip:ViTamin-{size},datacomp1b"
            for size in ("S", "S-LTT", "B", "B-LTT", "L", "L-256", "L-336", "L2", "XL-256")
        ),
    ),
    "ConvNeXt CLIP": (
        "its image tower is a ConvNeXt, which has no attention",
        "laion/CLIP-convnext_base_w-laion2B-s13B-b82K",
        (
            "laion/CLIP-convnext_large_d.laion2B-s26B-b102K-augreg",
            "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg",
            "open_clip:convnext_base_w,laion2b_s13b_b82k",
            "open_clip:convnext_large_d,laion2b_s26b_b102k_augreg",
            "open_clip:convnext_xxlarge,laion2b_s34b_b82k_augreg",
        ),
    ),
    "Gemma 4 tower": (
        "its blocks have norms before and behind attention and MLP, its values are normed too, its positions are a table an axis",
        "google/gemma-4-E4B-it",
        (
            *(f"google/gemma-4-{size}-it" for size in ("E2B", "26B-A4B", "31B")),
            "timm/gemma4_vit_167m_enc.gemma4_e4b_it",
            "timm/gemma4_vit_570m_enc.gemma4_31b_it",
        ),
    ),
    "MobileCLIP 2": (
        "its image tower begins with convolutions; of MobileCLIP2 L/14 is a plain ViT",
        "timm/MobileCLIP2-S4-OpenCLIP",
        (
            *(f"timm/MobileCLIP2-{size}-OpenCLIP" for size in ("S0", "S2", "S3", "B")),
            *(f"open_clip:MobileCLIP2-{size},dfndr2b" for size in ("S0", "S2", "S3", "S4", "B")),
        ),
    ),
}
"""Family -> what is missing, a repository, other names."""
