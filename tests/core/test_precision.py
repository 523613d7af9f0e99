"""Products of float32 numbers are asked for in float32, which a CPU gives anyway and a TPU or a GPU does not."""

import os
import re

import jax
import numpy as np
import pytest
import small

from regcache_jax import door
from regcache_jax.cli import main
from regcache_jax.encoders.encoder import Encoder, encode, encode_text, init_params


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    spec = small.SPECS["siglip with text"]
    return Encoder(init_params(spec, jax.random.key(0)), spec=spec)


def asked(function, *arguments) -> set[str]:
    """The precisions of all products in what is handed to a compiler."""
    text = jax.jit(function).lower(*arguments).as_text()
    products = [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", line)]
    assert products
    return {found for line in products for found in re.findall("HIGHEST|HIGH|DEFAULT", line) or ["DEFAULT"]}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_towers_ask_for_float32_or_for_what_the_user_has_chosen(encoder, tower):
    def run(encoder):
        if tower == "image":
            return encode(encoder, small.images(1)).features
        return encode_text(encoder, np.ones((1, encoder.spec.text.context_length), np.int32))

    with jax.default_matmul_precision(None):
        assert asked(run, encoder) == {"HIGHEST"}
    with jax.default_matmul_precision("bfloat16"):
        assert asked(run, encoder) == {"DEFAULT"}


def test_whatever_a_verb_does_is_in_float32():
    with jax.default_matmul_precision(None):
        assert door._checked("load", lambda: jax.config.jax_default_matmul_precision)() == "highest"
        assert jax.config.jax_default_matmul_precision is None
    with jax.default_matmul_precision("tensorfloat32"):
        assert door._checked("load", lambda: jax.config.jax_default_matmul_precision)() == "tensorfloat32"


@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
def test_a_command_works_in_float32_unless_the_environment_says_otherwise(chosen, monkeypatch):
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    if chosen is not None:
        monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", chosen)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["JAX_DEFAULT_MATMUL_PRECISION"] == (chosen or "highest")
