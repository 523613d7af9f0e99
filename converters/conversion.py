"""`convert`: find the checkpoint, recognise its layout, build its spec, apply its table, write the model folder."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from etils import epath
from regcache_jax.converters import (
    aimv2,
    big_vision,
    compressed_reading,
    dinotxt,
    eva,
    huggingface_clip,
    huggingface_dinov2,
    huggingface_dinov3,
    huggingface_flax,
    huggingface_siglip,
    huggingface_tips,
    huggingface_vit,
    intern_vit,
    labels,
    meta_dinov2,
    meta_dinov3,
    naflex,
    open_clip,
    openai,
    perception_encoder,
    qwen_vit,
    qwix_tree,
    radio,
    sources,
    timm,
    timm_vit,
    tips,
    vlm,
    wrappers,
)
from regcache_jax.converters.choices import choose, chosen
from regcache_jax.converters.compressed_reading import Compressed
from regcache_jax.converters.engine import assemble
from regcache_jax.converters.formats import PROCESSOR, Format, Given, section
from regcache_jax.converters.readers import Tensors
from regcache_jax.converters.tokenizer_files import find_tokenizer

from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.names import from_tree, to_names
from regcache_jax.core.spec import EncoderSpec, ImpossibleSpec, Tap
from regcache_jax.encoders import catalog
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.parameters import parameter_shapes
from regcache_jax.encoders.taps import spec_at_tap
from regcache_jax.files.identity import file_hash
from regcache_jax.files.paths import refuse_existing
from regcache_jax.files.places import as_path
from regcache_jax.models import folder as checkpoints

CONVERTER_VERSION = 1
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
FORMATS: list[Format] = [
    *aimv2.FORMATS,
    dinotxt.FORMAT,
    *eva.FORMATS,
    qwen_vit.FORMAT,
    radio.FORMAT,
    huggingface_clip.FORMAT,
    intern_vit.HUGGING_FACE,  # before ViT, whose norms have its names
    intern_vit.FORMAT,  # before SigLIP's image tower, whose patch embedding has its name
    huggingface_siglip.FORMAT,
    huggingface_dinov2.FORMAT,
    huggingface_dinov3.FORMAT,
    huggingface_tips.FORMAT,
    huggingface_vit.FORMAT,
    huggingface_flax.FORMAT,
    *perception_encoder.FORMATS,  # before CLIPs and SigLIPs, most of whose names they have
    openai.FORMAT,
    *open_clip.FORMATS,
    meta_dinov3.META,  # before DINOv2, most of whose names it has
    meta_dinov3.TIMM,
    meta_dinov2.FORMAT,
    *timm.FORMATS,
    *big_vision.FORMATS,
    tips.FORMAT,
    *naflex.FORMATS,
    timm_vit.FORMAT,
]


class Read(NamedTuple):
    """A checkpoint that was read: its encoder on the host, its layout, what its files hold, and what is to be said of it."""

    encoder: Encoder
    format: Format
    tensors: Tensors
    notes: tuple[str, ...]


def register(format: Format) -> None:
    """Adds a layout of one's own, which is tried before those that are here. Raises UserError for a name that is taken, and for a table
    without marks, which would fit every file."""
    if any(format.name == other.name for other in FORMATS):
        raise UserError(f"there is a layout {format.name!r} already")
    if not format.marks:
        raise UserError(
            f"layout {format.name!r} needs marks: patterns of names that occur in its files and in no others"
        )
    FORMATS.insert(0, format)


def convert(
    source: str | Path,
    out: epath.PathLike,
    *,
    name: str | None = None,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    **choices: Any,
) -> epath.Path:
    """Converts a checkpoint into the model folder `out` and returns its path.

    `name`: the catalog's row, for a file that does not say what it is. `tokenizer`: a tokenizer.json or a folder with
    one, for a checkpoint without. `choices`: fields of `core.conversion.Choices`: `activation`, `interpolation`, `filter` replace what
    the checkpoint's own library does; `image_size` resamples the positions to pictures of another side; `weights` takes one of
    several sets (`state_dict_ema`, say).
    What was taken off and left out stands as `notes` in encoder.json.
    Raises UserError with every fault found; then nothing is left behind."""
    out = as_path(out)
    refuse_existing(out)
    asked = Choices(**choices)
    if qwix_tree.is_qwix(source):
        return qwix_tree.convert_qwix(
            as_path(source), out, tokenizer, alone=name is None and (dtype, asked) == ("float32", Choices())
        )
    found = sources.resolve(str(source))
    if tokenizer is not None and not tokenizer.exists():
        raise UserError(f"--tokenizer should be a file or a folder that holds one, got {tokenizer}")
    encoder, format, tensors, notes = read_checkpoint(found, name=name, dtype=dtype, choices=asked)
    classes = None if encoder.spec.num_classes is None else labels.class_names(found.config)
    files = found.files(tensors)
    metadata = {
        "source": str(source),
        "layout": format.name,
        "files": {file.name: file_hash(file) for file in files},
        "converter_version": CONVERTER_VERSION,
        "notes": list(notes),
        "choices": chosen(encoder.spec),
    }
    words = find_tokenizer(encoder.spec, tokenizer, found.folder)
    return checkpoints.save(out, encoder, metadata=metadata, tokenizer_files=words, labels=classes)


def read_checkpoint(
    source: sources.Source | str,
    *,
    name: str | None = None,
    dtype: str = "float32",
    choices: Choices | None = None,
) -> Read:
    """Reads a checkpoint into an encoder on the host."""
    choices = choices or Choices()
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    found = sources.resolve(source) if isinstance(source, str) else source
    config = found.config
    tensors = found.tensors()
    kind, tower, compressed = vlm.vlm_of(config), None, None
    if kind is None:  # of a vision-language model the language model may be quantised, where its tower is not
        compressed, tensors = take_integers(tensors, config, found, dtype)
    wrappers.refuse_foreign(tensors, found.weights)
    if kind is not None:
        tower = vlm.tower_of(kind, tensors, config, found.weights)
        tensors, config = tower.tensors, tower.config
    processor = found.json("preprocessor_config.json", "processor_config.json")
    tensors, notes = wrappers.unwrap(tensors, lambda held: bool(fitting(held, found)), found.weights, choices.weights)
    format = recognise(tensors, config, found)
    if tower is None:  # a tower's own configuration may name classes of its model's
        check_classes(config, format, found)
    tensors = format.read_names(tensors)
    notes = notes if tower is None else (*notes, *tower.notes)
    heads = sorted(name for name in tensors if any(fnmatch.fnmatchcase(name, pattern) for pattern in format.heads))
    if heads:
        notes = (
            *notes,
            f"left out what was trained on top of the encoder: {', '.join(heads[:4])}{', ...' if len(heads) > 4 else ''}",
        )
    row = found.row if name is None else catalog.get(name)
    given = Given(
        name=found.name if row is None else row.huggingface.split("/")[-1],
        tensors=tensors,
        config=config,
        preprocessor=processor
        if kind is None
        else kind.processor(section(processor, "image_processor", PROCESSOR) or processor),
        tokenizer=found.json("tokenizer_config.json"),
        marks=found.special_ids(),
        row=row,
    )
    try:
        whole = format.spec(given)
        spec = choose(whole if tower is None else spec_at_tap(whole, Tap(normed=tower.tap.normed)), choices)
    except ImpossibleSpec as error:
        raise UserError(f"{found.folder} describes no encoder: {error}") from None
    check_pictures(spec)
    shapes = {path: leaf.shape for path, leaf in to_names(parameter_shapes(spec)).items()}
    params = assemble(
        tensors,
        format.rules,
        shapes,
        ignored=(*format.ignored, *format.heads),
        dtype=DTYPES[dtype],
        what=f"{found.weights} ({format.name})",
    )
    encoder = Encoder(from_tree(params), spec=spec)
    if compressed is not None:
        own = compressed._replace(
            scales=format.read_names(compressed.scales), steps=format.read_names(compressed.steps), floats=tensors
        )
        encoder = compressed_reading.with_integers(encoder, own, format.rules, str(found.folder))
    return Read(encoder, format, tensors, notes)


def fitting(tensors: Tensors, source: sources.Source) -> list[Format]:
    """The layouts whose names these are."""
    return [format for format in FORMATS if format.fits(tensors) and (source.torchscript or not format.torchscript)]


def take_integers(
    tensors: Tensors, config: Mapping[str, Any], source: sources.Source, dtype: str
) -> tuple[Compressed | None, Tensors]:
    """The integers of a checkpoint whose configuration says that it is quantised (None: it is not), and its tensors as floats. Raises
    UserError for integers of other kinds than are read."""
    quantised = config.get("quantization_config")
    if not quantised:
        return None, tensors
    if dtype != "float32":
        raise UserError(f"{source.folder} is quantised: its scales and biases are kept in float32; leave --dtype out")
    told = quantised if isinstance(quantised, Mapping) else {"quant_method": quantised}
    found = compressed_reading.split(tensors, told, str(source.folder))
    return found, found.floats


def check_pictures(spec: EncoderSpec) -> None:
    """Raises UserError where the pictures that the processor makes are not those that the tower takes."""
    pictures, image = spec.preprocessing, spec.image
    if (pictures.max_patches, pictures.patch_size or image.patch_size) != (image.max_patches, image.patch_size):
        raise UserError(f"{spec.name}: the processor makes other sheets of patches than the tower takes")
    made, taken = pictures.image_size, image.image_size
    if made != taken:
        raise UserError(
            f"{spec.name}: the processor makes pictures of {made} px, the tower takes {taken} px; one of the files is of another model "
            "(--image-size resamples the positions for another size)"
        )


def recognise(tensors: Tensors, config: Mapping[str, Any], source: sources.Source) -> Format:
    """The layout of a checkpoint, by its names; its config's `model_type`, where it has one, must not say another."""
    model_type = config.get("model_type")
    by_type = [format for format in FORMATS if model_type in format.model_types]
    by_names = fitting(tensors, source)
    if model_type and not by_type and not by_names:
        known = sorted({kind for format in FORMATS for kind in format.model_types})
        raise UserError(
            f"{source.folder} holds a {shown(repr(model_type), 60)}; encoders that can be converted: {', '.join(known)}"
        )
    for format in (*by_names, *by_type):
        if model_type and format.model_types and format not in by_type:
            raise UserError(
                f"{source.folder}: config.json says model_type {shown(repr(model_type), 60)}, the tensors are those of {format.name} "
                f"({', '.join(format.model_types)}); one of the files is of another model"
            )
        return format
    listed = shown(", ".join(list(tensors)[:5]))
    raise UserError(
        f"{source.weights} is in no layout that is known ({', '.join(format.name for format in FORMATS)}); "
        f"it holds {len(tensors)} tensors: {listed}"
    )


def check_classes(config: Mapping[str, Any], format: Format, source: sources.Source) -> None:
    """Raises UserError where config.json names a class (`architectures`) that is none of this layout's."""
    named = config.get("architectures") or ()
    if format.classes is None or not isinstance(named, list):
        return
    strange = [name for name in map(str, named) if not re.match(format.classes, name)]
    if strange:
        raise UserError(
            f"{source.folder}: config.json says architectures {shown(', '.join(strange), 60)}, the tensors are those of {format.name}; "
            "one of the files is of another model (a class of your own: take `architectures` out of config.json)"
        )
