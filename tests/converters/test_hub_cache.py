from __future__ import annotations

import pytest
from pairs import IMAGE, WIDE, assert_same_tree, read
from randomized import CLIP_TEXT, clip
from regcache_jax.converters import sources
from regcache_jax.converters.conversion import read_checkpoint
from safetensors.torch import save_file

from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.models import folder as checkpoints


def lay_out_cache(cache, repository, folder):
    """The hub's cache as huggingface_hub leaves it: blobs, and a snapshot of links to them under a commit."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name in ("refs", "blobs"):
        (root / name).mkdir()
    (root / "refs/main").write_text("0" * 40)
    for number, file in enumerate(folder.iterdir()):
        (root / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")


@pytest.mark.slow
def test_a_hub_id_finds_the_local_cache_without_a_network(tmp_path, monkeypatch, clip_pair):
    encoder, state, _ = clip_pair
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE)
    network.load_state_dict(state)
    network.save_pretrained(tmp_path / "source")
    lay_out_cache(tmp_path / "cache", "openai/clip-vit-base-patch16", tmp_path / "source")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("openai/clip-vit-base-patch16", "clip-vit-base-patch16", "ViT-B/16"):
        assert_same_tree(read(name).params, encoder.params)
    folder = converters.convert("openai/clip-vit-base-patch16", tmp_path / "model")
    assert len(checkpoints.load(folder).metadata["files"]["model.safetensors"]) == 64  # SHA-256 in hexadecimal digits
    with pytest.raises(
        UserError, match=r"neither a local path nor in the hub's cache, and cannot be fetched .*offline"
    ):
        read("openai/clip-vit-large-patch14")


@pytest.mark.slow
@pytest.mark.parametrize(
    "files", [("tokenizer.json",), ("vocab.json", "merges.txt"), ("bpe_simple_vocab_16e6.txt.gz",)]
)
def test_the_tokenizer_s_files_come_along_from_the_folder_or_from_where_they_are_named(tmp_path, clip_pair, files):
    _, _, state = clip_pair
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    bare = checkpoints.load(converters.convert(tmp_path, tmp_path / "bare"))
    with pytest.raises(UserError, match="convert it again with --tokenizer FILE_OR_FOLDER"):
        _ = bare.tokenize
    (tmp_path / "words").mkdir()
    for name in files:
        (tmp_path / "words" / name).write_text("{}")
    named = converters.convert(tmp_path, tmp_path / "named", tokenizer=tmp_path / "words")
    for name in files:
        (tmp_path / "words" / name).rename(tmp_path / name)
    beside = converters.convert(tmp_path, tmp_path / "beside")
    assert checkpoints.tokenizer_files(named) == checkpoints.tokenizer_files(beside) == sorted(files)
    if len(files) == 1:
        alone = converters.convert(tmp_path, tmp_path / "alone", tokenizer=tmp_path / files[0])
        assert checkpoints.tokenizer_files(alone) == list(files)


def test_of_a_repository_in_two_layouts_the_one_whose_name_was_typed_is_read(tmp_path, monkeypatch, clip_pair):
    _, state, open_clip_state = clip_pair
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE)
    network.load_state_dict(state)
    network.save_pretrained(tmp_path / "source")
    save_file(open_clip_state, tmp_path / "source/open_clip_model.safetensors")
    (tmp_path / "source/open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    lay_out_cache(tmp_path / "cache", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", tmp_path / "source")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = {
        name: sources.resolve(name)
        for name in ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "open_clip:ViT-B-16,laion2b_s34b_b88k")
    }
    assert [source.weights.name for source in found.values()] == ["model.safetensors", "open_clip_model.safetensors"]
    assert ["model_type" in source.config for source in found.values()] == [True, False]
    ours, format, *_ = read_checkpoint(str(tmp_path / "source/open_clip_model.safetensors"))
    assert format.name == "open_clip CLIP" and ours.spec.image.blocks.activation == "quick_gelu"


def test_without_a_network_one_message_says_where_was_looked(tmp_path, monkeypatch):
    class NoNetwork(Exception):
        """An error of the HTTP library beneath huggingface_hub, which is no OSError."""

    def fail(*_, **__):
        raise NoNetwork("Name or service not known\nand more lines")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.model_info", fail)
    with pytest.raises(
        UserError, match=r"cannot be fetched \(googel/siglip-base-patch16-24: Name or service not known\)"
    ) as e:
        read("googel/siglip-base-patch16-24")
    assert "known names near it: google/siglip-base-patch16-224, " in str(e.value)
    with pytest.raises(
        UserError, match=r"\(timm/vit_base_patch16_clip_224.openai: Name .*; openai/clip-vit-base-patch16: Name"
    ):
        read("timm/vit_base_patch16_clip_224.openai")
