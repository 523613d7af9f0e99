"""Specs: what they say of shapes, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest
import small

from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders import catalog

CATALOG = [row.spec for row in catalog.ROWS if row.spec is not None]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*small.SPECS.values(), *CATALOG], ids=lambda spec: spec.name)
def test_a_spec_survives_json(spec):
    assert EncoderSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("kind", small.KINDS)
def test_tokens_are_class_token_trained_registers_and_patches(kind):
    image = small.SPECS[kind].image
    protected = {
        "clip": (1, 0),
        "siglip": (0, 0),
        "dinov2": (1, 2),
        "dinov2-swiglu": (1, 0),
        "dinov3": (1, 2),
        "no biases": (0, 0),
        "rms": (0, 0),
        "inner norms": (1, 0),
    }[kind]
    assert image.protected == protected and image.num_tokens == sum(protected) + 16


def test_pixels_that_fill_no_patch_are_dropped():
    assert ImageSpec(384, 14, small.SPECS["siglip"].image.blocks, class_token=False, pooling="map").num_tokens == 27**2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), 7, "spec.name must be str, got 7"),
        (
            ("family",),
            "vgg",
            "spec.family must be one of clip, siglip, dinov2, dinov3, vit, pe, tips, aimv2, got 'vgg'",
        ),
        (("image", "image_size"), "224", "spec.image.image_size must be int, got '224'"),
        (("image", "image_size"), True, "spec.image.image_size must be int, got True"),
        (("image", "class_token"), 1, "spec.image.class_token must be bool, got 1"),
        (("image", "projection"), 1.5, "spec.image.projection must be int or null, got 1.5"),
        (("image", "blocks", "norm_eps"), None, "spec.image.blocks.norm_eps must be float, got None"),
        (("image", "blocks"), [1], "spec.image.blocks must be a JSON object, got list"),
        (("image",), None, "spec.image must be a JSON object, got NoneType"),
        (("preprocessing", "mean"), [0.5, 0.5], r"spec.preprocessing.mean must be 3 x float, got \[0.5, 0.5\]"),
        (("image", "blocks", "norm_eps"), 0.0, r"spec.image.blocks: norm_eps must be between 0 and 1, got 0.0"),
        (("image", "blocks", "norm_eps"), float("nan"), "norm_eps must be between 0 and 1, got nan"),
        (("image", "blocks", "width"), 10**9, "spec.image.blocks: width must be 1..65536, got 1000000000"),
        (("image", "blocks", "num_heads"), 0, "num_heads must be 1..1024, got 0"),
        (("image", "blocks", "num_heads"), 5, "width must be a multiple of num_heads, got 24 and 5"),
        (("image", "patch_size"), 33, "spec.image: patch_size must be 1..16, got 33"),
        (("image", "num_registers"), -1, "trained_registers must be 0..1024, got -1"),
        (("text", "eot_id"), 50, "spec.text: eot_id must be 0..49, got 50"),
        (("preprocessing", "std"), [0.5, 0.5, 0.0], "spec.preprocessing: std must be 1e-06..1000.0"),
        (
            ("preprocessing", "mean"),
            [0.5, 0.5, float("inf")],
            "spec.preprocessing: mean must be within -1000.0..1000.0",
        ),
        (("name",), "a\x1b[31m", r"spec: name must be 1..300 printable characters, got 'a\\x1b\[31m'"),
        (("image", "colour"), "red", r"spec.image has unknown fields \['colour'\]"),
    ],
)
def test_the_first_field_that_is_wrong_is_named(path, value, message):
    tree = json.loads(json.dumps(small.SPECS["clip with text"].to_json()))
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        EncoderSpec.from_json(tree)


def test_a_missing_field_is_named_and_one_with_a_default_may_be_missing():
    tree = small.SPECS["clip with text"].to_json()
    del tree["image"]["patch_bias"], tree["image"]["num_registers"], tree["tokenization"]
    assert EncoderSpec.from_json(tree).image.patch_bias
    del tree["image"]["patch_size"]
    with pytest.raises(ValueError, match=r"spec.image has unknown fields \[\] and lacks \['patch_size'\]"):
        EncoderSpec.from_json(tree)


def test_whole_numbers_are_floats_too_where_json_dropped_the_point():
    tree = small.SPECS["clip with text"].to_json()
    tree["preprocessing"]["mean"] = [0, 0, 0]
    assert EncoderSpec.from_json(tree).preprocessing.mean == (0.0, 0.0, 0.0)


def test_what_0_1_0_could_not_say_stands_in_json_only_where_it_is_said():
    old, new = (small.SPECS[kind].to_json()["image"] for kind in ("dinov2", "dinov3"))
    assert "position_table" not in old and not {"rotary", "qkv_bias"} & set(old["blocks"])
    assert (
        new["position_table"] is False
        and new["blocks"]["qkv_bias"] == "qv"
        and new["blocks"]["rotary"]["base"] == 100.0
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base": 1.0}, "the base of rotary positions must be above 1"),
        ({"base": float("nan")}, "the base of rotary positions must be above 1"),
        ({"offset": -1}, "offset must be 0..1024, got -1"),
        ({"layout": "thirds"}, "spec.image.blocks.rotary.layout must be one of half, interleaved, got 'thirds'"),
    ],
)
def test_rotary_positions_that_there_are_not_are_named(changed, said):
    tree = small.SPECS["dinov3"].to_json()
    tree["image"]["blocks"]["rotary"] |= changed
    with pytest.raises(ValueError, match=said):
        EncoderSpec.from_json(tree)
