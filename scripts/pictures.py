"""The pictures of README and docs that are measured: `python scripts/pictures.py`, about a minute of a CPU, writes them to docs/pictures.

All come from the bundled encoder: its sinks on a few drawings, and its norms by block, without registers and with those that a search
finds. The drawn ones beside them (`levels.svg`, `register.svg`) are written by hand."""

from __future__ import annotations

from pathlib import Path

import regcache_jax as rc
from regcache_jax.data import open_dataset
from regcache_jax.report.plots import heat_map, norms_by_block, sheet
from regcache_jax.report.sinks import sink_maps

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
SIDE, GAP, LINE = 128, 12, 34


def sinks(maps: list[dict]) -> str:
    """One column a picture: the picture, its patches' norms without and with registers, on one scale. Narrow, so that its words can be
    read on a telephone."""
    largest = max(value for each in maps for row in each["plain"] for value in row)
    width, height = len(maps) * (SIDE + GAP) + GAP, 3 * (LINE + SIDE) + GAP
    parts = [
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" '
        'font-family="system-ui, sans-serif" font-size="17">',
        "<title>Norms of the patches of a few pictures, without and with registers</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    numbers = [max(max(map(max, each[kind])) for each in maps) for kind in ("plain", "registers")]
    captions = (
        f"pictures, and the norms of their patches before block {maps[0]['block']}",
        f"without registers (the largest: {numbers[0]:.0f}; bright is large)",
        f"with registers (the largest: {numbers[1]:.0f}; black is deleted)",
    )
    for row, caption in enumerate(captions):
        parts.append(f'<text x="{GAP}" y="{row * (LINE + SIDE) + 24}">{caption}</text>')
    for column, each in enumerate(maps):
        left = GAP + column * (SIDE + GAP)
        image = f"data:image/png;base64,{each['thumbnail']}"
        parts.append(f'<image x="{left}" y="{LINE}" width="{SIDE}" height="{SIDE}" href="{image}"/>')
        for row, grid in enumerate((each["plain"], each["registers"]), 1):
            squares = heat_map(grid, largest, SIDE).split("</style>")[1].removesuffix("</svg>")
            parts.append(f'<g transform="translate({left} {LINE + row * (LINE + SIDE)})">{squares}</g>')
    return "".join([*parts, "</svg>"])


def main() -> None:
    """Writes the pictures."""
    model = rc.load(rc.bundled_model())
    found = rc.search(model.encoder, open_dataset("emoji", split="train", limit=128), "w8a8")
    registered = model.encoder.with_plan(found.plan)
    maps = sink_maps(model.encoder, registered, open_dataset("emoji", split="test"), model)[:4]
    pictures = open_dataset("emoji", split="train", limit=128)
    images = [model.preprocess(pictures[number].image) for number in range(len(pictures))]
    profiles = {
        name: rc.inspect(encoder, images)
        for name, encoder in (("no registers", model.encoder), ("registers", registered))
    }
    norms = sheet([("l-inf norms of patch tokens at the blocks' inputs", norms_by_block(profiles))], "norms by block")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "sinks.svg").write_text(sinks(maps) + "\n")
    (FOLDER / "norms.svg").write_text(norms + "\n")


if __name__ == "__main__":
    main()
