"""The demo: the bundled encoder at W8A8, W6A6 and W4A4, with its registers and the simple rivals.

Float accuracy to expect: 87.0 % top-1 on the 816 Twemoji pictures, which no training, calibration or search has seen.
About four minutes on two CPU cores. `regcache demo` runs this.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of a config, with the demo's values; other configs change some of them."""
    config = ConfigDict()
    config.model = "bundled"  # a model folder, or anything that `regcache convert` takes
    config.expected_acc1 = 0.870  # of the float encoder; within 0.3 points, or the quantised rows are marked invalid

    config.reference = ConfigDict({"dataset": "emoji", "data_dir": "", "split": "train", "limit": 256})
    config.calibration = ConfigDict({"dataset": "emoji", "data_dir": "", "split": "train", "limit": 512})
    config.evaluation = ConfigDict({"dataset": "emoji", "data_dir": "", "split": "test", "limit": 0})  # 0: all
    config.task = "zeroshot_classification"  # or knn: neighbours in the bank vote
    config.protocol = "open_clip"  # or big_vision: whose words, cleaning and crop
    config.bank = ConfigDict({"dataset": "emoji", "data_dir": "", "split": "train", "limit": 0})  # read by knn alone
    config.neighbours, config.temperature = 20, 0.07
    config.classnames = ""  # JSON files, where the dataset does not know its own
    config.templates = ""

    config.schemes = ("w8a8", "w6a6", "w4a4")
    config.weights = "channel"
    config.rows = (
        "plain",
        "registers",
        "prefix-only",
        "delete-only",
        "percentile",
        "strong",
        "token",
    )  # keys of pipeline.KINDS
    config.auto = ""  # a model folder of `quantize --auto`: its patches stand in the page beside those of plain rounding and registers
    config.cost = "model"  # of operations; or a TPU (v5e:2x2, say), whose compiler is asked for cycles (extra `tpu`)

    config.search = ConfigDict({"chunk": 64, "align": 0, "max_trials": 0, "max_minutes": 0.0})  # 0: no limit
    config.batch_size = 68
    config.micro_batch = 0  # rows that a device works on at a time; 0: what its on-chip memory holds
    config.parallel = "jit"  # or pmap
    config.workers = 0  # processes that decode pictures; 0: threads
    config.allow_missing = 0  # so many pictures may be unreadable
    return config
