"""What an encoder is recognised by: hashes of its weights and of what its features depend on."""

from __future__ import annotations

from typing import Any

import jax

from regcache_jax.core.names import to_tree
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.identity import Digest, content_hash


def encoder_hash(encoder: Encoder) -> str:
    """SHA-256 of a float encoder's image tower: what a plan belongs to."""
    digest = Digest().json(encoder.spec.to_json()["image"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_tree(encoder.params.image)):
        digest.text(jax.tree_util.keystr(path)).arrays([leaf])
    return digest.hex()


def image_identity(encoder: Encoder) -> list[Any]:
    """What the image features of an encoder depend on: spec, scheme, plan and weights."""
    scheme = encoder.scheme
    return [
        encoder.spec.to_json()["image"],
        encoder.spec.normalize,
        None if scheme is None else scheme.to_json(),
        content_hash((encoder.params.image, encoder.plan)),
    ]
