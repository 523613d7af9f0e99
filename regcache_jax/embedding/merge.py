"""One .npz of a set of embeddings: the file that `regcache embed` writes for a small folder."""

from __future__ import annotations

import json
import mmap
import tempfile
import zipfile

import numpy as np
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.embedding.check import Checked, partitions
from regcache_jax.files.paths import write_whole


def merge(checked: Checked, path: epath.PathLike) -> None:
    """Writes `features` (float32), `paths` and, where there are any, `captions` (JSON, a list of texts a picture) of a set that is whole.

    Features pass partition by partition; names and captions are in memory. Raises UserError for a set without rows."""
    if not checked.rows:
        raise UserError(f"{checked.layout.folder} has no rows: none of its pictures could be read")
    paths: list[str] = []
    captions: list[list[str]] = []
    header = {"descr": "<f4", "fortran_order": False, "shape": (checked.rows, *checked.described["shape"])}
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for features, table in partitions(checked):
                    member.write(np.ascontiguousarray(features, np.float32).data)
                    paths += table.column("image_path").to_pylist()
                    captions += [[] if text is None else [text] for text in table.column("caption").to_pylist()]
            named = {"paths": np.array(paths)}
            if any(captions):
                named["captions"] = np.array(json.dumps(captions))
            for name, array in named.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            write_whole(path, content)
