"""What hashing costs: a random CLIP ViT-L/14 converted, and its model folder loaded, with the hashes of all files and without.

    python benchmarks/hashing.py [--rounds 3] [--work FOLDER]

Prints the least processor time of each over the rounds, in which both take turns, and their ratio. Without: the one function that
hashes files answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from regcache_jax.converters import conversion, write

from regcache_jax import converters
from regcache_jax.encoders import catalog
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.parameters import parameter_shapes
from regcache_jax.files import sealed
from regcache_jax.models import folder as models

NAME = "openai/clip-vit-large-patch14"


def write_checkpoint(folder: Path) -> None:
    """A Hugging Face folder of that shape, every number drawn."""
    spec = catalog.get(NAME).spec
    assert spec is not None and spec.text is not None
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02), parameter_shapes(spec)
    )
    folder.mkdir()
    write(Encoder(params, spec=spec), "Hugging Face CLIP", folder / "model.safetensors")
    parts = {"vision_config": spec.image.blocks, "text_config": spec.text.blocks}
    config = {
        part: {
            "hidden_act": "quick_gelu",
            "hidden_size": blocks.width,
            "intermediate_size": blocks.mlp_width,
            "num_attention_heads": blocks.num_heads,
            "num_hidden_layers": blocks.num_blocks,
        }
        for part, blocks in parts.items()
    }
    config["vision_config"] |= {"patch_size": 14, "image_size": 224}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "clip", "projection_dim": spec.image.projection, **config})
    )


@contextlib.contextmanager
def no_hashes() -> Iterator[None]:
    """Files are not read to be hashed: all have the same hash."""
    with (
        mock.patch.object(sealed, "file_hash", lambda path: "1" * 64),
        mock.patch.object(conversion, "file_hash", lambda path: "1" * 64),
    ):
        yield


def seconds(job: Callable[[], object]) -> float:
    """The processor time of a job."""
    began = time.process_time()
    job()
    return time.process_time() - began


def main() -> None:
    """Writes the checkpoint, converts and loads it in turns, prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    options = parser.parse_args()
    took: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        source, out = Path(work) / "source", Path(work) / "model"
        write_checkpoint(source)
        for _ in range(options.rounds):
            for hashed in (True, False):
                shutil.rmtree(out, ignore_errors=True)
                with contextlib.nullcontext() if hashed else no_hashes():
                    took.setdefault(("convert", hashed), []).append(seconds(lambda: converters.convert(source, out)))
                    took.setdefault(("load", hashed), []).append(seconds(lambda: models.load(out)))
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"model folder {size / 1e9:.2f} GB")
    for what in ("convert", "load"):
        with_hashes, without = min(took[what, True]), min(took[what, False])
        print(
            f"{what:8} {with_hashes:6.2f} s with hashes, {without:6.2f} s without: {with_hashes / without:.2f} times as much"
        )


if __name__ == "__main__":
    main()
