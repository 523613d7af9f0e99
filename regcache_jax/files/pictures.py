"""The one decoder of pictures: bytes in, pixels out, bounded by stated numbers; whatever Pillow raises becomes one line."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from regcache_jax.core.errors import UserError, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded. Pillow knows more, some of which start other programs (EPS)."""
LARGEST_FILE = 1 << 29
"""Bytes of a file of one picture."""
LARGEST_PICTURE = 89_478_485
"""Pixels of one picture (9,459 x 9,459): what Pillow itself takes without a warning. More is taken for a decompression bomb."""

warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # of large pictures, which are refused here, and of damaged notes in them


def decoded(content: bytes, name: str, what: str = "a picture") -> Image.Image:
    """The (first) picture in the bytes of a file, its pixels loaded. Raises UserError that names what cannot be read, or is too large."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height <= LARGEST_PICTURE:
            picture.load()
            return picture
    except UnidentifiedImageError:
        raise UserError(f"{name} cannot be read as {what}: it is cut off, or in none of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass
    except Exception as error:  # decoders raise what they like on damaged bytes
        raise UserError(f"{name} cannot be read as {what}: {shown(error)}") from None
    raise UserError(f"{name} has more than {LARGEST_PICTURE:,} pixels; make it smaller")
