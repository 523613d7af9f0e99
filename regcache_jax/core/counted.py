"""A number with what it counts, for sentences."""


def counted(number: float, thing: str) -> str:
    """`1 partition`, `12,000 partitions`, `2.5 copies`; `thing` is in the singular, adjectives in front."""
    plural = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}es" if thing.endswith(("s", "ch")) else f"{thing}s"
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing if number == 1 else plural}"
