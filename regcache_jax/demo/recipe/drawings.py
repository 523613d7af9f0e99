"""The drawings: emoji of several vendors, read from unpacked npm packages, or the bundled Noto and Fluent ones.

The vendor that evaluation uses (Twemoji) is not in the table, so nothing here can open it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from regcache_jax.core.errors import UserError, installing
from regcache_jax.data import emoji

SIDE = emoji.SIDE
CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
NOT_DRAWINGS = (  # subcategories of those that show a sign rather than a thing
    "time", "keycap", "alphanum", "geometric", "arrow", "zodiac", "skin-tone", "av-symbol", "gender", "math",
    "punctuation", "currency", "transport-sign", "religion", "warning", "other-symbol",
)  # fmt: skip
HELD_OUT = 40  # FxEmoji drawings that never train: the development set


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji. `code` is its file name in the newer packages ("2600-fe0f"), `bare` the same without variation selector."""

    name: str
    code: str
    bare: str


Finder = Callable[[Path], Callable[[Concept], Path]]  # a vendor's folder -> (a concept -> where its drawing would be)


@dataclasses.dataclass(frozen=True)
class Vendor:
    """A set of drawings: its folder under the data folder, where that comes from, how often it is drawn in training."""

    name: str
    folder: str
    source: str
    licence: str
    weight: float
    find: Finder
    complete: bool = True  # a concept without this vendor's drawing is left out


def _noto(folder: Path) -> Callable[[Concept], Path]:
    return lambda concept: folder / "package/img/google/64" / f"{concept.code}.png"


def _blob(folder: Path) -> Callable[[Concept], Path]:
    listed = json.loads((folder / "package/emoji.json").read_text(encoding="utf-8"))
    images = {_bare(entry["unified"].lower()): entry["image"] for entry in listed}
    return lambda concept: folder / "package/img/google/64" / images.get(concept.bare, "missing")


def _svg(folder: Path) -> Callable[[Concept], Path]:
    def find(concept: Concept) -> Path:
        exact = folder / "package/assets" / f"{concept.code}.svg"
        return exact if exact.exists() else exact.with_name(f"{concept.bare}.svg")

    return find


def _emojione(folder: Path) -> Callable[[Concept], Path]:
    return lambda concept: folder / "package/assets/png" / f"{concept.bare}.png"


def _fxemoji(folder: Path) -> Callable[[Concept], Path]:
    found: dict[str, Path] = {}
    for path in sorted((folder / "svgs/FirefoxEmoji").glob("u*.svg")):
        match = re.match(r"u([0-9A-Fa-f]+)-[^.]*\.svg$", path.name)
        if match:
            found[match[1].lower().lstrip("0")] = path
    return lambda concept: found.get(concept.bare.lstrip("0"), folder / "missing")


VENDORS = (
    Vendor("noto", "google", "npm emoji-datasource-google 16.0.0", "Apache-2.0", 1.0, _noto),
    Vendor("blob", "google3", "npm emoji-datasource-google 3.0.0", "Apache-2.0", 0.8, _blob),
    Vendor("fluent", "fluent", "npm @lobehub/fluent-emoji-flat 1.1.0", "MIT", 1.0, _svg),
    Vendor("emojione", "emojione", "npm emojione 2.2.7", "CC BY 4.0", 1.2, _emojione),
    Vendor("modern", "fmodern", "npm @lobehub/fluent-emoji-modern 1.0.0", "MIT", 0.6, _svg),
    Vendor("fx", "fx", "github.com/mozilla/fxemoji", "CC BY 4.0", 1.2, _fxemoji, complete=False),
)


@dataclasses.dataclass(frozen=True)
class DrawingSet:
    """Drawings by concept and vendor (straight alpha), and which of them may train (missing and held-out ones may not)."""

    rgba: UInt8[np.ndarray, "C V 64 64 4"]
    names: tuple[str, ...]
    vendors: tuple[str, ...]
    weights: tuple[float, ...]
    trains: Bool[np.ndarray, "C V"]

    def keep(self, chosen: Sequence[int] | np.ndarray) -> DrawingSet:
        """The set with these concepts only."""
        names = tuple(self.names[index] for index in chosen)
        return dataclasses.replace(self, rgba=self.rgba[list(chosen)], names=names, trains=self.trains[list(chosen)])

    def keep_named(self, names: Sequence[str]) -> DrawingSet:
        """The set with those of its concepts that `names` lists."""
        return self.keep([index for index, name in enumerate(self.names) if name in set(names)])


