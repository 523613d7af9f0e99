"""The one exception for what a user can put right, and the one place that makes foreign text fit to be shown."""

LONGEST_PIECE = 300
"""Characters of one thing that came from a file, a name or another library, as a message shows it."""
LONGEST_MESSAGE = 2000


def shown(thing: object, limit: int = LONGEST_PIECE) -> str:
    """A thing as one line of a message: what could steer a terminal or start a line (control characters, escapes, marks of direction)
    is written as Python writes it, and what is too long is cut in the middle, so that its beginning and its end can be read."""
    text = str(thing)
    if len(text) > limit:
        half = (limit - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return escaped(text)


def escaped(text: str) -> str:
    """The same without the cut."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def installing(extra: str) -> str:
    """How an extra is installed, in the words of README."""
    return f'`pip install ".[{extra}]"` in the clone of regcache_jax'


class UserError(ValueError):
    """Bad input: the message says what was asked, what came and what would be right, and needs no traceback.

    It is one line, whatever the file that it speaks of has put into it."""

    def __str__(self) -> str:
        return shown(super().__str__(), LONGEST_MESSAGE)
