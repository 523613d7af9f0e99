"""Model folders are sealed: whatever changes in one after it was written is found when it is read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import make_plan
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.models import folder as checkpoints


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A folder with parameters, a plan and a tokenizer's file."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    encoder = small.encoder("siglip")
    blocks = encoder.spec.image.blocks
    rows = jnp.ones((blocks.num_blocks, 1, blocks.num_heads, blocks.head_dim))
    encoder = encoder.with_plan(make_plan(rows, rows, start=1))
    return checkpoints.save(folder / "m", encoder, tokenizer_files=[folder / "tokenizer.json"])


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_flipped_bit_is_found_in_24_of_24_places_of_all_files(tmp_path, sealed):
    """Every file has its turn; where the bit lies in it is drawn."""
    drawn = random.Random(0)
    files = sorted(file.relative_to(sealed) for file in Path(sealed).rglob("*") if file.is_file())
    own = [file for file in files if file.parts[0] != "params"]
    chosen = own * 3 + drawn.sample([file for file in files if file.parts[0] == "params"], 24 - 3 * len(own))
    shutil.copytree(sealed, tmp_path / "m")
    for name in chosen:
        file = tmp_path / "m" / name
        whole = file.read_bytes()
        flip(file, drawn.randrange(8 * len(whole)))
        with pytest.raises(UserError, match=str(tmp_path / "m")) as fault:
            checkpoints.load(tmp_path / "m")
        assert name.as_posix() in str(fault.value) or name.name == "encoder.json"
        file.write_bytes(whole)
    assert len(chosen) == 24
    checkpoints.load(tmp_path / "m")


def test_every_bit_of_a_description_counts(tmp_path, sealed):
    shutil.copytree(sealed, tmp_path / "m")
    file = tmp_path / "m" / "encoder.json"
    whole = file.read_bytes()
    for byte in random.Random(0).sample(range(len(whole)), 200):
        flip(file, 8 * byte + byte % 8)
        with pytest.raises(UserError, match=r"encoder\.json"):
            checkpoints.read_description(tmp_path / "m")
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["registers.safetensors", "spiece.model", "params/more"])
def test_a_file_that_was_put_into_a_folder_later_is_not_taken_for_its_own(tmp_path, name):
    checkpoints.save(tmp_path / "m", small.encoder("siglip"))
    (tmp_path / "m" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name} is not its own"):
        checkpoints.load(tmp_path / "m")


def test_a_readme_and_hidden_files_may_lie_in_a_folder(tmp_path):
    checkpoints.save(tmp_path / "m", small.encoder("siglip"))
    for name in ("README.md", ".gitattributes"):
        (tmp_path / "m" / name).write_text("x")
    assert checkpoints.load(tmp_path / "m").encoder.spec == small.encoder("siglip").spec


def test_a_folder_of_version_0_1_0_has_no_hashes_and_loads():
    model = checkpoints.load(bundled_model())
    assert model.metadata["format_version"] == 1 and jax.tree.leaves(model.encoder.params)
