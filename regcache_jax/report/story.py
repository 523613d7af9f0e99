"""What a page is made of, as `regcache run` left it in a work folder: result rows, and the story of how they came to be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from etils import epath
from pydantic import Base64Bytes, Field
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError
from regcache_jax.files import results
from regcache_jax.files.bounded import read_json
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import is_sealed
from regcache_jax.report.tables import RIVALS, ROW_LABELS

Json = dict[str, Any]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Grid = Annotated[list[Annotated[list[Finite], Field(min_length=1)]], Field(min_length=1)]


class _Numbers(TypedDict):
    start: Count
    stop: Count
    copies: Finite
    delete_block: Count
    delete_count: Count
    num_registers: Count


class _Trial(TypedDict):
    numbers: _Numbers
    images: Annotated[int, Field(ge=1)]
    error: Finite


class _Claim(TypedDict):
    spread: Finite


class _Searched(TypedDict):
    sentence: str
    numbers: _Numbers
    baseline_error: Finite
    error: Finite
    claim: _Claim
    seconds: Finite
    trials: Annotated[list[_Trial], Field(min_length=1)]


class _Profile(TypedDict):
    groups: list[str]
    maximum: Annotated[list[Grid], Field(min_length=1)]
    median: Annotated[list[Grid], Field(min_length=1)]
    num_images: Count
    sink_share: Grid
    sinks_per_image: list[Finite]


class _Finding(TypedDict):
    sentence: str


class _Verdict(TypedDict):
    findings: list[_Finding]
    sensitive_block: Count
    most_sensitive: tuple[Count, str]


class _Sensitivity(TypedDict):
    sites: list[str]
    errors: Grid


class _Inspected(TypedDict):
    profile: _Profile
    sensitivity: _Sensitivity
    verdict: _Verdict


class _Map(TypedDict):
    name: str
    block: Count
    thumbnail: Base64Bytes
    plain: Grid
    registers: Grid


class _Nearness(TypedDict):
    mean: Finite
    worst: Finite
    maps: Annotated[list[Grid], Field(min_length=1)]


class _Patches(TypedDict):
    pictures: Annotated[int, Field(ge=1)]
    rows: dict[Literal["plain", "registers", "auto"], _Nearness]


class _Figures(TypedDict):
    scheme: str
    profile: _Profile
    errors: Grid
    patches: _Patches
    maps: Annotated[list[_Map], Field(min_length=1)]


class _Gain(TypedDict):
    acc1: Finite
    interval: tuple[Finite, Finite]


class _Flip(TypedDict):
    name: str
    picture: Base64Bytes
    answers: list[str]


class _Flips(TypedDict):
    counts: list[Count]
    shown: list[_Flip]


class _Changed(TypedDict):
    rows: Annotated[list[str], Field(min_length=1)]
    gain: _Gain | None
    loss: _Gain
    rivals: dict[str, _Gain]
    classes: list[list[str | int]]
    flips: _Flips | None


class _Intervals(TypedDict):
    acc1: tuple[Finite, Finite]
    cosine: tuple[Finite, Finite]


class _Changes(TypedDict):
    intervals: list[_Intervals]
    schemes: Annotated[dict[str, _Changed], Field(min_length=1)]
    bytes: dict[str, Count]


class _Costs(TypedDict):
    unit: str
    of: dict[
        str, Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1, max_length=2)]
    ]


class _Story(TypedDict):
    inspect: _Inspected
    search: dict[str, _Searched]
    figures: _Figures
    costs: _Costs
    changes: _Changes
    config: dict[str, Any]
    made_with: dict[str, str]


def read_story(workdir: epath.PathLike) -> tuple[list[results.Row], Json]:
    """The rows and the story that `regcache run` left in a work folder. Raises UserError where there are none, and where they are not as
    they were written."""
    folder = as_path(workdir)
    rows_file, story_file = folder / "results.json", folder / "story.json"
    if not rows_file.exists() or not story_file.exists():
        raise UserError(f"{folder} holds no finished run (results.json and story.json); `regcache run` makes one")
    rows = results.read(rows_file)
    read_json(story_file, _Story)
    story: Json = read_json(story_file, dict[str, Any])  # as it is written: a thumbnail stays text
    if not is_sealed(story):
        raise UserError(f"{story_file} is not as it was written (its hash differs); run `regcache run` again")
    faults = [*_faults_of_rows(rows), *_faults_of_story(story), *_faults_of_changes(story, len(rows))]
    if faults:
        raise UserError(f"{folder}: {'; '.join(faults)}; run `regcache run` again")
    return rows, story


def _faults_of_rows(rows: list[results.Row]) -> list[str]:
    """What a page cannot do without in its rows."""
    if not rows:
        return ["results.json holds no row"]
    needed = ("scheme", "row", "registers", "note", "examples", "cost", "versions")
    faults = [
        f"row {number} of results.json has no {name}"
        for number, row in enumerate(rows, 1)
        for name in needed
        if name not in row["quantization"]
    ]
    faults += [
        f"row {number} of results.json has no acc1"
        for number, row in enumerate(rows, 1)
        if "acc1" not in row["metrics"]
    ]
    return (
        faults[:3]
        or [
            f"row {number} of results.json is of the unknown kind {kind!r}"
            for number, row in enumerate(rows, 1)
            if (kind := row["quantization"]["row"]) not in ROW_LABELS
        ][:3]
    )


def _faults_of_story(story: Json) -> list[str]:
    """Numbers of blocks beyond those that the profiles have, and maps of several sizes."""
    profiles = (story["inspect"]["profile"], story["figures"]["profile"])
    blocks = min(len(profile[name]) for profile in profiles for name in ("sink_share", "sinks_per_image"))
    maps = story["figures"]["maps"]
    faults = [
        f"story.json has a map of block {each['block']} and {blocks} blocks" for each in maps if each["block"] >= blocks
    ]
    patches = [found["maps"] for found in story["figures"]["patches"]["rows"].values()]
    of_picture = [[each["plain"], each["registers"], *of] for each, *of in zip(maps, *patches, strict=False)]
    shapes = [{(len(grid), len(row)) for grid in grids for row in grid} for grids in of_picture]
    whole = (
        {"plain", "registers"} <= story["figures"]["patches"]["rows"].keys()
        and all(len(found) == len(maps) for found in patches)
        and all(len(each) == 1 for each in shapes)
    )
    return faults[:1] + ([] if whole else ["the maps in story.json are not of the same pictures, or of several sizes"])


def _faults_of_changes(story: Json, num_rows: int) -> list[str]:
    """Intervals for other rows than there are, and schemes without bytes or costs or of unknown rows."""
    changes, costs, faults = story["changes"], story["costs"]["of"], []
    if len(changes["intervals"]) != num_rows:
        faults.append(f"story.json has intervals for {len(changes['intervals'])} of {num_rows} rows")
    for scheme, found in changes["schemes"].items():
        if not {scheme, "float"} <= set(changes["bytes"]):
            faults.append(f"story.json has no bytes for {scheme}")
        if not {scheme, "float"} <= set(costs) or len(costs[scheme]) != 2:
            faults.append(f"story.json has no costs for {scheme}")
        if not set(found["rows"]) <= {"float", *ROW_LABELS} or not set(found["rivals"]) <= set(RIVALS):
            faults.append(f"story.json compares unknown rows at {scheme}")
        if found["flips"] is not None and len(found["flips"]["counts"]) != len(found["rows"]) - 1:
            faults.append(f"story.json counts flips of other rows at {scheme}")
    return faults[:3]
