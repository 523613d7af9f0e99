"""The verdict: what kind of outliers an encoder has, and which remedy fits. Registers cure patch sinks and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from regcache_jax.registers.inspect import PLACES, SINK_RATIO, Profile

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
    """One kind of outlier, the block and place where it first stands out, and its largest ratio anywhere."""

    kind: str
    block: int | None
    place: str | None
    ratio: float

    def sentence(self) -> str:
        """The finding with its figure and its remedy, in one line."""
        if self.kind == "none":
            return f"no outliers (largest ratio {self.ratio:.1f}, below {SINK_RATIO:.0f}): {ADVICE['none']}"
        where = f"from block {self.block} on ({self.place}), up to {self.ratio:.0f} x typical"
        return f"{self.kind} {where}: {ADVICE[self.kind]}"


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


def judge(profile: Profile, sensitivity: np.ndarray | None = None) -> Verdict:
    """Reads the kinds of outliers off a profile. Each kind has its own threshold and its own figures; several may hold."""
    tables = {
        "patch sinks": (profile.ratio("patch"), SINK_RATIO),
        "class-token outlier": (profile.ratio("class"), SINK_RATIO),
        "trained-register outlier": (profile.ratio("register"), SINK_RATIO),
        "channel outlier": (profile.channel_ratio, CHANNEL_RATIO),
    }
    findings = []
    for kind, (ratio, threshold) in tables.items():
        if (ratio >= threshold).any():
            block = int(np.flatnonzero((ratio >= threshold).any(axis=0))[0])
            findings.append(Finding(kind, block, PLACES[int(np.argmax(ratio[:, block]))], float(ratio.max())))
    if not findings:
        findings.append(Finding("none", None, None, float(max(table.max() for table, _ in tables.values()))))
    most = None
    if sensitivity is not None:
        row, column = np.unravel_index(int(np.argmax(sensitivity)), sensitivity.shape)
        most = (int(row), PLACES[1 + int(column)])
    return Verdict(tuple(findings), profile.sensitive_block, most)
