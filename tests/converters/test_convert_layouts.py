from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import layouts
import newer
import numpy as np
import perception
import pytest
import small
import torch
import transformers
from flax import serialization
from randomized import CLIP_TEXT, SIGLIP_TEXT, SMALL_IMAGE, clip, draw_parameters, save_random, siglip
from regcache_jax.converters import sources
from regcache_jax.converters.choices import at_image_size
from regcache_jax.converters.conversion import FORMATS, read_checkpoint
from regcache_jax.converters.engine import StoredTensor, assemble
from safetensors.torch import load_file, save_file

from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_tree, to_names
from regcache_jax.core.sites import Parameters
from regcache_jax.encoders.encoder import encode
from regcache_jax.models import folder as checkpoints

# Sizes whose heads are 64 wide, as layouts without a configuration assume.
WIDE = {"hidden_size": 64, "num_attention_heads": 1}
IMAGE = {**SMALL_IMAGE, **WIDE}


def assert_same_tree(ours, wanted):
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def read(path, **options):
    return read_checkpoint(str(path), **options)[0]


@pytest.fixture(scope="module")
def clip_pair(tmp_path_factory):
    """A random CLIP, its encoder, and its state under open_clip's names."""
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE)
    folder = save_random(network, tmp_path_factory.mktemp("clip"))
    return read(folder), network.state_dict(), layouts.open_clip_from_clip(network.state_dict(), 3, 2)


@pytest.fixture(scope="module")
def siglip_pair(tmp_path_factory):
    """A random SigLIP with two heads of 24, its encoder and its state."""
    network = siglip({**SIGLIP_TEXT, "num_attention_heads": 4}, SMALL_IMAGE)
    folder = save_random(network, tmp_path_factory.mktemp("siglip"))
    return read(folder), network.state_dict()


