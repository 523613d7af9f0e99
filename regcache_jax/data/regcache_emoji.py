"""The bundled pictures as a TFDS dataset, `regcache_emoji`: how any dataset of one's own gets into TFDS without TensorFlow.

RegcacheEmoji(data_dir=DIR, file_format="array_record").download_and_prepare()
"""

from __future__ import annotations

import io
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from regcache_jax.data import emoji


class RegcacheEmoji(tfds.core.GeneratorBasedBuilder):
    """The bundled pictures as a TFDS dataset, so that the TFDS way is used end to end without a download."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="204 emoji concepts by three vendors, four renderings each.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(emoji.SIDE, emoji.SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(emoji.class_names())),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in emoji.SPLITS}

    def _generate_examples(self, split: str) -> Any:
        for index, (vendor, concept, rendering) in enumerate(emoji.pictures(split)):
            encoded = io.BytesIO()  # TFDS would need TensorFlow to encode pixels
            Image.fromarray(emoji.render(vendor, concept, rendering)).save(encoded, format="png")
            yield index, {"image": encoded.getvalue(), "label": concept}
