"""Against big_vision's own models (two_towers at commit 0127fb6; only the numbers they give are kept), and its layout there and back."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from pairs import assert_same_tree, read
from regcache_jax.converters.conversion import read_checkpoint
from safetensors.torch import load_file

from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.core.sites import Parameters
from regcache_jax.encoders.encoder import encode, encode_image, normalize
from regcache_jax.encoders.sheets import sheet_of
from regcache_jax.encoders.text import text_features
from regcache_jax.models import folder as checkpoints

WIDTH, DEPTH, HEADS, MLP, VOCABULARY, CONTEXT, GRID, PATCH = 32, 2, 2, 64, 50, 8, 3, 8
# The first six of 32 numbers of each normalised feature, and the pair's logits before the sigmoid.
GOLDEN = {
    "big_vision": (
        [[0.33691928, 0.11686857, -0.00938458, -0.24058735, -0.14002955, 0.07847512],
         [0.12304085, 0.08531358, -0.04007553, -0.31746784, 0.00521857, 0.04768438]],
        [[-0.13318059, 0.05224156, 0.14873731, 0.23726463, -0.31928042, -0.3156016],
         [0.07097191, -0.13357952, 0.27665955, 0.3323396, -0.43862012, -0.2947248]],
        [[0.3527809977531433, 0.5208265781402588], [0.3755721151828766, 0.367561399936676]],
    ),
    "big_vision scanned": (
        [[0.14342739, -0.35362762, 0.11122888, -0.17535369, -0.11660852, -0.03422451],
         [-0.03743134, -0.40799162, 0.19351177, -0.13287495, 0.04319786, 0.05735313]],
        [[0.11308755, -0.3227807, 0.15634833, 0.14243868, -0.3699976, -0.10925927],
         [-0.00855241, 0.07947987, 0.08544865, 0.25239524, -0.11908346, -0.02618116]],
        [[0.8029062747955322, 0.4924905002117157], [0.6651700139045715, 0.3905641436576843]],
    ),
}  # fmt: skip


def shapes(scan: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the two towers, as big_vision's `init` gives them."""
    attention = {f"{name}/kernel": (WIDTH, HEADS, WIDTH // HEADS) for name in ("query", "key", "value")}
    attention |= {f"{name}/bias": (HEADS, WIDTH // HEADS) for name in ("query", "key", "value")}
    attention |= {"out/kernel": (HEADS, WIDTH // HEADS, WIDTH), "out/bias": (WIDTH,)}
    block = {f"MultiHeadDotProductAttention_0/{name}": shape for name, shape in attention.items()}
    block |= {"MlpBlock_0/Dense_0/kernel": (WIDTH, MLP), "MlpBlock_0/Dense_0/bias": (MLP,)}
    block |= {"MlpBlock_0/Dense_1/kernel": (MLP, WIDTH), "MlpBlock_0/Dense_1/bias": (WIDTH,)}
    norm = {"scale": (WIDTH,), "bias": (WIDTH,)}
    norms = {f"LayerNorm_{index}/{name}": shape for index in (0, 1) for name, shape in norm.items()}

    tree = {f"img/MAPHead_0/{name}": shape for name, shape in block.items()}
    tree |= {f"img/MAPHead_0/LayerNorm_0/{name}": shape for name, shape in norm.items()}
    for tower in ("img/Transformer", "txt/Encoder_0"):
        tree |= {f"{tower}/encoder_norm/{name}": shape for name, shape in norm.items()}
        for name, shape in {**block, **norms}.items():
            if scan:
                tree[f"{tower}/encoderblock/{name}"] = (DEPTH, *shape)
            else:
                tree |= {f"{tower}/encoderblock_{index}/{name}": shape for index in range(DEPTH)}
    return tree | {
        "img/MAPHead_0/probe": (1, 1, WIDTH),
        "img/embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "img/embedding/bias": (WIDTH,),
        "img/pos_embedding": (1, GRID**2, WIDTH),
        "txt/Embed_0/embedding": (VOCABULARY, WIDTH),
        "txt/pos_embedding": (1, CONTEXT, WIDTH),
        "txt/head/kernel": (WIDTH, WIDTH),
        "txt/head/bias": (WIDTH,),
        "t": (1,),
        "b": (1,),
    }


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that follow from the name: norms around one, all else around zero."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return ((1.0 if name.endswith("scale") else 0.0) + 0.3 * noise).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("layout", GOLDEN)
def test_features_and_logits_are_those_of_big_visions_own_code(tmp_path, layout):
    arrays = {name: draw(name, shape) for name, shape in shapes("scanned" in layout).items()}
    np.savez(tmp_path / "golden.npz", **arrays)
    encoder = read_checkpoint(str(tmp_path / "golden.npz"))[0]
    encoder = encoder.replace(params=jax.tree.map(jnp.asarray, encoder.params))
    pictures = np.random.RandomState(0).randn(2, PATCH * GRID, PATCH * GRID, 3).astype(np.float32)
    ids = np.random.RandomState(1).randint(0, VOCABULARY, (2, CONTEXT)).astype(np.int32)
    # ids that no tokenizer makes, which `encode_text` would refuse
    texts = normalize(text_features(encoder.params.text, jnp.asarray(ids), encoder.spec.text)[0])
    images = encode_image(encoder, jnp.asarray(pictures))
    logits = images @ texts.T * jnp.exp(encoder.params.logit_scale) + encoder.params.logit_bias
    for ours, theirs in zip((images[:, :6], texts[:, :6], logits), GOLDEN[layout], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)  # unit vectors, float32, another order of addition
    assert set(converters.export(encoder, layout)) == set(arrays)


# The first six of 32 numbers of the raw features of its NaFlex (models/proj/image_text/naflex_vit.py at commit 0127fb6), pictures of 3 x 3,
# 2 x 5 and 1 x 11 patches.
NAFLEX = {
    "big_vision NaFlex": [
        [5.845964, 2.0278125, -0.16283333, -4.1744857, -2.4296865, 1.3616403],
        [5.960856, 0.7252991, 2.6151192, -2.7887282, -1.0697708, 0.93446743],
        [2.781972, 0.19606996, 1.4853616, -2.1732583, -0.6465714, 2.266024],
    ],
    "big_vision NaFlex scanned": [
        [2.5315347, -6.241634, 1.9632217, -3.095043, -2.0581746, -0.6040737],
        [-1.4545459, -3.0506594, 1.9977419, 4.108749, 1.5088325, 2.8048539],
        [-4.406628, -4.332052, 2.9582548, 1.4587891, 4.9169445, 0.6675822],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", NAFLEX)
def test_features_of_pictures_of_any_shape_are_those_of_big_visions_own_naflex(tmp_path, layout):
    changed = {"img/embedding/kernel": (PATCH**2 * 3, WIDTH), "img/pos_embedding": (GRID, GRID, WIDTH)}
    arrays = {name: draw(name, shape) for name, shape in {**shapes("scanned" in layout), **changed}.items()}
    np.savez(tmp_path / "golden.npz", **arrays)
    read = read_checkpoint(str(tmp_path / "golden.npz"))
    assert read.format.name == layout
    encoder = read.encoder.replace(params=jax.tree.map(jnp.asarray, read.encoder.params))
    random = np.random.RandomState(0)
    pictures = [random.randn(rows * PATCH, columns * PATCH, 3) for rows, columns in ((3, 3), (2, 5), (1, 11))]
    sheets = np.stack([sheet_of(each.astype(np.float32), PATCH, 12) for each in pictures])
    found = encode(encoder, sheets).features
    np.testing.assert_allclose(found[:, :6], NAFLEX[layout], rtol=1e-5, atol=2e-5)
    assert set(converters.export(encoder, layout)) == set(arrays)


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
