"""The verdict: what kind of outliers an encoder has, and which remedy fits. Registers cure patch sinks and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from regcache_jax.registers.inspect import GROUPS, PLACES, SINK_RATIO, Profile

CHANNEL_RATIO = 8.0
"""A channel is an outlier where it stands this many times above the 95th percentile of the channels, in ordinary tokens."""

KINDS = ("patch sinks", "class-token outlier", "trained-register outlier", "channel outlier", "none")

ADVICE = {
    "patch sinks": "prefix registers and deletion (`regcache search`)",
    "class-token outlier": "scales by token group (`--activations group`); RegCache may not delete this token",
    "trained-register outlier": "scales by token group (`--activations group`); RegCache may not delete these tokens",
    "channel outlier": "SmoothQuant or rotation, or float at that site; no register can touch a channel shared by all tokens",
    "none": "plain int8 will do",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of outlier, the block and place where it first stands out, its largest ratio anywhere, and by name the other
    figures that it rests on."""

    kind: str
    block: int | None
    place: str | None
    ratio: float
    figures: dict[str, float]

    def sentence(self) -> str:
        """The finding with its figure and its remedy, in one line."""
        if self.kind == "none":
            return f"no outliers (largest ratio {self.ratio:.1f}, below {SINK_RATIO:.0f}): {ADVICE['none']}"
        where = f"from block {self.block} on ({self.place}), up to {self.ratio:.0f} x typical"
        return f"{self.kind} {where}: {ADVICE[self.kind]}"

    def evidence(self) -> str:
        """The other figures, in one line."""
        return ", ".join(f"{name} {value:.3g}" for name, value in self.figures.items())


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All findings, the sensitive block, and (where measured) the most sensitive block and site."""

    findings: tuple[Finding, ...]
    sensitive_block: int
    most_sensitive: tuple[int, str] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds found, in the order of `KINDS`."""
        return tuple(finding.kind for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values, sentences included."""
        return {
            "findings": [{**dataclasses.asdict(finding), "sentence": finding.sentence()} for finding in self.findings],
            "sensitive_block": self.sensitive_block,
            "most_sensitive": self.most_sensitive,
        }


def _sink_figures(profile: Profile) -> dict[str, float]:
    """How many sinks there are, where they sit, what they draw, and how alike they are, at the block that holds most of them."""
    block = profile.sink_block
    share = profile.sink_share[block]
    return {
        "most at the input of block": float(block),
        "sinks an image": float(profile.sinks_per_image[block]),
        "share of attention": float(profile.sink_attention[block]),
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


def judge(profile: Profile, sensitivity: np.ndarray | None = None) -> Verdict:
    """Reads the kinds of outliers off a profile. Each kind has its own threshold and its own figures; several may hold."""
    tables: dict[str, tuple[Any, float, Callable[[], dict[str, float]]]] = {
        "patch sinks": (profile.ratio("patch"), SINK_RATIO, lambda: _sink_figures(profile)),
        "class-token outlier": (profile.ratio("class"), SINK_RATIO, lambda: _token_figures(profile, "class")),
        "trained-register outlier": (
            profile.ratio("register"),
            SINK_RATIO,
            lambda: _token_figures(profile, "register"),
        ),
        "channel outlier": (profile.channel_ratio, CHANNEL_RATIO, lambda: _channel_figures(profile)),
    }
    findings = []
    for kind, (ratio, threshold, figures) in tables.items():
        if (ratio >= threshold).any():
            block = int(np.flatnonzero((ratio >= threshold).any(axis=0))[0])
            findings.append(
                Finding(kind, block, PLACES[int(np.argmax(ratio[:, block]))], float(ratio.max()), figures())
            )
    if not findings:
        largest = {kind: float(ratio.max()) for kind, (ratio, _, _) in tables.items()}
        findings.append(Finding("none", None, None, max(largest.values()), largest))
    most = None
    if sensitivity is not None:
        row, column = np.unravel_index(int(np.argmax(sensitivity)), sensitivity.shape)
        most = (int(row), PLACES[1 + int(column)])
    return Verdict(tuple(findings), profile.sensitive_block, most)
