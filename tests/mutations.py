"""Changes that spoil a sound file: of bytes, of one member of an archive, of the values of a JSON tree, of the lines of a text."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

LARGE = (2**31 - 1, 2**32, 2**63 - 1, 2**64, 10**12, 10**30, -1, 0)
ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    [[]],
    "x",
    "",
    -1,
    0,
    0.5,
    1e308,
    10**30,
    True,
    "1",
    {"a": 1},
    [1, 2, 3],
    "\x1b[31m\n",
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_CHANGES)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    near = rng.random() < 0.5  # half of them near the beginning, where headers are
    return rng.randrange(max(1, min(len(content), 400) if near else len(content)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\0"
    place, bit = _place(content, rng), 1 << rng.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _remove(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + rng.choice((1, 2, 8, 64)) :]


def _splice(content: bytes, rng: random.Random) -> bytes:
    start, target, length = _place(content, rng), _place(content, rng), rng.choice((1, 4, 16, 200))
    return content[:target] + content[start : start + length] + content[target:]


def _enlarge(content: bytes, rng: random.Random) -> bytes:
    numbers = list(re.finditer(rb"\d+", content[:100_000]))
    if not numbers:
        return _overwrite(content, rng)
    found = rng.choice(numbers)
    return content[: found.start()] + str(rng.choice(LARGE)).encode() + content[found.end() :]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    form, place = rng.choice(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"]), _place(content, rng)
    size = struct.calcsize(form)
    number = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (4 * size)))
    return content[:place] + struct.pack(form, number) + content[place + size :]


def _swap(content: bytes, rng: random.Random) -> bytes:
    names = list(re.finditer(rb'"[^"]{1,80}"|[a-z_.]{4,}', content[:100_000]))
    if len(names) < 2:
        return _flip(content, rng)
    first, second = sorted(rng.sample(names, 2), key=lambda found: found.start())
    between = content[first.end() : second.start()]
    return content[: first.start()] + second[0] + between + first[0] + content[second.end() :]


_CHANGES = (_flip, _cut, _remove, _splice, _enlarge, _overwrite, _swap)


def change_member(content: bytes, rng: random.Random) -> bytes:
    """A zip archive with one member changed and its CRC right again; one time in four the archive itself is changed."""
    if rng.random() < 0.25:
        return mutate(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    listing = [name for name in members if name.endswith(".pkl")]
    name = listing[0] if listing and rng.random() < 0.7 else rng.choice(list(members))
    members[name] = mutate(members[name], rng)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for each, held in members.items():
            archive.writestr(each, held)
    return written.getvalue()


def change_tree(content: bytes, rng: random.Random) -> bytes:
    """JSON with one to three of its values replaced, renamed or removed; one time in eight its bytes are changed."""
    if rng.random() < 0.125:
        return mutate(content, rng)
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = list(_containers(tree))
        node = rng.choice(nodes)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        key = rng.choice(keys)
        match rng.randrange(8):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(["x", "type", "", "a" * 5000])] = node.pop(key)
            case 2:
                node[key] = copy.deepcopy(node[rng.choice(keys)])
            case 3 if type(node[key]) is int:
                node[key] = rng.choice(LARGE)
            case _:
                node[key] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(tree).encode()


def _containers(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from _containers(child)


def change_shard(content: bytes, rng: random.Random) -> bytes:
    """A tar file with one file in it changed, renamed, cut or doubled, its checksums right; half of the time its bytes are changed."""
    if rng.random() < 0.5:
        return mutate(content, rng)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    place = rng.randrange(len(members))
    info, held = members[place]
    match rng.randrange(6):
        case 0:
            info.name = rng.choice(
                ["../x.png", "/etc/x.png", "x", "a.b.c.png", "\x1b[31m.cls", "x" * 5000 + ".png", ".", "0.cls"]
            )
        case 1:
            members.insert(place, members[rng.randrange(len(members))])
        case 2:
            info.type, info.linkname = (
                rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]),
                "x",
            )
            held = b""
        case 3:
            held = rng.choice([b"", b"-1", b"9" * 30, b"\xff\xfe", b"1\n2", b"{}", b"[" * 9999, b'{"caption": 3}'])
        case _:
            held = mutate(held, rng)
    members[place] = info, held
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for each, data in members:
            each.size = len(data)
            archive.addfile(each, io.BytesIO(data))
    return written.getvalue()


def change_lines(content: bytes, rng: random.Random) -> bytes:
    """A text with one of its lines changed, left out, doubled, or put elsewhere."""
    lines = content.splitlines(keepends=True)
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[place]
        case 1:
            lines.insert(other, lines[place])
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case _:
            lines[place] = mutate(lines[place], rng)
    return b"".join(lines)
