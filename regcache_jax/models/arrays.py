"""Parameters on disk: a tree of arrays as an Orbax checkpoint, `params/`, one array a leaf."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.models.description import PARAMS_FOLDER

CHUNK_BYTES = 2**25
"""Pieces in which an array is compressed and written. With one file a piece (and not Orbax's database, which keeps what it
has compressed until all is there) and without a copy of every array, writing takes little more memory than the arrays."""
_WITHOUT_COPIES = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),
)


def params_path(folder: epath.Path) -> epath.Path:
    """Where the parameters lie, as Orbax wants it: an absolute path, or one with its scheme (which `resolve` would take for a
    relative path)."""
    return (folder if "://" in str(folder) else folder.resolve()) / PARAMS_FOLDER


def _checkpointer(**how: Any) -> ocp.Checkpointer:
    """Orbax for this process alone: of several, each reads for itself, and nobody waits for the others."""
    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        process = jax.process_index()
        options = ocp.options.MultiprocessingOptions(process, {process}, f"process{process}")
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=options, **how), multiprocessing_options=options
    )


@contextlib.contextmanager
def _orbax_says_nothing() -> Iterator[None]:
    """Orbax logs what it then raises; that is told in one line."""
    log = logging.getLogger("absl")
    logged, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = logged


def save_parameters(folder: epath.Path, params: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint. Raises OSError where Orbax, which has no error of its own for that, cannot write."""
    # as NumPy arrays: with several processes Orbax refuses device arrays that only one of them holds
    arrays = jax.tree.map(np.asarray, params)
    chunks = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), arrays)
    try:
        with (
            _orbax_says_nothing(),
            _checkpointer(use_ocdbt=False, type_handler_registry=_WITHOUT_COPIES) as checkpointer,
        ):
            checkpointer.save(params_path(folder), args=ocp.args.PyTreeSave(arrays, save_args=chunks))
    except ValueError as error:  # TensorStore's: the path, then what the system said
        message = str(error).rpartition(" [")[0] or str(error)
        raise OSError(f"{folder}: {message.rpartition(': ')[2]}") from error
    _forget_when_and_where(folder / PARAMS_FOLDER)


def _forget_when_and_where(params: epath.Path) -> None:
    """Orbax notes the time and the folder it wrote into; without them the same encoder is the same bytes wherever it is written."""
    noted = params / "_CHECKPOINT_METADATA"
    told = json.loads(noted.read_text())
    times = dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"))
    noted.write_text(json.dumps({**told, **times}, sort_keys=True))
    success = params / "commit_success.txt"
    if success.exists():  # whether it is there is asked in a store of objects, not what it says
        success.write_text("all parameters are here\n")


def load_parameters(folder: epath.Path) -> Any:
    """The tree that `folder/params` holds, whoever wrote it, as NumPy arrays. Raises UserError where it cannot be read."""
    with reading(folder) as checkpointer:
        stored = stored_shapes(folder, checkpointer)
        args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return checkpointer.restore(params_path(folder), args=ocp.args.PyTreeRestore(restore_args=args))


@contextlib.contextmanager
def reading(folder: epath.Path) -> Iterator[ocp.Checkpointer]:
    """Orbax, whose errors of a damaged folder become a UserError."""
    try:
        with _orbax_says_nothing(), _checkpointer() as checkpointer:
            yield checkpointer
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds of error for damaged folders
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder / PARAMS_FOLDER} is damaged or incomplete: {reason[:300]}") from None


def stored_shapes(folder: epath.Path, checkpointer: ocp.Checkpointer) -> Any:
    """Shapes and types of the arrays on disk, as a tree."""
    stored: Any = checkpointer.metadata(params_path(folder))
    tree = getattr(stored, "item_metadata", stored)
    return getattr(tree, "tree", tree)
