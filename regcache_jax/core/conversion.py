"""What a user may say of a conversion, for Python and for the command line alike."""

from __future__ import annotations

import dataclasses

from regcache_jax.core.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What is replaced of a checkpoint, and which of several sets of weights is taken; None: as the checkpoint has it."""

    activation: str | None = option("Replace the activation: gelu, gelu_tanh, quick_gelu.", None)
    interpolation: str | None = option("Replace the interpolation of the position table.", None)
    filter: str | None = option(
        "Replace the filter that resizes pictures: bicubic, bilinear, bilinear_tf, lanczos.", None
    )
    image_size: int | None = option(
        "Take pictures of another size; the positions are resampled.", None, unit="pixels", least=1
    )
    max_patches: int | None = option(
        "Of an encoder for pictures of any shape (NaFlex): at most how many patches a picture has.", None, least=1
    )
    weights: str | None = option(
        "Which of several sets of weights: the beginning of its names, state_dict_ema say.", None
    )
