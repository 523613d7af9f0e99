"""Zero-shot predictions of a random full-size CLIP (ViT-B/32), ours against CLIP_benchmark's construction in PyTorch.

    python benchmarks/zero_shot_torch.py [--images 500]

One checkpoint in Hugging Face's layout, every parameter drawn; 20 made-up classes, 3 templates, random pictures. Prints how many
predictions are the same, and how far class vectors, features and logits lie apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models

import regcache_jax as rc
from regcache_jax.data import Dataset, Example, batches
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.loop import in_order, map_batches
from regcache_jax.evaluation.zero_shot import class_vectors

CLASSES = [f"thing {'abcdefghijklmnopqrst'[number]}" for number in range(20)]
TEMPLATES = ["a photo of a {c}.", "{c}", "art of the {c}"]


def draw(network: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn so that features differ from picture to picture and text to text."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "embed" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name != "logit_scale":
                parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0))
    return network.eval()


def write_checkpoint(folder: Path, width: int = 768) -> transformers.CLIPModel:
    """A folder as the hub has it; its tokenizer is not used. `width` is the image tower's, in heads of 64."""
    config = transformers.CLIPConfig(
        vision_config={
            "hidden_act": "quick_gelu",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": width // 64,
        },
        text_config={"hidden_act": "quick_gelu", "eos_token_id": 49407, "bos_token_id": 49406},
    )
    network = draw(transformers.CLIPModel(config))
    network.save_pretrained(folder)
    marks = {"<|startoftext|>": 49406, "<|endoftext|>": 49407, " ": 1}
    Tokenizer(models.WordLevel(marks, unk_token=" ")).save(str(folder / "tokenizer.json"))
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, "_name_or_path": "openai/clip-vit-base-patch32"}))
    return network


def tokenize(texts: list[str]) -> np.ndarray:
    """Ten drawn ids for each text, between the marks: tokenizers are compared elsewhere (tests/test_tokenizers.py)."""
    ids = np.full((len(texts), 77), 49407, np.int32)
    for row, text in enumerate(texts):
        ids[row, :11] = [49406, *np.random.default_rng(zlib.crc32(text.encode())).integers(1, 49000, 10)]
    return ids


@torch.inference_mode()
def by_torch(network: transformers.CLIPModel, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class vectors [C, E] and unit features, as CLIP_benchmark's zero-shot classification makes them."""
    vectors = []
    for name in CLASSES:
        ids = torch.from_numpy(tokenize([template.replace("{c}", name) for template in TEMPLATES]).astype(np.int64))
        hidden = network.text_model(input_ids=ids)
        each = torch.nn.functional.normalize(network.text_projection(hidden.pooler_output), dim=-1)
        mean = each.mean(dim=0)
        vectors.append(mean / mean.norm())
    features = []
    for first in range(0, len(pictures), 20):
        pixels = torch.from_numpy(pictures[first : first + 20].transpose(0, 3, 1, 2).copy())
        pooled = network.vision_model(pixel_values=pixels).pooler_output
        features.append(torch.nn.functional.normalize(network.visual_projection(pooled), dim=-1))
    return torch.stack(vectors).numpy(), torch.cat(features).numpy()


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as place:
        network = write_checkpoint(Path(place) / "checkpoint")
        rc.convert(str(Path(place) / "checkpoint"), Path(place) / "model")
        model = rc.load(Path(place) / "model")

    def picture(index: int) -> np.ndarray:
        """Noise on a plain colour, so that pictures differ by more than their noise."""
        rng = np.random.default_rng(index)
        return (rng.normal(size=3) + rng.normal(size=(224, 224, 3))).astype(np.float32)

    pictures = np.stack([picture(index) for index in range(count)])
    print("PyTorch ...", flush=True)
    known_vectors, known = by_torch(network, pictures)
    print("JAX ...", flush=True)
    dataset = Dataset("random", "test", count, lambda index: Example(pictures[index], None, str(index)))

    def step(encoder, batch):
        return {"features": encode_image(encoder, jnp.asarray(batch.image)), "place": jnp.asarray(batch.place)}

    rows = map_batches(step, model.encoder, batches(dataset, lambda image: image, 20))
    found = in_order(rows, rows["place"])["features"]
    vectors = class_vectors(model.encoder, tokenize, CLASSES, TEMPLATES)
    ours, theirs = found @ vectors.T, known @ known_vectors.T
    two = np.sort(theirs, axis=1)
    print(f"images\t{count}")
    print(f"classes predicted\t{len(set(theirs.argmax(1)))}")
    print(f"same prediction\t{int((ours.argmax(1) == theirs.argmax(1)).sum())}")
    print(f"largest difference of class vectors\t{np.abs(vectors - known_vectors).max():.2e}")
    print(f"largest difference of features\t{np.abs(found - known).max():.2e}")
    print(f"largest difference of cosines\t{np.abs(ours - theirs).max():.2e}")
    print(f"smallest margin of the first class\t{(two[:, -1] - two[:, -2]).min():.2e}")


if __name__ == "__main__":
    main()
