"""The verdict: what kind of outliers an encoder has, what each costs (where it was measured), and which remedy fits. Registers cure patch
sinks and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from regcache_jax.registers.inspect import GROUPS, PLACES, SINK_RATIO, Profile
from regcache_jax.registers.kinds import NOTICED, OUTLIERS, standings
from regcache_jax.registers.remedies import advised
from regcache_jax.registers.stakes import Stakes

ADVICE = {
    "patch sinks": "prefix registers and deletion (`regcache search`)",
    "class-token outlier": "scales by token group (`--activations group`); RegCache may not delete this token",
    "trained-register outlier": "scales by token group (`--activations group`); RegCache may not delete these tokens",
    "channel outlier": "SmoothQuant or rotation, or float at that site; no register can touch a channel shared by all tokens",
    "none": "plain int8 will do",
}
"""What fits a kind of outlier, until remedies are measured (`remedies.advised`)."""

WORTHWHILE = 0.1
"""The part of the plain error from which on an outlier is worth a remedy, also where its norm does not reach the line."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of outlier, the block and place where it first stands out, its largest ratio anywhere, and by name the other
    figures that it rests on. `line`: from which ratio on it is called one. `worth`: the part of the plain error that goes away without it
    alone, `worth_last`: with it where all others are gone (None: not measured). `remedy`: what measuring says of remedies."""

    kind: str
    block: int | None
    place: str | None
    ratio: float
    figures: dict[str, float]
    line: float = SINK_RATIO
    worth: float | None = None
    worth_last: float | None = None
    remedy: str | None = None

    @property
    def is_worthwhile(self) -> bool:
        """Whether it was measured to cost enough for a remedy, alone or with all others gone."""
        return max(self.worth or 0.0, self.worth_last or 0.0) >= WORTHWHILE

    @property
    def counts(self) -> bool:
        """Whether it is an outlier by its norm, or by what it costs."""
        return self.ratio >= self.line or self.is_worthwhile

    def sentence(self) -> str:
        """The finding with its figures and its remedy, in one line."""
        if self.kind == "none":
            return f"no outliers (largest ratio {self.ratio:.1f}, below {SINK_RATIO:.0f}): {ADVICE['none']}"
        said = f"{self.kind} from block {self.block} on ({self.place}), up to {digits_of(self.ratio)} x typical"
        said += f" (below the line of {self.line:.0f} x)" if self.ratio < self.line else ""
        if self.worth is None or self.worth_last is None:
            return f"{said}: {ADVICE[self.kind]}"
        said += f", worth {max(0.0, self.worth):.0%} of the plain error"
        if abs(self.worth_last - self.worth) > 0.01:
            said += f", {max(0.0, self.worth_last):.0%} where all other outliers are gone"
        return f"{said}: {self.remedy or ADVICE[self.kind] if self.is_worthwhile else 'little to take away'}"

    def evidence(self) -> str:
        """The other figures, in one line."""
        return ", ".join(f"{name} {value:.3g}" for name, value in self.figures.items())


def digits_of(ratio: float) -> str:
    """A ratio that is not rounded across its line."""
    return f"{ratio:.0f}" if ratio >= 2 * SINK_RATIO else f"{ratio:.3g}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All findings, the sensitive block, (where measured) the most sensitive block and site and what is at stake, and what sinks carry."""

    findings: tuple[Finding, ...]
    sensitive_block: int
    most_sensitive: tuple[int, str] | None = None
    stakes: Stakes | None = None
    carried: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds found, in the order of `KINDS`: those that count, by norm or by cost, or none."""
        return tuple(finding.kind for finding in self.findings if finding.counts) or ("none",)

    @property
    def where(self) -> str:
        """The sensitive block, and what it is."""
        begin = "sinks begin" if "patch sinks" in self.kinds else "no sinks; the largest patches at fc2's input"
        return f"sensitive block: {self.sensitive_block} ({begin})"

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values, sentences included."""
        return {
            "findings": [
                {**dataclasses.asdict(finding), "counts": finding.counts, "sentence": finding.sentence()}
                for finding in self.findings
            ],
            "sensitive_block": self.sensitive_block,
            "most_sensitive": self.most_sensitive,
            "carried": self.carried,
            "stakes": None
            if self.stakes is None
            else {**dataclasses.asdict(self.stakes), "sentences": self.stakes.sentences()},
        }


CARRIES = 0.1
"""The part of what a head moves from which on a sink broadcasts; below it in every head it is a null sink, there to be attended to."""


