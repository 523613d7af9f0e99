"""How wide the columns of a table are on a terminal: no number is broken, and words only where nothing else is left."""

from __future__ import annotations

import re
from collections.abc import Sequence

FIGURE = re.compile(r"(?=.*\d|$)[-+\de.,:%±x/ ]*|inf|nan")
"""A cell that is a number, or two, or empty."""


class Columns:
    """The columns of a table. `figures`: which hold numbers alone. `wanted`: the width of the longest text of each; `whole`: that at which
    no word and no number is broken; `numbers`: that at which no number is."""

    def __init__(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.heads, self.rows = heads, rows
        cells = [[row[index] for row in rows] for index in range(len(heads))]
        texts = [[head, *column] for head, column in zip(heads, cells, strict=True)]
        self.figures = [all(map(FIGURE.fullmatch, column)) for column in cells]
        self.wanted = [max(map(len, own)) for own in texts]
        longest = [max((len(word) for text in own for word in text.split()), default=1) for own in texts]
        self.numbers = [
            max(map(len, column), default=1) if figures else 1
            for column, figures in zip(cells, self.figures, strict=True)
        ]
        self.whole = list(map(max, longest, self.numbers))

    def without(self, number: int) -> Columns:
        """The same without one column."""
        heads, *rows = ([*row[:number], *row[number + 1 :]] for row in (self.heads, *self.rows))
        return Columns(heads, rows)

    def gap(self, width: int) -> int:
        """Spaces between columns: two where that leaves room for whole words, else one."""
        return 2 if sum(self.whole) + 2 * (len(self.heads) - 1) <= width else 1

    def room(self, width: int) -> int:
        """What a terminal leaves for texts."""
        return width - self.gap(width) * (len(self.heads) - 1)

    def widths(self, width: int) -> list[int]:
        """As wide as the texts; where that is more than there is room for, the widest give way first: down to their words, then words of
        texts are broken, then words of heads, and numbers last."""
        found, room = list(self.wanted), self.room(width)
        texts = [own if figures else 1 for own, figures in zip(self.whole, self.figures, strict=True)]
        for least in (self.whole, texts, self.numbers, [1] * len(found)):
            while sum(found) > room and (giving := [index for index, own in enumerate(found) if own > least[index]]):
                found[max(giving, key=found.__getitem__)] -= 1
        return found
