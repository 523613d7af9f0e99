"""Features of folders of pictures: any mix of sizes and formats gives what each picture gives by itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.data import open_dataset
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.embedding import embed_pictures, write_embeddings
from regcache_jax.models import folder as checkpoints


def noise(*shape: int, top: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, top, shape, dtype)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder as people have it, and one file that is cut off; and each picture as plain RGB."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "b" / "c").mkdir(parents=True)
    plain = {}

    def add(name, picture, rgb, **options):
        picture.save(folder / name, **options)
        plain[name] = rgb

    colour = Image.fromarray(noise(61, 47, 3))
    add("wide.PNG", colour.resize((90, 20)), colour.resize((90, 20)))
    add("b/lossless.webp", colour, colour, lossless=True)
    grey = Image.fromarray(noise(30, 31))
    add("b/c/grey.bmp", grey, grey.convert("RGB"))
    deep = noise(25, 40, top=65536, dtype=np.uint16)
    add("deep.tiff", Image.fromarray(deep), Image.fromarray(np.round(deep / 257).astype(np.uint8)).convert("RGB"))
    half = colour.convert("RGBA")
    half.putalpha(Image.fromarray(noise(61, 47)))
    add("alpha.png", half, Image.alpha_composite(Image.new("RGBA", half.size, "white"), half).convert("RGB"))
    ink = Image.fromarray(noise(33, 29, 4), "CMYK")
    add("ink.tif", ink, ink.convert("RGB"))
    palette = colour.quantize(16)
    add("b/palette.gif", palette, palette.convert("RGB"))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right
    add("turned.png", colour, colour.transpose(Image.Transpose.ROTATE_270), exif=turned)
    (folder / "torn.png").write_bytes((folder / "wide.PNG").read_bytes()[:200])
    return folder, plain


@pytest.mark.slow
def test_any_mix_of_sizes_and_formats_gives_what_each_gives_alone_and_names_what_is_torn(pictures, tmp_path):
    folder, plain = pictures
    model = checkpoints.load(bundled_model())
    dataset = open_dataset("folder", data_dir=str(folder))
    found = embed_pictures(model, dataset, batch_size=4)
    assert found.paths == sorted(plain) and len(found.unreadable) == 1 and "torn.png" in found.unreadable[0]
    alone = jax.jit(encode_image)(model.encoder, np.stack([model.preprocess(plain[name]) for name in found.paths]))
    np.testing.assert_allclose(found.features, alone, atol=2e-6)  # other batches, so additions in another order
    write_embeddings(tmp_path / "features.npz", found)
    with np.load(tmp_path / "features.npz") as stored:
        assert stored["features"].dtype == np.float32 and stored["paths"].tolist() == found.paths
    with pytest.raises(UserError, match=r"torn\.png"):
        embed_pictures(model, dataset, batch_size=4, strict=True)