def carried(profile: Profile) -> str | None:
    """What sinks carry, block by block, in one line: whether they may go. None without sinks."""
    blocks = np.flatnonzero(profile.sinks_per_image > 0)
    if not len(blocks):
        return None
    most = profile.sink_moved[blocks].max(axis=1)
    broadcasting = blocks[most >= CARRIES]
    if not len(broadcasting):
        return (
            f"null sinks: in no head of blocks {_ranges(blocks)} are they more than {most.max():.1%} of what attention moves "
            f"(their values are {profile.sink_value[blocks].mean():.2g} x an ordinary patch's); deleting them takes nothing from the others"
        )
    block = broadcasting[int(np.argmax(profile.sink_moved[broadcasting].max(axis=1)))]
    head = int(np.argmax(profile.sink_moved[block]))
    heads = int((profile.sink_moved[broadcasting] >= CARRIES).sum())
    return (
        f"broadcasting sinks in blocks {_ranges(broadcasting)} ({heads} heads): up to {profile.sink_moved[block, head]:.0%} of what head "
        f"{head} of block {block} moves comes from them (values {profile.sink_value[block, head]:.2g} x an ordinary patch's); "
        "deleting them takes that from the others, a register with their values keeps it"
    )


def _ranges(blocks: np.ndarray) -> str:
    """Numbers of blocks, runs as first-last."""
    runs = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _sink_figures(profile: Profile) -> dict[str, float]:
    """How many sinks there are, where they sit, what they draw, and how alike they are, at the block that holds most of them."""
    block = profile.sink_block
    share = profile.sink_share[block]
    return {
        "most at the input of block": float(block),
        "sinks an image": float(profile.sinks_per_image[block]),
        "share of attention": float(profile.sink_attention[block]),
        "values over ordinary": float(profile.sink_value[block].mean()),
        "share of what attention moves": float(profile.sink_moved[block].mean()),
        "cosine between images": float(profile.sink_cosine[block]),
        "cosine of ordinary patches": float(profile.ordinary_cosine[block]),
        "most frequent at token": float(np.argmax(share)),
        "there in a share of images": float(share.max()),
    }


def _token_figures(profile: Profile, group: str) -> dict[str, float]:
    """The largest norm in a group, and the median patch's at the same place and block."""
    place, block = np.unravel_index(int(np.argmax(profile.ratio(group))), profile.ratio(group).shape)
    return {
        "largest norm": float(profile.maximum[place, block, GROUPS.index(group)]),
        "median patch": float(profile.median[place, block, GROUPS.index("patch")]),
    }


def _channel_figures(profile: Profile) -> dict[str, float]:
    """Which channel it is, and the largest norm of ordinary patches there."""
    place, block = np.unravel_index(int(np.argmax(profile.channel_ratio)), profile.channel_ratio.shape)
    return {
        "channel": float(profile.channel[place, block]),
        "median patch": float(profile.median[place, block, GROUPS.index("patch")]),
    }


def judge(profile: Profile, sensitivity: np.ndarray | None = None, stakes: Stakes | None = None) -> Verdict:
    """Reads the kinds of outliers off a profile, and off `stakes` what each costs. Each kind has its own line and its own figures; several
    may hold. What comes near its line is listed too: only its cost can say whether it counts."""
    figures: dict[str, Callable[[], dict[str, float]]] = dict(
        zip(
            OUTLIERS,
            (
                lambda: _sink_figures(profile),
                lambda: _token_figures(profile, "class"),
                lambda: _token_figures(profile, "register"),
                lambda: _channel_figures(profile),
            ),
            strict=True,
        )
    )
    findings, standing = [], standings(profile)
    remedy = None if stakes is None else advised(stakes.remedies, stakes.plain)
    for kind, (ratio, line) in standing.items():
        if standing[kind].is_noticed:
            reached = (ratio >= (line if standing[kind].is_outlier else NOTICED * line)).any(axis=0)
            block = int(np.flatnonzero(reached)[0])
            place = PLACES[int(np.argmax(ratio[:, block]))]
            worth = (None, None) if stakes is None else (stakes.worth(kind), stakes.worth_last(kind))
            findings.append(Finding(kind, block, place, float(ratio.max()), figures[kind](), line, *worth, remedy))
    if not any(finding.counts for finding in findings):
        largest = {kind: float(ratio.max()) for kind, (ratio, _) in standing.items()}
        findings.append(Finding("none", None, None, max(largest.values()), largest))
    most = None
    if sensitivity is not None:
        row, column = np.unravel_index(int(np.argmax(sensitivity)), sensitivity.shape)
        most = (int(row), PLACES[1 + int(column)])
    return Verdict(tuple(findings), profile.sensitive_block, most, stakes, carried(profile))
