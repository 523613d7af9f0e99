"""What XLA's GPU compiler says without a GPU: how its text is read, and, where the extra `cuda` is installed, what it is."""

from __future__ import annotations

import importlib.util

import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.encoders import catalog
from regcache_jax.tpu import ask, gpu
from regcache_jax.tpu.gpus import GPUS
from regcache_jax.tpu.roofline import by_kind, counted, kernels

TEXT = """HloModule jit_f, is_scheduled=true

%fused_slice (p0: f32[8,100]) -> bf16[8,10] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %cut = f32[8,10]{1,0} slice(%p0), slice={[0:8], [0:10]}
  ROOT %narrow = bf16[8,10]{1,0} convert(%cut)
}

ENTRY %main (x: s8[8,64], w: s8[64,100]) -> bf16[8,10] {
  %x = s8[8,64]{1,0} parameter(0)
  %w = s8[64,100]{1,0} parameter(1)
  %product = (s32[8,100], s8[33554432]) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", {"lhs_contracting_dimensions":["1"]}
  %sums = s32[8,100]{1,0} get-tuple-element(%product), index=0
  %wide = f32[8,100]{1,0} convert(%sums)
  ROOT %fusion = bf16[8,10]{1,0} fusion(%wide), kind=kLoop, calls=%fused_slice
}
"""


def test_kernels_have_the_bytes_that_they_read_and_write_and_the_operations_of_their_products():
    product, wide, fusion = kernels(TEXT)
    assert product.moved == 8 * 64 + 64 * 100 + 4 * 8 * 100  # without cuBLAS's own room
    assert product.products == (("s8", 2.0 * 8 * 64 * 100),)
    assert wide.moved == 2 * 4 * 8 * 100
    assert fusion.moved == 4 * 8 * 10 + 2 * 8 * 10  # of what it slices, the slice
    assert counted([product, wide, fusion]) == {"s8": 1}


def test_the_time_of_a_kernel_is_that_of_its_bytes_or_of_its_products():
    product = kernels(TEXT)[0]
    h100 = GPUS["h100"]
    assert product.seconds(h100) == pytest.approx(product.moved / 3.35e12)
    assert kernels(TEXT.replace("s8[64,100]", "s8[64,100000]").replace("s32[8,100]", "s32[8000,100000]"))[0].seconds(
        h100
    ) == pytest.approx(max(2 * 64 * 8e8 / 1978.9e12, (8 * 64 + 64e5 + 4 * 8e8) / 3.35e12))


WRITTEN_OVER = """HloModule jit_g, is_scheduled=true

%fused_write (p0: bf16[800,64], p1: f32[64]) -> bf16[8,100,64] {
  %p0 = bf16[800,64]{1,0} parameter(0)
  %whole = bf16[8,100,64]{2,1,0} bitcast(%p0)
  %p1 = f32[64]{0} parameter(1)
  %narrow = bf16[64]{0} convert(%p1)
  %rows = bf16[8,1,64]{2,1,0} broadcast(%narrow), dimensions={2}
  %zero = s32[] constant(0)
  %place = s32[] constant(99)
  ROOT %written = bf16[8,100,64]{2,1,0} dynamic-update-slice(%whole, %rows, %zero, %place, %zero)
}

ENTRY %main (x: bf16[800,64], r: f32[64]) -> bf16[8,100,64] {
  %x = bf16[800,64]{1,0} parameter(0)
  %r = f32[64]{0} parameter(1)
  ROOT %fusion = bf16[8,100,64]{2,1,0} fusion(%x, %r), kind=kLoop, calls=%fused_write
}
"""


def test_what_is_written_over_in_place_costs_the_part_that_is_written():
    (written,) = kernels(WRITTEN_OVER)
    assert written.moved == 4 * 64 + 2 * 8 * 64  # a register's row, and that row of eight pictures


def test_kernels_are_counted_by_what_they_do():
    found = kernels(TEXT)
    assert [kernel.kind for kernel in found] == ["int8 products", "behind int32 sums", "between"]
    parts = by_kind(found, GPUS["h100"])
    assert list(parts) == ["int8 products", "behind int32 sums", "between"]  # kinds that are not there are left out
    assert parts["between"]["kernels"] == 1 and parts["between"]["bytes"] == found[2].moved
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(
        sum(kernel.seconds(GPUS["h100"]) for kernel in found)
    )


def test_a_program_with_a_loop_is_refused():
    with pytest.raises(UserError, match="has a while, whose cost nobody knows"):
        kernels(TEXT.replace("convert(%sums)", "while(%sums)"))


def test_peaks_of_targets_are_without_sparsity_and_int8_is_twice_bfloat16():
    assert all(each.int8 == pytest.approx(2 * each.bf16, rel=1e-3) and each.source for each in GPUS.values())


def test_an_unknown_gpu_is_refused():
    with pytest.raises(UserError, match="target must be one of h100, a100, l4, got 'v100'"):
        gpu.report("google/siglip-base-patch16-224", "v100")


@pytest.mark.slow
def test_an_int8_block_moves_less_than_the_peer_s_in_fewer_kernels_or_one_line_says_what_brings_the_compiler():
    """What one block of a B/16 more adds for an H100, 32 pictures at once. An installation has the compiler or has it not."""
    spec, programs = catalog.get("google/siglip-base-patch16-224").spec, ("flax-bf16", "int8+registers")
    if importlib.util.find_spec(gpu.PLUGIN) is None:
        with pytest.raises(UserError, match=r"`pip install .{2}\[cuda\].{2} .*brings it"):
            gpu.report(spec)
        return
    two, three = (gpu.report(ask.shallow(spec, number), programs=programs)["programs"] for number in (2, 3))
    (peer, own), kinds = zip(two, three, strict=True), three[1]["by_kind"]

    def added(rows, name):
        return rows[1][name] - rows[0][name]

    assert "behind int32 sums" not in kinds  # each product scales its own
    assert added(own, "kernels") <= 16  # 15, where the plain form has 32 and the peer 21
    assert added(own, "bytes_per_image") <= 0.6 * added(peer, "bytes_per_image")  # 10.6 and 18.4 MB
    assert added(own, "seconds_per_image") <= 0.55 * added(peer, "seconds_per_image")  # 3.4 and 6.6 us
