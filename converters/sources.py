"""From what a user types to files on this machine: a folder, a file, a hub id, `open_clip:NAME,TAG`, `FILE.npz:img`."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from pathlib import Path
from typing import Any

from regcache_jax.converters import vlm
from regcache_jax.converters.readers import READERS, Tensors, read_tensors, weight_map

from regcache_jax.core.errors import UserError, installing
from regcache_jax.encoders import catalog, tokenizers
from regcache_jax.files.bounded import read_json

# In the order in which they are preferred: files that cannot hold code first.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "flax_model.msgpack",
)
_SIDE_FILES = (
    *(pattern for files in tokenizers.FILES.values() for patterns in files for pattern in patterns),
    "tokenizer_config.json",
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
ANSWERS = 10.0
"""Seconds in which a hub that can be reached answers."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint on this machine: the file of its weights (or the index of its shards), the folder where its other files
    stand, and which part of it is wanted (`img`, or None for all)."""

    asked: str
    weights: Path
    folder: Path
    row: catalog.Row | None = None
    part: str | None = None

    def tensors(self) -> Tensors:
        """The tensors of the file or the shards, or of the part that is wanted (of a vision-language model its vision tower); only names
        and shapes are read now."""
        kind = vlm.vlm_of(self.config)
        tensors = read_tensors(self.weights, None if kind is None else kind.is_tower)
        texts = self.weights.with_name(self.weights.name.replace("_vision.npz", "_text.npz"))
        if texts != self.weights and texts.is_file():  # TIPS's towers are files of their own
            tensors = {**tensors, **read_tensors(texts)}
        if any(name.startswith("visual_model.head.") for name in tensors):  # and so is the trunk of dino.txt
            tensors = self._with_trunk(tensors)
        if self.part is None:
            return tensors
        return {
            name: tensor for name, tensor in tensors.items() if name.removeprefix("params/").startswith(f"{self.part}/")
        }

    def _with_trunk(self, tensors: Tensors) -> Tensors:
        """A dino.txt with its trunk, if that is not in the same file. Raises UserError where it does not stand beside it."""
        below = "visual_model.backbone."
        if any(name.startswith(below) for name in tensors):
            return tensors
        trunks = sorted(self.folder.glob("dinov3_vit*_pretrain_*.pth"))
        if len(trunks) != 1:
            raise UserError(
                f"{self.weights} holds the head and the texts of a dino.txt; the file of its trunk (dinov3_vitl16_pretrain_lvd1689m-"
                f"8aa4cbdd.pth) should stand beside it, there {'are several' if trunks else 'is none'}"
            )
        return {**tensors, **{f"{below}{name}": tensor for name, tensor in read_tensors(trunks[0]).items()}}

    @property
    def name(self) -> str:
        """What the checkpoint is called: by its hub id, its folder, or, where that holds a file of another name, its file."""
        if not Path(self.asked).exists() and _HUB_ID.fullmatch(self.asked):
            return self.asked.split("/")[-1]
        return self.folder.name if self.weights.name in WEIGHT_FILES else self.weights.stem

    @property
    def torchscript(self) -> bool:
        """Whether the weights are a TorchScript archive, which also holds code (never read here)."""
        if not zipfile.is_zipfile(self.weights):
            return False
        with zipfile.ZipFile(self.weights) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that belongs to the weights: many folders hold transformers' and open_clip's."""
        names = ["config.json", "open_clip_config.json"]
        return self.json(*(names[::-1] if self.weights.name.startswith("open_clip") else names))

    def json(self, *names: str) -> dict[str, Any]:
        """The first of these JSON files that stands beside the weights; empty if none does."""
        for name in names:
            if (self.folder / name).is_file():
                return read_json(self.folder / name, dict[str, Any])
        return {}

    def special_ids(self) -> dict[str, int]:
        """Ids of the tokenizer's `bos_token`, `eos_token` and `pad_token`, as far as its files say them."""
        told = self.json("tokenizer_config.json")
        contents = {mark: told.get(mark) for mark in ("bos_token", "eos_token", "pad_token")}
        words = {mark: word.get("content") if isinstance(word, dict) else word for mark, word in contents.items()}
        vocabulary = self._vocabulary()
        return {mark: vocabulary[word] for mark, word in words.items() if isinstance(word, str) and word in vocabulary}

    def _vocabulary(self) -> dict[str, int]:
        tokenizer = self.json("tokenizer.json")
        model = tokenizer.get("model")
        words = dict(model.get("vocab", {})) if isinstance(model, dict) and isinstance(model.get("vocab"), dict) else {}
        words |= {
            str(each.get("content")): each.get("id")
            for each in tokenizer.get("added_tokens") or []
            if isinstance(each, dict)
        }
        return {word: number for word, number in (words or self.json("vocab.json")).items() if type(number) is int}

    def files(self, tensors: Tensors) -> list[Path]:
        """The files that hold the weights."""
        names = sorted({tensor.file for tensor in tensors.values()})
        return [self.weights.parent / name for name in names]


def is_checkpoint(name: str) -> bool:
    """Whether a file's name ends as a checkpoint's."""
    return name.endswith(tuple(READERS))