def bundled_drawings() -> DrawingSet:
    """The Noto and Fluent drawings that the package holds: enough to try the recipe, too few for a good encoder."""
    vendors, names = emoji.SPLITS["train"], emoji.class_names()
    folder = Path(str(resources.files("regcache_jax") / "demo" / "data" / "emoji"))
    rgba = np.stack([[_read(folder / name / f"{row:03d}.png") for name in vendors] for row in range(len(names))])
    weights = tuple(vendor.weight for vendor in VENDORS if vendor.name in vendors)
    return DrawingSet(rgba, names, vendors, weights, np.ones(rgba.shape[:2], bool))


def read_drawings(root: Path, names: Sequence[str] | None = None) -> DrawingSet:
    """The drawings under `root` (one folder a vendor, see `VENDORS`) of the concepts that every complete vendor has, or of
    those among them that `names` lists.

    Raises UserError that lists the folders that are missing, with where to get them."""
    missing = [vendor for vendor in VENDORS if not (root / vendor.folder).is_dir()]
    if missing:
        wanted = "; ".join(f"{root / vendor.folder} (unpack {vendor.source})" for vendor in missing)
        raise UserError(f"drawings are missing: {wanted}")
    try:
        finders = [vendor.find(root / vendor.folder) for vendor in VENDORS]
        concepts = _concepts(json.loads((root / "google/package/emoji.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{root} does not hold the packages as npm unpacks them: {error}") from None
    rows, found = [], []
    for concept in concepts:
        if names is not None and concept.name not in names:
            continue
        paths = [find(concept) for find in finders]
        there = [path.exists() for path in paths]
        if all(exists or not vendor.complete for exists, vendor in zip(there, VENDORS, strict=True)):
            rows.append([_read(path) if exists else None for path, exists in zip(paths, there, strict=True)])
            found.append(concept.name)
    if not rows:
        raise UserError(f"{root} holds no concept that all of these have: {', '.join(v.folder for v in VENDORS)}")
    nothing = np.zeros((SIDE, SIDE, 4), np.uint8)
    rgba = np.stack([[nothing if drawing is None else drawing for drawing in row] for row in rows])
    trains = np.array([[drawing is not None for drawing in row] for row in rows])
    vendors, weights = zip(*((vendor.name, vendor.weight) for vendor in VENDORS), strict=True)
    return DrawingSet(rgba, tuple(found), vendors, weights, trains)


def hold_out(drawings: DrawingSet, vendor: str = "fx", count: int = HELD_OUT, seed: int = 5) -> DrawingSet:
    """Takes `count` drawings of one vendor out of training: the development set. A set without the vendor stays as it is."""
    if vendor not in drawings.vendors:
        return drawings
    column = drawings.vendors.index(vendor)
    trains = drawings.trains.copy()
    there = np.flatnonzero(trains[:, column])
    trains[np.random.default_rng(seed).permutation(there)[:count], column] = False
    return dataclasses.replace(drawings, trains=trains)


def _bare(code: str) -> str:
    return code.replace("-fe0f", "")


def _concepts(listed: list[dict[str, Any]]) -> list[Concept]:
    """Those of emoji.json that show a thing; unnamed ones go by their short name."""
    found = []
    for entry in listed:
        if entry["category"] in CATEGORIES and entry["subcategory"] not in NOT_DRAWINGS:
            code = entry["image"].removesuffix(".png")
            name = entry["name"].lower() if entry["name"] else entry["short_name"].replace("_", " ")
            found.append(Concept(name, code, _bare(code)))
    return found


def _read(path: Path) -> UInt8[np.ndarray, "64 64 4"]:
    """A picture file, reduced to 64 pixels. Vector drawings are rasterised at twice that size first."""
    source: Any = path
    if path.suffix == ".svg":
        try:
            import resvg_py
        except ImportError:
            raise UserError(f"vector drawings need resvg: {installing('recipe')}") from None
        source = io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=2 * SIDE, height=2 * SIDE)))
    with Image.open(source) as picture:
        return np.asarray(picture.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
