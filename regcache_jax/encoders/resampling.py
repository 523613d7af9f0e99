"""Pillow's resize of a part of a picture, for pictures so thin that the whole result would be much more than the part.

Pillow resizes along one side and then along the other, with weights in fixed point, and rounds to 8 bits each time. Here that is done
for the kept part only, along the longer side first, to the same bits as Pillow's own two steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

BITS = 22
"""Bits after the point of Pillow's weights for 8-bit pixels."""


def _triangle(distance: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _cubic(distance: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    near, a = np.abs(distance), -0.5
    inner = ((a + 2.0) * near - (a + 3.0)) * near * near + 1.0
    outer = (((near - 5.0) * near + 8.0) * near - 4.0) * a
    return np.where(near < 1.0, inner, np.where(near < 2.0, outer, 0.0))


def _lanczos(distance: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    return np.where(np.abs(distance) < 3.0, np.sinc(distance) * np.sinc(distance / 3.0), 0.0)


KERNELS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0), "lanczos": (_lanczos, 3.0)}
"""Filters by name, each with the distance that it reaches."""


class Axis(NamedTuple):
    """One side of a picture in a resize: `stored` pixels become `wanted`, of which `kept` are kept, from `first` on."""

    stored: int
    wanted: int
    first: int
    kept: int

    def taps(self, place: int, filter: str) -> tuple[int, Float[np.ndarray, "k"]]:
        """The first stored pixel that reaches a kept one, and the weights of it and its successors, whole numbers of 2**-BITS."""
        weigh, reach = KERNELS[filter]
        scale = self.stored / self.wanted
        stretch = max(scale, 1.0)
        centre = (self.first + place + 0.5) * scale
        low = max(0, int(centre - reach * stretch + 0.5))
        high = min(self.stored, int(centre + reach * stretch + 0.5))
        weights = weigh((np.arange(low, high) - centre + 0.5) * (1.0 / stretch))
        total = np.add.accumulate(weights)[-1]  # one after the other, as Pillow adds them
        fixed = weights / total * (1 << BITS)
        return low, np.trunc(fixed + np.copysign(0.5, fixed))

    def nearest(self) -> np.ndarray:
        """The stored pixel that is nearest to each kept one."""
        centre = (np.arange(self.first, self.first + self.kept) + 0.5) * (self.stored / self.wanted)
        return np.minimum(centre.astype(int), self.stored - 1)


def resize_part(
    pixels: UInt8[np.ndarray, "Y X C"], rows: Axis, columns: Axis, filter: str
) -> UInt8[np.ndarray, "V U C"]:
    """The kept part of a picture that is resized by a filter of KERNELS."""
    if rows.stored > columns.stored:
        return resize_part(np.swapaxes(pixels, 0, 1), columns, rows, filter).swapaxes(0, 1)
    first = rows.taps(0, filter)[0]
    low, weights = rows.taps(rows.kept - 1, filter)
    needed = np.stack([_along(row, columns, filter) for row in pixels[first : low + len(weights)]])
    return _along(needed, rows, filter, first)


def _along(pixels: UInt8[np.ndarray, "Y *C"], axis: Axis, filter: str, first: int = 0) -> UInt8[np.ndarray, "V *C"]:
    """Resizes along the first axis, of which the stored pixels from `first` on are given."""
    taps = (axis.taps(place, filter) for place in range(axis.kept))
    return np.stack([_weighed(pixels[low - first : low - first + len(weights)], weights) for low, weights in taps])


def _weighed(pixels: UInt8[np.ndarray, "k *C"], weights: Float[np.ndarray, "k"]) -> UInt8[np.ndarray, "*C"]:
    """A weighted sum, rounded to grey levels. float64 adds up these whole numbers exactly."""
    sums = np.tensordot(weights, pixels.astype(np.float64), axes=1)
    return np.clip(np.floor((sums + (1 << (BITS - 1))) / (1 << BITS)), 0, 255).astype(np.uint8)
