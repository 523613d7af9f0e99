from __future__ import annotations

import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.encoders import catalog
from regcache_jax.encoders.parameters import count_parameters, parameter_table

NUMBERED = [row for row in catalog.ROWS if row.number is not None]
COUNTED = [row for row in catalog.ROWS if row.spec is not None and row.image_parameters is not None]


def test_rows_1_to_31_are_there_once_and_in_order():
    assert [row.number for row in NUMBERED] == list(range(1, 32))


def test_every_numbered_row_that_can_be_built_has_a_published_count():
    assert {row.number for row in NUMBERED if row.spec is not None} <= {row.number for row in COUNTED}


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: row.huggingface)
def test_a_row_at_full_size_has_as_many_parameters_as_published(row):
    """Of the image tower, a classifier included where there is one, and of the text tower."""
    table = parameter_table(row.spec)
    text = count_parameters(table.pop("text")) if row.spec.text is not None else None
    own = count_parameters({name: part for name, part in table.items() if not name.startswith("logit_")})
    assert own / 1e6 == pytest.approx(row.image_parameters, abs=0.1)
    if text is not None:
        assert text / 1e6 == pytest.approx(row.text_parameters, abs=0.1)


def test_what_came_later_says_since_when():
    later = [
        row
        for row in catalog.ROWS
        if row.supported
        and (
            row.family.endswith(("tower", "CLIP 2", "EVA-02"))
            or row.spec.family in ("dinov3", "vit", "pe", "tips", "aimv2")
        )
    ]
    assert later and {(row.supported, row.since) for row in later} == {(True, "0.2.0")}


def test_a_tower_is_the_published_encoder_without_what_no_language_model_reads():
    """Gemma 3's report counts 417 M; the others are rows 4, 16 and 12 of the table without head, last block, norm or projection."""

    def parameters(name: str) -> dict:
        return parameter_table(catalog.get(name).spec)["image"]

    assert count_parameters(parameters("google/gemma-3-4b-it")) / 1e6 == pytest.approx(417, abs=0.5)
    siglip, smol = parameters("google/siglip-so400m-patch14-384"), parameters("HuggingFaceTB/SmolVLM-Instruct")
    assert count_parameters(siglip) - count_parameters(siglip.pop("head")) == count_parameters(smol)
    clip, llava = parameters("openai/clip-vit-large-patch14-336"), parameters("llava-hf/llava-1.5-7b-hf")
    block = count_parameters(clip["blocks"]) // 24
    left_out = block + count_parameters(clip["final_norm"]) + count_parameters(clip["projection"])
    assert count_parameters(clip) - left_out == count_parameters(llava)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("ViT-B-16-plus-240,laion400m_e32", 208.38), ("ViT-B-32-256,datacomp_s34b_b86k", 151.29)],
)
def test_shapes_that_only_open_clip_lists_have_the_parameters_of_its_table(name, millions):
    assert count_parameters(parameter_table(catalog.get(name).spec)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_pools_filter_and_scale_are_a_tag():
    row = catalog.get("open_clip:ViT-B-16,commonpool_l_clip_s1b_b8k")
    assert row.huggingface == "laion/CLIP-ViT-B-16-CommonPool.L.clip-s1B-b8K"
    assert row.spec.image.blocks.activation == "gelu"


def test_words_choose_among_families_and_names():
    assert {row.family for row in catalog.containing(["google/gemma-3"])} == {"Gemma 3 tower"}
    assert [row.huggingface for row in catalog.containing(["LLAVA", "13b", "1.5"])] == ["llava-hf/llava-1.5-13b-hf"]
    assert catalog.containing([]) == list(catalog.ROWS) and catalog.containing(["qqqq"]) == []


@pytest.mark.parametrize(
    ("number", "tokens", "out"),
    [
        (1, 50, 512),
        (4, 577, 768),
        (10, 257, 1280),
        (11, 196, 768),
        (16, 729, 1152),
        (18, 64, 768),
        (24, 257, 384),
        (28, 261, 768),
        (30, 201, 768),
    ],
)
def test_tokens_and_feature_sizes_are_those_of_the_published_table(number, tokens, out):
    image = NUMBERED[number - 1].spec.image
    assert (image.num_tokens, image.feature_dim) == (tokens, out)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("openai/clip-vit-base-patch16", 2),
        ("open_clip:ViT-B-16,openai", 2),
        ("open_clip:ViT-B-16-quickgelu,openai", 2),
        ("VIT-B-16/LAION2B_S34B_B88K", 6),
        ("SigLIP B/16 224", 11),
        ("gs://big_vision/siglip/webli_en_so400m_384_58765454.npz", 16),
        ("siglip2_g-opt16_256.npz", 22),
        ("dinov2_vitb14", 25),
        ("dinov2_vitb14_reg", 28),
        ("vit_base_patch14_reg4_dinov2.lvd142m", 28),
        ("dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth", 31),
        ("timm/vit_base_patch16_dinov3_qkvb.lvd1689m", 30),
    ],
)
def test_every_kind_of_name_finds_its_row(name, number):
    assert catalog.get(name).number == number


def test_no_two_rows_answer_to_the_same_name():
    names = [name.lower() for row in catalog.ROWS for name in set(row.names)]
    assert len(names) == len(set(names))


def test_the_activation_belongs_to_the_tag():
    tags = ("openai", "dfn2b", "datacomp_xl_s13b_b90k")
    activations = {tag: catalog.get(f"open_clip:ViT-B-16,{tag}").spec.image.blocks.activation for tag in tags}
    assert activations == {"openai": "quick_gelu", "dfn2b": "quick_gelu", "datacomp_xl_s13b_b90k": "gelu"}


def test_a_misspelt_name_gets_the_nearest_ones():
    with pytest.raises(UserError, match="did you mean openai/clip-vit-base-patch16"):
        catalog.get("openai/clip-vit-base-pach16")
    with pytest.raises(UserError, match="`regcache models` lists the known ones"):
        catalog.get("qqqqqqqq")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("open_clip:EVA02-E-14-plus,laion2b_s9b_b144k", "not before them"),
        ("apple/aimv2-large-patch14-native", "may have any size"),
        ("google/gemma-4-E2B-it", "before and behind"),
        ("open_clip:ViTamin-L-336,datacomp1b", "begins with convolutions"),
        ("open_clip:convnext_base_w,laion2b_s13b_b82k", "no attention"),
        ("apple/MobileCLIP-S1", "FastViT"),
        ("nvidia/C-RADIOv3-g", "is gated"),
        ("timm/MobileCLIP2-S0-OpenCLIP", "begins with convolutions"),
    ],
)
def test_encoders_that_cannot_be_built_are_refused_in_one_line_that_says_what_is_missing(name, missing):
    with pytest.raises(UserError, match=f"is not supported yet: .*{missing}") as error:
        catalog.get(name)
    assert "\n" not in str(error.value)
