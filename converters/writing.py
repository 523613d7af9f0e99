"""From a model to the files of other libraries: the way back of `convert`."""

from __future__ import annotations

import numpy as np
import safetensors.numpy
from etils import epath
from regcache_jax.converters.conversion import FORMATS
from regcache_jax.converters.engine import disassemble
from regcache_jax.converters.huggingface_folder import write_folder
from regcache_jax.converters.qwix_tree import write_qwix
from regcache_jax.converters.scales import write_scales

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import to_tree
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.paths import refuse_existing, write_whole
from regcache_jax.files.places import as_path
from regcache_jax.files.store import npz_bytes
from regcache_jax.models import folder as checkpoints


def export(model: checkpoints.Model | Encoder, layout: str = "big_vision") -> dict[str, np.ndarray]:
    """The parameters under the names of another library, by the name of its layout.

    Raises UserError for a layout that there is not or that cannot hold this encoder, and for a quantised one."""
    encoder = model.encoder if isinstance(model, checkpoints.Model) else model
    formats = {format.name: format for format in FORMATS}
    if layout not in formats:
        raise UserError(f"no layout is called {layout!r}; there are huggingface, scales, qwix, {', '.join(formats)}")
    if encoder.scheme is not None:
        raise UserError(
            f"{encoder.spec.name} is quantised; that layout holds float encoders (`huggingface` writes int8 ones too)"
        )
    return disassemble(to_tree(encoder.params), formats[layout].rules)


def write(model: checkpoints.Model | Encoder, layout: str, out: epath.PathLike) -> epath.Path:
    """Writes the parameters as one file in the layout of another library: `.npz` or `.safetensors`, whole or not at all. `huggingface`: a
    folder that transformers loads, of an int8 encoder too; `scales`: the calibrated scales alone, a line of JSON a site; `qwix`: a
    folder of Qwix's arrays.

    Raises UserError for a file that exists, another ending, or an encoder that the layout cannot hold."""
    out = as_path(out)
    refuse_existing(out)
    if layout == "huggingface":
        return write_folder(model, out)
    if layout == "qwix":
        return write_qwix(model, out)
    encoder = model.encoder if isinstance(model, checkpoints.Model) else model
    if layout == "scales":
        write_scales(encoder, out)
        return out
    arrays = export(model, layout)
    if out.suffix not in (".npz", ".safetensors"):
        raise UserError(f"{out} should end in .npz (big_vision) or .safetensors")
    write_whole(out, npz_bytes(arrays) if out.suffix == ".npz" else safetensors.numpy.save(arrays))
    return out
