"""What the ImageNet configs share: data, protocol, rows and effort.

For an encoder without a config of its own: `regcache run --config imagenet --config.model=MODEL --workdir DIR`.
ImageNet is read as TFDS keeps it (`tfds build imagenet2012 --file_format=array_record`, or classic TFRecord files); another copy is
read with `--config.evaluation.dataset=folder --config.evaluation.data_dir=DIR --config.evaluation.split=` and so on. Class names and
the 80 templates are open_clip's, read from an installed `open_clip_torch`. Reference pictures give the registers and score the
search, calibration pictures give the scales; both are from the training split, so that neither sees the table's pictures.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from regcache_jax.configs import demo


def get_config() -> ConfigDict:
    """The demo's fields with ImageNet's values; `model` and `expected_acc1` are left for each encoder's own config."""
    config = demo.get_config()
    config.model = ""
    config.expected_acc1 = 0.0  # none: no check of the float accuracy

    config.reference = ConfigDict({"dataset": "imagenet2012", "data_dir": "", "split": "train", "limit": 1024})
    config.calibration = ConfigDict({"dataset": "imagenet2012", "data_dir": "", "split": "train", "limit": 1024})
    config.evaluation = ConfigDict({"dataset": "imagenet2012", "data_dir": "", "split": "validation", "limit": 0})
    config.bank = ConfigDict({"dataset": "imagenet2012", "data_dir": "", "split": "train", "limit": 0})

    config.rows = (
        "plain", "registers", "prefix-only", "delete-only", "group", "group+registers", "percentile", "percentile+registers",
        "smoothquant", "strong", "token",
    )  # fmt: skip
    config.search.align = 8  # deletion leaves whole tiles of a TPU's registers
    config.batch_size = 256
    return config
