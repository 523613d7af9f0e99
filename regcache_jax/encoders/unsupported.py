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
        "it crops its table of positions, has several class tokens and normalises pictures by itself",
        "nvidia/C-RADIOv3-B",
        (
            "nvidia/C-RADIOv3-L",
            "nvidia/C-RADIOv3-H",
            "nvidia/C-RADIOv3-g",
            "nvidia/C-RADIOv4-H",
            "nvidia/C-RADIOv4-SO400M",
        ),
    ),
    "CLIPA": (
        "its pictures are pooled by the mean before the final norm, its texts at the last place, by BERT's words",
        "UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B",
        tuple(f"open_clip:ViT-{size}-14-CLIPA{px},datacomp1b" for size in ("L", "H", "bigG") for px in ("", "-336")),
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
