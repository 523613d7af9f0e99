from __future__ import annotations

import newer
import perception
import pytest
import small
import torch
import transformers
from pairs import IMAGE, assert_same_tree, dinov2, read
from randomized import draw_parameters
from regcache_jax.converters.conversion import FORMATS
from regcache_jax.converters.engine import StoredTensor, assemble

from regcache_jax import converters
from regcache_jax.core.names import from_tree, to_names
from regcache_jax.core.sites import Parameters


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
