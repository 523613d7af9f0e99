"""What all readers share: one line for whatever a library raises, and the bounds that any list of tensors keeps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from regcache_jax.converters.engine import StoredTensor

from regcache_jax.core.errors import UserError, shown

Tensors = dict[str, StoredTensor]

LARGEST_FILE = 1 << 40
"""Bytes of a file of weights."""
MOST_TENSORS = 50_000  # a large encoder with its optimizer has about 5,000
LONGEST_NAME = 1000
LARGEST_RANK = 16


@contextlib.contextmanager
def in_one_line(place: object, fault: str) -> Iterator[None]:
    """Turns whatever is raised inside into one UserError: the place (a file, or a tensor in it), the fault, and the reason given.
    A UserError gets the place put in front, where it does not begin with it."""
    try:
        yield
    except UserError as error:
        told = ValueError.__str__(error)
        raise (error if told.startswith(str(place)) else UserError(f"{place}: {told}")) from None
    except Exception as error:  # NumPy, zipfile, msgpack and pickletools raise whatever their code meets
        raise UserError(f"{place} {fault} ({shown(str(error) or type(error).__name__)})") from None


def check_list(path: Path, tensors: Tensors) -> Tensors:
    """The tensors of a file. Raises UserError where they are more, or their names longer or their axes more, than any encoder has."""
    if len(tensors) > MOST_TENSORS:
        raise UserError(f"{path} lists {len(tensors):,} tensors, at most {MOST_TENSORS:,} are read")
    for name, tensor in tensors.items():
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"{path}: the name {shown(name)} has {len(name):,} characters, at most {LONGEST_NAME:,} are read"
            )
        if len(tensor.shape) > LARGEST_RANK:
            raise UserError(f"{path}: {shown(name)} has {len(tensor.shape):,} axes, at most {LARGEST_RANK} are read")
    return tensors


def num_bytes(tensor: StoredTensor) -> int:
    """The bytes a tensor takes in memory."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize
