"""What the TPU compiler says, held. The compiler (libtpu) is part of the extra `dev`."""

from __future__ import annotations

import dataclasses

import jax
import pytest
import small_encoders as small

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import Schedule
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders import catalog
from regcache_jax.encoders.parameters import count_parameters, image_table
from regcache_jax.quantization.quantize import quantize
from regcache_jax.tpu import ask as tpu


def programs(name: str, batches: dict[str, int]) -> dict[str, dict]:
    """Rows of whole programs by their names, each at its own best batch (`benchmarks/tpu.py --sweep` finds them)."""
    found = {program: tpu.report(name, batch=batch, programs=(program,)) for program, batch in batches.items()}
    return {program: report["programs"][0] for program, report in found.items()}


def ratio(rows: dict[str, dict], program: str, other: str) -> float:
    return rows[program]["cycles_per_image"] / rows[other]["cycles_per_image"]


PLAIN, REGISTERS, DELETION, PEER = "int8", "int8+registers", "int8+registers+deletion", "flax-bf16"


@pytest.mark.slow
def test_b16_with_registers_costs_as_much_as_plain_int8_with_deletion_less_and_seven_tenths_of_the_peer():
    rows = programs("google/siglip-base-patch16-224", {PEER: 48, PLAIN: 24, REGISTERS: 24, DELETION: 24})
    assert ratio(rows, REGISTERS, PLAIN) <= 1.01
    assert ratio(rows, DELETION, PLAIN) <= 0.98
    assert ratio(rows, DELETION, PEER) <= 0.72
    assert all(row["unestimated"] == 0 for row in rows.values())  # nothing hides in calls without an estimate


@pytest.mark.slow
def test_l14_with_deletion_to_a_lane_boundary_is_cheaper_than_plain_int8_by_a_tenth_and_more():
    rows = programs("openai/clip-vit-large-patch14", {PLAIN: 8, DELETION: 8})
    assert ratio(rows, DELETION, PLAIN) <= 0.90
    assert rows[DELETION]["cycles_per_image"] <= 0.60 * 2_032_457  # the peer at its best batch, 16


@pytest.mark.slow
def test_so400m_with_registers_costs_as_much_as_plain_int8_with_deletion_less_and_seven_tenths_of_the_peer():
    rows = programs("google/siglip-so400m-patch14-384", {PLAIN: 2, REGISTERS: 2, DELETION: 2})
    assert ratio(rows, REGISTERS, PLAIN) <= 1.01
    assert ratio(rows, DELETION, PLAIN) <= 1.00
    assert rows[DELETION]["cycles_per_image"] <= 0.70 * 8_231_581  # the peer at its best batch, 2


def test_arguments_of_an_integer_program_are_at_most_27_hundredths_of_float32_ones():
    spec = catalog.get("google/siglip-base-patch16-224").spec
    scheme = dataclasses.replace(Scheme(), also=("head",))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tpu.serving_shapes(spec, scheme)))
    assert held <= 0.27 * 4 * count_parameters(image_table(spec.image))


@pytest.mark.slow
def test_the_exact_gelu_costs_an_integer_block_a_twentieth_more_than_its_tanh_approximation():
    """That it should cost nothing is missed (docs/performance.md)."""
    costs = []
    for activation in ("gelu", "gelu_tanh"):
        spec = tpu.shallow(catalog.get("google/siglip-base-patch16-224").spec, 2)
        blocks = dataclasses.replace(spec.image.blocks, activation=activation)
        spec = dataclasses.replace(spec, image=dataclasses.replace(spec.image, blocks=blocks, pooling="mean"))
        costs.append(tpu.report(spec, batch=24, programs=("int8",))["programs"][0]["cycles_per_image"])
    assert costs[0] <= 1.05 * costs[1]  # 61,059 and 58,359 cycles an image, the same on every machine


def test_estimates_are_added_up_and_what_carries_none_is_counted():
    text = """
      %a = f32[8] fusion(%x), backend_config={"window_config":{"estimated_cycles":"120"}}
      %b = f32[8] copy(%a), backend_config={"window_config":{"estimated_cycles":"30"}}
      %c = (f32[8], s32[8]) sort(%b), dimensions={0}
      %d = f32[8] custom-call(%b), custom_call_target="tpu_custom_call"
      %e = f32[8] custom-call(%b), custom_call_target="ConcatBitcast"
    """
    assert tpu.estimates(text) == (150, {"sort": 1, "tpu_custom_call": 1})


def test_an_absurd_estimate_is_thrown_out_loudly():
    with pytest.raises(UserError, match="which cannot be"):
        tpu.estimates('%a = f32[8] fusion(%x), backend_config={"estimated_cycles":"250000000000000000000"}')


def test_default_plans_leave_whole_tiles_with_the_register_in_the_last():
    base = catalog.get("google/siglip-base-patch16-224").spec.image
    large = catalog.get("openai/clip-vit-large-patch14").spec.image
    assert tpu.default_schedule(base, "int8+registers+deletion") == Schedule(3, 12, 3, 5)  # 196 - 5 + 1 = 192
    assert tpu.default_schedule(large, "int8+registers+deletion") == Schedule(6, 24, 6, 2)  # 257 - 2 + 1 = 256
    largest = catalog.get("google/siglip-so400m-patch14-384").spec.image
    assert tpu.default_schedule(largest, "int8+registers+deletion") == Schedule(6, 27, 6, 26)  # 729 - 26 + 1 = 704
    assert (
        tpu.default_schedule(small.encoder("siglip").spec.image, "int8+registers+deletion").delete_count == 1
    )  # of 16
    assert tpu.default_schedule(base, "int8") == Schedule(0, 0, 0, 0)
    assert isinstance(base, ImageSpec)


@pytest.mark.slow
def test_what_an_encoder_costs_is_asked_of_the_compiler_once_for_all_that_run_alike(monkeypatch):
    asked, ask = [], tpu._ask
    monkeypatch.setattr(tpu, "_ask", lambda topology, request: asked.append(request) or ask(topology, request))
    encoder, images = small.encoder("clip"), small.images(8)
    plain = tpu.encoder_cycles(quantize(encoder, images, Scheme()))
    again = tpu.encoder_cycles(quantize(encoder, images, Scheme(estimator="mse")))
    by_token = tpu.encoder_cycles(quantize(encoder, None, Scheme(activations="token"), small.plan(2)))
    assert plain == again and len(asked) == 2
    assert by_token > 1.05 * plain  # scales that are measured; registers
    with pytest.raises(UserError, match="topology must be of v4"):
        tpu.encoder_cycles(encoder, "h100")


def test_unknown_topologies_programs_and_encoders_are_refused():
    with pytest.raises(UserError, match="topology must be of v4, v5e, v5p, v6e"):
        tpu.report("google/siglip-base-patch16-224", "v9:2x2")
    with pytest.raises(UserError, match="programs are"):
        tpu.report("google/siglip-base-patch16-224", programs=("int3",))
    with pytest.raises(UserError, match="no encoder is called"):
        tpu.report("siglip-of-nowhere")
