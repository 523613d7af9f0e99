"""Zero-shot protocols: words and pictures as open_clip and big_vision prepare them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import CLIP_MEAN, CLIP_STD, Preprocessing
from regcache_jax.data import Dataset, open_dataset
from regcache_jax.data.prompts import OWN_TEMPLATES, class_names, templates
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.evaluation.protocol import PROTOCOLS, canonical

CLIP = Preprocessing(224, "shortest", "bicubic", 224, CLIP_MEAN, CLIP_STD)
EMOJI = open_dataset("emoji", limit=1)


def named(name: str, classnames: tuple[str, ...] | None = None) -> Dataset:
    return Dataset(name, "test", 0, lambda index: None, classnames)


@pytest.fixture
def open_clip(tmp_path, monkeypatch):
    """A package laid out as open_clip_torch, whose import fails: it must be read, not run."""
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    names = [f"Thing, {number}" for number in range(1000)]
    names[:3] = ["tench", "Kite (bird_of prey), hawk", "goldfish"]
    (package / "zero_shot_metadata.py").write_text(
        f"IMAGENET_CLASSNAMES = {names!r}\n"
        "OPENAI_IMAGENET_TEMPLATES = (\n    lambda c: f'a bad photo of a {c}.',\n    lambda c: f'a {c} in a close-up.',\n)\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    return package / "zero_shot_metadata.py"


def test_open_clips_protocol_takes_words_and_pictures_as_they_are(open_clip):
    prompts = PROTOCOLS["open_clip"].prompts(named("imagenet1k"))
    assert prompts.classnames[:2] == ("tench", "Kite (bird_of prey), hawk") and len(prompts.classnames) == 1000
    assert prompts.templates == ("a bad photo of a {c}.", "a {c} in a close-up.")
    assert PROTOCOLS["open_clip"].preprocessing(CLIP) == CLIP
    said = PROTOCOLS["open_clip"].sentence(prompts, CLIP)
    assert "1000 class names (open_clip_torch), 2 templates (open_clip_torch)" in said and "shortest to 224" in said


def test_big_visions_protocol_cleans_words_takes_first_aliases_and_adds_the_bare_name(open_clip):
    prompts = PROTOCOLS["big_vision"].prompts(named("imagenet2012"))
    assert prompts.classnames[:4] == ("tench", "kite bird of prey", "goldfish", "thing")
    assert prompts.templates == ("a bad photo of a {c}", "a {c} in a closeup", "{c}")
    said = PROTOCOLS["big_vision"].sentence(prompts, CLIP)
    assert "3 templates" in said and "squash to 256, bilinear_tf, middle 224" in said


def test_templates_that_a_user_or_a_dataset_gives_are_cleaned_and_none_is_added():
    assert PROTOCOLS["big_vision"].prompts(EMOJI).templates == tuple(EMOJI.templates)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A  photo of {c}!", "a photo of {c}"), ("{}_{c}{", "{c}"), (" Gila_Monster ", "gila monster"), ("", "")],
)
def test_canonical_text_keeps_the_exact_string_and_no_other_punctuation(text, expected):
    assert canonical(text, "{c}") == expected


def test_big_visions_picture_is_the_middle_of_one_that_was_squashed_to_eight_sevenths():
    """A picture with a frame: squashed to 256, of which the middle 224 has lost a sixteenth on each side."""
    pixels = np.zeros((512, 1024, 3), np.uint8)
    pixels[32:-32, 64:-64] = 255
    seen = preprocess(Image.fromarray(pixels), PROTOCOLS["big_vision"].preprocessing(CLIP))
    white = (1 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(seen[0, 0], white, rtol=1e-5)  # float32
    np.testing.assert_allclose(seen[-1, -1], white, rtol=1e-5)
    pixels[32:36, 64:72] = 0  # two rows and columns of the squashed picture, at the crop's corner
    assert preprocess(Image.fromarray(pixels), PROTOCOLS["big_vision"].preprocessing(CLIP))[0, 0].max() < 0


def test_classes_called_by_wordnet_numbers_get_imagenets_names(open_clip):
    """As in a folder of ImageNet, or in part of one."""
    folder = named("folder", ("n01443537", "n01440764"))
    assert class_names(folder) == (("Kite (bird_of prey), hawk", "tench"), "open_clip_torch")
    assert templates(folder).published
    assert class_names(named("wds/imagenet1k")).texts[0] == "tench"


def test_an_own_prompt_set_stands_in_where_nothing_is_known():
    assert templates(named("folder", ("cat",))) == (OWN_TEMPLATES, "regcache_jax")
    assert class_names(named("folder", ("sea_lion",))) == (("sea lion",), "dataset")


def test_a_file_for_many_datasets_is_asked_by_any_of_a_datasets_names(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"pets": ["a {c}, a pet"], "cifar10": ["a blurry {c}"]}))
    for name in ("pets", "wds/pets", "tfds/pets", "oxford_iiit_pet"):
        assert templates(named(name), str(file)).texts == ("a {c}, a pet",)
    with pytest.raises(UserError, match="no entry 'vtab/dtd'"):
        templates(named("vtab/dtd"), str(file))


def test_a_file_that_names_another_number_of_classes_is_refused(tmp_path):
    file = tmp_path / "names.json"
    file.write_text(json.dumps(["cat", "dog", "cow"]))
    with pytest.raises(UserError, match="names 3 classes, folder has 2"):
        class_names(named("folder", ("a", "b")), str(file))


@pytest.mark.parametrize("broken", ["IMAGENET_CLASSNAMES = [1 +", "OTHER = ['cat']", "IMAGENET_CLASSNAMES = load()"])
def test_an_open_clip_that_cannot_be_read_is_named_with_what_to_do(open_clip, broken):
    open_clip.write_text(broken)
    with pytest.raises(
        UserError, match=r"zero_shot_metadata.py of open_clip_torch .*give --classnames and --templates"
    ):
        class_names(named("imagenet1k"))
