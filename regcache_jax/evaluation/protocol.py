"""Zero-shot protocols: whose words, how they are cleaned, and which part of a picture is seen.

open_clip's is CLIP_benchmark's and the paper's. big_vision's differs in three things: class names (the first alias of each) and
templates lose their punctuation and capitals before they are put together, the bare name is a template more, and a picture is
squashed to 1/0.875 of the side, without antialiasing, of which the middle is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from regcache_jax.core.spec import Preprocessing
from regcache_jax.data.dataset import Dataset
from regcache_jax.data.prompts import Words, class_names, templates
from regcache_jax.encoders.preprocess import preprocess


class Prompts(NamedTuple):
    """Names of the classes and templates with `{c}` for the name, as a protocol has them, and where they are from."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    sources: tuple[str, str]

    def dump(self, classnames: bool, templates: bool) -> dict[str, list[str]]:
        """What CLIP_benchmark's `--dump_classnames` and `--dump_templates` add to a result, under its keys."""
        dumped = {"classnames": list(self.classnames)} if classnames else {}
        return {**dumped, "templates": list(self.templates)} if templates else dumped


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol by what it does to words and pictures. `image`: in a word, for those who depend on it."""

    name: str
    image: Literal["checkpoint", "squash875"]
    clean_names: Callable[[tuple[str, ...]], tuple[str, ...]]
    clean_templates: Callable[[Words], tuple[str, ...]]

    def preprocessing(self, own: Preprocessing) -> Preprocessing:
        """How pictures become arrays, for a checkpoint whose `own` way it is. Mean and deviation are always the checkpoint's."""
        if self.image == "checkpoint" or own.max_patches is not None:  # a sheet is made in one way
            return own
        return dataclasses.replace(own, resize="squash", filter="bilinear_tf", resize_size=int(own.image_size / 0.875))

    def preprocess(self, own: Preprocessing) -> Callable[[Any], np.ndarray]:
        """The same as a function of a picture."""
        return functools.partial(preprocess, spec=self.preprocessing(own))

    def prompts(self, dataset: Dataset, classnames: str | None = None, templates_file: str | None = None) -> Prompts:
        """The words for a dataset, from the user's files where given. Raises UserError where there are none."""
        names, prompts = class_names(dataset, classnames), templates(dataset, templates_file)
        return Prompts(self.clean_names(names.texts), self.clean_templates(prompts), (names.source, prompts.source))

    def sentence(self, prompts: Prompts, own: Preprocessing) -> str:
        """The protocol in force, in one line."""
        seen = self.preprocessing(own)
        if seen.max_patches is not None:
            pictures = f"at most {seen.max_patches} patches of {seen.patch_size} px, {seen.filter}"
        else:
            whole = seen.resize_size == seen.image_size and seen.resize == "squash"
            crop = "" if whole else f", middle {seen.image_size}"
            pictures = f"{seen.resize} to {seen.resize_size}, {seen.filter}{crop}"
        return (
            f"protocol {self.name}: {len(prompts.classnames)} class names ({prompts.sources[0]}), {len(prompts.templates)} "
            f"templates ({prompts.sources[1]}); pictures: {pictures}"
        )


def canonical(text: str, keep: str) -> str:
    """Lower case, underscores as spaces, no punctuation but the exact string `keep`, single spaces."""
    drop = str.maketrans("", "", string.punctuation)
    parts = (part.translate(drop) for part in text.replace("_", " ").split(keep))
    return re.sub(r"\s+", " ", keep.join(parts).lower()).strip()


def _first_aliases(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(canonical(name, ",").split(",")[0] for name in names)


def _with_bare_name(words: Words) -> tuple[str, ...]:
    """big_vision's 81 are OpenAI's 80 and the bare name; templates that a user or a dataset gives are taken as they are."""
    texts = (*words.texts, "{c}") if words.published else words.texts
    return tuple(canonical(text, "{c}") for text in texts)


PROTOCOLS = {
    "open_clip": Protocol("open_clip", "checkpoint", lambda names: names, lambda words: words.texts),
    "big_vision": Protocol("big_vision", "squash875", _first_aliases, _with_bare_name),
}