def resolve(asked: str) -> Source:
    """Finds the checkpoint that `asked` names, downloading it where it is on the hub and not on this machine.

    Raises UserError that says where was looked, and which known names are near."""
    path, part = _split_part(asked)
    row = catalog.find(asked) or catalog.find(path.name)
    if row is not None and row.spec is None:
        raise UserError(f"{row.huggingface} is not supported yet: {row.reason}")
    if path.is_dir():
        path = _sentence_transformer(path)
        return Source(asked, _weights(path, asked), path, row, part)
    if path.is_file():
        return Source(asked, path, path.parent, row, part)
    if is_checkpoint(path.name):
        raise UserError(f"there is no file {path}")
    if asked.startswith("open_clip:"):
        row = catalog.get(asked)
        folder = _from_hub([_open_clip_repository(row)], asked)
        return Source(asked, _weights(folder, asked), folder, row)
    if _HUB_ID.fullmatch(asked) or row is not None:
        folder = _from_hub(catalog.repositories(asked), asked)
        return Source(asked, _weights(folder, asked), folder, row)
    if "://" in asked:
        raise UserError(f"{asked}: a checkpoint is read from a disk or the hub; copy it here first")
    try:
        catalog.get(asked)  # raises, with the nearest names
    except UserError as error:
        raise UserError(f"there is no file or folder {asked}, and {error}") from None
    raise UserError(f"{asked} is neither a file, a folder nor an encoder that is known")


def _sentence_transformer(folder: Path) -> Path:
    """Of a sentence-transformers folder (modules.json) the one that holds the encoder; else the folder itself."""
    if not (folder / "modules.json").is_file() or any((folder / name).is_file() for name in WEIGHT_FILES):
        return folder
    for inside in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if any((inside / name).is_file() for name in WEIGHT_FILES):
            return inside
    return folder


def _split_part(asked: str) -> tuple[Path, str | None]:
    """`file.npz:img` -> the file and the part."""
    name, colon, part = asked.rpartition(":")
    if colon and part == "txt":
        raise UserError(f"{asked} is a text tower alone; an encoder has an image tower: convert {name} or {name}:img")
    if colon and part == "img" and name.endswith(".npz"):
        return Path(name), part
    return Path(asked), None


def _in_order(asked: str, repository: str = "") -> list[str]:
    """The files to look for: open_clip's own come first where open_clip's name was typed, that which is called as its repository last."""
    names = sorted(WEIGHT_FILES, key=lambda name: asked.startswith("open_clip:") and not name.startswith("open_clip"))
    return [*names, f"{repository.rpartition('/')[2]}.pt"] if repository else names


def _weights(folder: Path, asked: str) -> Path:
    """The weights in a folder. Raises UserError that lists what was looked for and what is there."""
    for name in _in_order(asked):
        if (folder / name).is_file():
            return folder / name
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter (LoRA and the like) without the weights it adapts; merge it first (peft: `merge_and_unload()`, "
            "then `save_pretrained`) and convert the result"
        )
    others = sorted(file for file in folder.iterdir() if is_checkpoint(file.name) and file.is_file())
    if len(others) == 1:
        return others[0]
    if (folder / "encoder.json").is_file():
        raise UserError(
            f"{folder} is a model folder already, which all commands take; with --to LAYOUT it becomes another library's"
        )
    there = [file.name for file in others] or sorted(file.name for file in folder.iterdir())[:8]
    problem = "several checkpoints; name one of" if others else f"no checkpoint ({', '.join(WEIGHT_FILES)}); it holds"
    raise UserError(f"{folder} has {problem} {', '.join(there) or 'nothing'}")


def _open_clip_repository(row: catalog.Row) -> str:
    """Where open_clip's own file of a row is on the hub: SigLIP's under timm, as are those that the row names there first; LAION's in
    their own place."""
    assert row.open_clip is not None
    model, tag = row.open_clip
    named = [name for name in row.others if name.startswith("timm/")]
    return f"timm/{model}" if tag == "webli" else [*named, row.huggingface][0]


def _from_hub(repositories: list[str], asked: str) -> Path:
    """The folder of the first of these hub repositories that there is: from the local cache where it is complete, else
    downloaded.

    Raises UserError without huggingface_hub, without a network, or for a repository that is gated or not there."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise UserError(f"{asked} is not on this machine; to fetch it from the hub: {installing('hub')}") from None
    for repository in repositories:
        try:
            cached = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
            if any((cached / name).is_file() for name in _in_order(asked, repository)):
                return cached
        except (LocalEntryNotFoundError, OSError, ValueError):
            pass
    reasons = []
    for repository in repositories:
        try:
            return _download(repository, asked)
        except Exception as error:  # without a network huggingface_hub lets its HTTP library's own errors through
            reasons.append(f"{repository}: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}")
    close = catalog.nearest(asked)
    hint = f"; known names near it: {', '.join(close)}" if close and catalog.find(asked) is None else ""
    raise UserError(
        f"{asked} is neither a local path nor in the hub's cache, and cannot be fetched ({'; '.join(reasons)}){hint}; a folder with its "
        "files, brought here in another way, converts as well"
    )


def _download(repository: str, asked: str) -> Path:
    """Fetches the weights and what belongs to them into the hub's cache. Raises what huggingface_hub raises."""
    import huggingface_hub

    listed = huggingface_hub.model_info(
        repository, timeout=ANSWERS
    ).siblings  # one try; `list_repo_files` waits and asks again, five times
    held = {file.rfilename for file in listed or ()}
    looked_for = _in_order(asked, repository)
    weights = next((name for name in looked_for if name in held), None)
    if weights is None:
        raise ValueError(f"holds none of {', '.join(looked_for)}")
    folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[weights, *_SIDE_FILES]))
    if weights.endswith(".index.json"):
        huggingface_hub.snapshot_download(repository, allow_patterns=_needed_shards(folder, weights))
    return folder


def _needed_shards(folder: Path, index: str) -> list[str]:
    """The shards to fetch: all, or of a vision-language model those that hold a part of its vision tower."""
    config = read_json(folder / "config.json", dict[str, Any]) if (folder / "config.json").is_file() else {}
    kind, places = vlm.vlm_of(config), weight_map(folder / index)
    return sorted({file for tensor, file in places.items() if kind is None or kind.is_tower(tensor)})
