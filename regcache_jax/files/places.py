"""A path as it is typed or stands in a file: on a disk, or in a store of objects."""

from __future__ import annotations

from etils import epath

from regcache_jax.core.errors import UserError, shown


def as_path(*parts: epath.PathLike) -> epath.Path:
    """The one way from a name, or its parts, to a path. Raises UserError for a store that is not known."""
    try:
        return epath.Path(*parts)
    except KeyError:  # epath's own, for what stands before ://
        raise UserError(
            f"{shown(parts[0])} lies in no store that is known: a path on a disk or gs:// is meant (pictures of the web are fetched "
            "first, by img2dataset for one)"
        ) from None