def dinov2(registers: int, gated: bool) -> torch.nn.Module:
    options = {**IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": gated}
    options.pop("intermediate_size")
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        return draw_parameters(transformers.Dinov2WithRegistersModel(config))
    return draw_parameters(transformers.Dinov2Model(transformers.Dinov2Config(**options)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_open_clip_folder_gives_the_same_clip(tmp_path, clip_pair, kind):
    encoder, _, state = clip_pair
    if kind == "safetensors":
        save_file(state, tmp_path / "open_clip_model.safetensors")
    else:
        torch.save(
            {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
            tmp_path / "open_clip_pytorch_model.bin",
        )
    config = {
        "model_cfg": {"quick_gelu": True, "vision_cfg": {}, "text_cfg": {"heads": 1}},
        "preprocess_cfg": {"mean": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    ours = read(tmp_path)
    assert_same_tree(ours.params, encoder.params)
    assert ours.spec.image == encoder.spec.image
    assert ours.spec.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_an_open_clip_file_without_configuration_asks_for_its_name(tmp_path, clip_pair):
    save_file(clip_pair[2], tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="which GELU it was trained with; name its row"):
        read(tmp_path / "weights.safetensors")


class Tower(torch.nn.Module):
    """A module tree with any names, as TorchScript archives have it."""

    def __init__(self, state):
        super().__init__()
        self.input_resolution = torch.nn.Parameter(torch.tensor(40.0))
        for name, tensor in state.items():
            *parents, leaf = name.split(".")
            node = self
            for parent in parents:
                if parent not in node._modules:
                    node.add_module(parent, torch.nn.Module())
                node = node._modules[parent]
            node.register_parameter(leaf, torch.nn.Parameter(tensor))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.logit_scale


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated, as what made those files
@pytest.mark.parametrize("half", [False, True])  # OpenAI's own are in half precision
def test_openais_torchscript_archive_is_read_without_running_it(tmp_path, clip_pair, half):
    encoder, _, state = clip_pair
    state = {name: tensor.half() if half and tensor.ndim > 1 else tensor for name, tensor in state.items()}
    torch.jit.trace(Tower(state), torch.zeros(1)).save(str(tmp_path / "ViT.pt"))
    ours = read(tmp_path / "ViT.pt")
    rounded = jax.tree.map(lambda array: array.astype(np.float16).astype(np.float32), encoder.params)
    kernel = ours.params.image.blocks.mlp.fc1.kernel
    wanted = (rounded if half else encoder.params).image.blocks.mlp.fc1.kernel
    np.testing.assert_array_equal(kernel, wanted, strict=True)
    if not half:
        assert_same_tree(ours.params, encoder.params)
    assert ours.spec.image == encoder.spec.image and ours.spec.text.pooling == "argmax"


def test_a_flax_msgpack_gives_the_same_clip(tmp_path, clip_pair, tmp_path_factory):
    encoder, state, _ = clip_pair
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE)
    network.config.save_pretrained(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(layouts.flax_from_clip(state)))
    ours = read(tmp_path)
    assert_same_tree(ours.params, encoder.params)
    assert dataclasses.replace(ours.spec, name="same") == dataclasses.replace(encoder.spec, name="same")


@pytest.mark.slow
def test_open_clip_and_timm_files_give_the_same_siglip(tmp_path):
    network = draw_parameters(siglip({**SIGLIP_TEXT, **WIDE}, IMAGE))
    network.save_pretrained(tmp_path / "source")
    encoder = read(tmp_path / "source")
    for name, state in (
        ("open_clip", layouts.open_clip_from_siglip(network.state_dict(), 3, 2)),
        ("timm", layouts.timm_from_siglip(network.state_dict(), 3)),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        ours = read(tmp_path / f"{name}.safetensors")
        assert_same_tree(ours.params.image, encoder.params.image)
        assert ours.spec.image.blocks.activation == "gelu"  # timm's exact GELU for all but a few sizes
    assert_same_tree(read(tmp_path / "open_clip.safetensors").params, encoder.params)


@pytest.mark.slow
def test_a_timm_file_gives_the_same_image_tower_of_clip(tmp_path, clip_pair):
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE, projection=512)  # as many as the row has
    encoder = read(save_random(network, tmp_path / "clip"))
    save_file(layouts.timm_from_clip(network.state_dict(), 3), tmp_path / "timm.safetensors")
    ours = read(tmp_path / "timm.safetensors", name="openai/clip-vit-base-patch16")
    assert_same_tree(ours.params, Parameters(encoder.params.image))
    assert ours.spec.image == encoder.spec.image and ours.spec.text is None
    with pytest.raises(UserError, match="which GELU it was trained with; name its row"):
        read(tmp_path / "timm.safetensors")
    save_file(layouts.timm_from_clip(clip_pair[1], 3), tmp_path / "classes.safetensors")
    with pytest.raises(UserError, match=r"head\.weight has 24 outputs, .* projects to 512 .* this is a classifier"):
        read(tmp_path / "classes.safetensors", name="openai/clip-vit-base-patch16")


def as_vision_tower(folder, state, prefix):
    """A folder with the image tower alone, its names beginning as one version of transformers writes them."""
    folder.mkdir()
    tower = {name: tensor for name, tensor in state.items() if name.startswith("vision_model.")}
    tower = {prefix + name.removeprefix("vision_model."): tensor.contiguous() for name, tensor in tower.items()}
    save_file(tower, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_vision_tower_is_read_by_the_names_of_transformers_4_and_of_5(tmp_path, clip_pair, siglip_pair, family):
    encoder, state = (clip_pair if family == "clip" else siglip_pair)[:2]
    config = {**IMAGE, "hidden_act": "quick_gelu"} if family == "clip" else SMALL_IMAGE
    for version, prefix in (("4", "vision_model."), ("5", "")):
        folder = as_vision_tower(tmp_path / version, state, prefix)
        (folder / "config.json").write_text(json.dumps({**config, "model_type": f"{family}_vision_model"}))
        ours = read(folder)
        assert_same_tree(ours.params.image, encoder.params.image.replace(projection=None))
        assert ours.spec.image == dataclasses.replace(encoder.spec.image, projection=None)


def test_bin_shards_and_their_index_give_the_same_clip(tmp_path, clip_pair):
    encoder, state, _ = clip_pair
    clip({**CLIP_TEXT, **WIDE}, IMAGE).config.save_pretrained(tmp_path)
    names = sorted(state)
    shards = {f"pytorch_model-0000{part + 1}-of-00002.bin": names[part::2] for part in (0, 1)}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_tree(read(tmp_path).params, encoder.params)


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


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_from_hugging_face_meta_and_timm_is_one_encoder(tmp_path, registers, gated):
    network = dinov2(registers, gated)
    network.save_pretrained(tmp_path / "hub")
    wanted = read(tmp_path / "hub")
    (tmp_path / "memory").mkdir()
    network.config.save_pretrained(tmp_path / "memory")
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
        tmp_path / "memory/model.safetensors",
    )
    assert_same_tree(read(tmp_path / "memory").params, wanted.params)  # transformers 5's own names

    meta = layouts.meta_from_dinov2(network.state_dict(), 3)
    torch.save(meta, tmp_path / "dinov2_pretrain.pth")
    ours = read(tmp_path / "dinov2_pretrain.pth")
    assert_same_tree(ours.params, wanted.params)
    assert ours.spec.image.position_interpolation == ("bicubic_antialias" if registers else "bicubic_offset")

    save_file(layouts.timm_from_meta(meta), tmp_path / "timm.safetensors")
    ours = read(tmp_path / "timm.safetensors")
    assert ours.spec.image.position_interpolation == "bicubic_antialias"
    if not registers:
        assert_same_tree(ours.params, wanted.params)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 40, 40, 3)), jnp.float32)
    # Class token and its position are added up beforehand in timm's file: one rounding apart.
    ours, wanted = (encoder.replace(params=jax.tree.map(jnp.asarray, encoder.params)) for encoder in (ours, wanted))
    np.testing.assert_allclose(encode(ours, images).features, encode(wanted, images).features, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_folders_give_the_hidden_states_of_transformers_at_another_image_size(tmp_path, registers, gated):
    dinov2(registers, gated).save_pretrained(tmp_path / "source")
    encoder = read(tmp_path / "source")
    assert encoder.spec.image.trained_registers == registers and encoder.spec.image.blocks.gated_mlp == gated
    for pixels in (40, 24):  # the trained size, and a smaller one: positions are interpolated
        sized = encoder.replace(spec=at_image_size(encoder.spec, pixels))
        for row in converters.check(str(tmp_path / "source"), sized):
            assert row.typical <= 1e-5 and row.worst <= 1e-4, (pixels, row)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_a_big_vision_file_gives_the_same_siglip(tmp_path, siglip_pair, scan, prefix):
    encoder, state = siglip_pair
    arrays = layouts.big_vision_from_siglip(state, 3, 2, heads=4)
    arrays = layouts.scanned(arrays) if scan else arrays
    np.savez(
        tmp_path / "siglip.npz",
        **{f"{prefix}{name}": array for name, array in arrays.items()},
        **{"opt/0": np.zeros(3)},
    )
    ours = read(tmp_path / "siglip.npz")
    assert_same_tree(ours.params, encoder.params)
    assert ours.spec.image == encoder.spec.image and ours.spec.text == encoder.spec.text
    assert ours.spec.preprocessing.filter == "bilinear_tf"
    image_only = read(f"{tmp_path / 'siglip.npz'}:img")
    assert image_only.spec.text is None
    assert_same_tree(image_only.params, Parameters(encoder.params.image))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["big_vision", "big_vision scanned"])
def test_big_vision_to_ours_and_back_is_bit_equal_names_included(tmp_path, siglip_pair, layout):
    arrays = layouts.big_vision_from_siglip(siglip_pair[1], 3, 2, heads=4)
    arrays = layouts.scanned(arrays) if "scanned" in layout else arrays
    np.savez(tmp_path / "siglip.npz", **arrays)
    model = checkpoints.load(converters.convert(tmp_path / "siglip.npz", tmp_path / "model"))
    back = converters.write(model, layout, tmp_path / "back.npz")
    with np.load(back) as written:
        assert set(written) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(written[name], array, strict=True)
    converters.write(model, "open_clip SigLIP", tmp_path / "back.safetensors")
    wanted = layouts.open_clip_from_siglip(siglip_pair[1], 3, 2)
    assert_same_tree(load_file(tmp_path / "back.safetensors"), wanted)
    before = sorted(tmp_path.iterdir())
    for out, to, message in (
        ("back.npz", layout, "exists already"),
        ("other.bin", layout, "should end in .npz"),
        ("other.npz", "jimm", "no layout is called 'jimm'; there are huggingface, scales, qwix, .*Hugging Face CLIP, "),
        ("other.npz", "Meta DINOv2", "have no name in the layout asked for"),
    ):
        with pytest.raises(UserError, match=message):
            converters.write(model, to, tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before


def test_bfloat16_leaves_of_a_big_vision_file_are_recognised(tmp_path, siglip_pair):
    encoder, state = siglip_pair
    short = {name: array.astype(jnp.bfloat16) for name, array in layouts.big_vision_from_siglip(state, 3, 2, 4).items()}
    np.savez(tmp_path / "siglip.npz", **short)
    ours = read(tmp_path / "siglip.npz")
    kernel = encoder.params.image.blocks.mlp.fc1.kernel
    np.testing.assert_array_equal(
        ours.params.image.blocks.mlp.fc1.kernel, kernel.astype(jnp.bfloat16).astype(np.float32)
    )


def test_a_text_position_table_that_early_big_vision_files_hold_twice_is_added_up(tmp_path, siglip_pair):
    encoder, state = siglip_pair
    arrays = layouts.big_vision_from_siglip(state, 3, 2, heads=4)
    half = arrays["txt/pos_embedding"] / 2
    np.savez(tmp_path / "siglip.npz", **{**arrays, "txt/pos_embedding": half, "txt/Encoder_0/pos_embedding": half})
    np.testing.assert_array_equal(
        read(tmp_path / "siglip.npz").params.text.position_embedding, encoder.params.text.position_embedding
    )


@pytest.mark.slow
@pytest.mark.parametrize("format", [format.name for format in FORMATS if "TIPS" not in format.name])  # which multiplies
def test_every_table_is_its_own_inverse(format, clip_pair, siglip_pair, tmp_path):
    """What a table writes, it reads back bit-equal; for encoders that the layout can hold."""
    if (encoder := newer.encoder(format)) is not None:
        pass
    elif "ViT" in format:
        encoder = small.encoder("intern" if "Intern" in format else "vit")
    elif "DINOv2" in format:
        dinov2(4 if "registers" in format else 0, gated=False).save_pretrained(tmp_path)
        encoder = read(tmp_path)
        if format == "timm DINOv2 with registers":
            encoder.params.image.position_embedding[0] = 0.0  # the class token's position, which it cannot hold
    elif "DINOv3" in format:
        options = {**IMAGE, "num_register_tokens": 4, "key_bias": False}
        draw_parameters(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**options))).save_pretrained(tmp_path)
        encoder = read(tmp_path)
    elif "PE" in format:
        torch.save(perception.drawn(class_token=True, core="Core" in format, layer_scale=True), tmp_path / "PE.pt")
        encoder = read(tmp_path / "PE.pt")
    else:
        encoder = clip_pair[0] if "CLIP" in format else siglip_pair[0]
    alone = Parameters(encoder.params.image, classifier=encoder.params.classifier)
    params = alone if format.startswith("timm") else encoder.params
    written = converters.export(encoder.replace(params=params), format)
    stored = {
        name: StoredTensor(array.shape, array.dtype, "memory", lambda array=array: array)
        for name, array in written.items()
    }
    table = next(entry for entry in FORMATS if entry.name == format)
    shapes = {path: leaf.shape for path, leaf in to_names(params).items()}
    assert_same_tree(from_tree(assemble(stored, table.rules, shapes)), params)


@pytest.mark.slow
def test_choices_replace_what_the_layout_says_and_stand_in_the_folder(tmp_path):
    dinov2(0, gated=False).save_pretrained(tmp_path / "source")
    folder = converters.convert(
        tmp_path / "source", tmp_path / "model", interpolation="bicubic_offset", activation="gelu_tanh", image_size=24
    )
    model = checkpoints.load(folder)
    image = model.encoder.spec.image
    assert (image.position_interpolation, image.blocks.activation, image.grid, image.stored_grid) == (
        "bicubic_offset",
        "gelu_tanh",
        3,
        5,
    )
    assert model.metadata["choices"] == {
        "activation": "gelu_tanh",
        "interpolation": "bicubic_offset",
        "filter": "bicubic",
    }
    with pytest.raises(UserError, match=r"interpolation must be one of bicubic, .*, got 'cubic'"):
        converters.convert(tmp_path / "source", tmp_path / "other", interpolation="cubic")
