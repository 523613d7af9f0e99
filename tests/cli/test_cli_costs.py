"""`regcache tpu` and `regcache gpu`: what a person sees of a report."""

from __future__ import annotations

import re
import sys

import small
from click.testing import CliRunner

from regcache_jax.cli.main import cli
from regcache_jax.cli.tpu import TPU_COLUMNS, show_programs
from regcache_jax.models import folder
from regcache_jax.tpu import ask
from regcache_jax.tpu.programs import PROGRAMS

ROWS = [
    {
        "program": name, "form": "pairs, folded probe", "batch": batch, "cycles_per_image": cycles, "images_per_second": 1e10 / cycles,
        "temp_bytes": 3_000_000, "argument_bytes": 100_500_000, "unestimated": 0, "tried": [[batch, cycles]],
    }
    for name, batch, cycles in zip(PROGRAMS, (48, 24, 20, 20, 20), (400_000.0, 390_000.0, 260_000.0, 262_000.0, 250_000.0), strict=True)
]  # fmt: skip


def asked(monkeypatch, rows, *arguments: str) -> tuple[str, tuple]:
    """What the command prints, and what the compiler was asked."""
    seen: list[tuple] = []

    def report(*given):
        seen.append(given)
        return {"model": "m", "topology": "v5e:2x2", "programs": rows, "advice": ask.advice(rows)}

    monkeypatch.setattr(ask, "report", report)
    done = CliRunner().invoke(cli, ["tpu", *arguments], catch_exceptions=False)
    return done.output, seen[0]


def test_a_table_holds_each_program_at_its_best_batch_and_its_cost_to_the_peer_s(monkeypatch):
    output, given = asked(monkeypatch, ROWS, "google/siglip-base-patch16-224")
    assert given[2] is None  # the best batch of each
    assert "+deletion\t20\t250000\t40000\t100\t3\t0.625" in output
    assert "int8 in the form: pairs, folded probe" in output
    assert "int8+registers+deletion takes 0.64 of the cycles of bf16" in output


def test_batches_that_are_asked_for_are_held_against_the_peer_at_the_same(monkeypatch):
    rows = [
        {"program": name, "form": "slot", "batch": batch, "cycles_per_image": cycles, "images_per_second": 1.0,
         "temp_bytes": 0, "argument_bytes": 0, "unestimated": 0}
        for name, batch, cycles in (("flax-bf16", 1, 100.0), ("flax-bf16", 2, 80.0), ("int8", 1, 60.0), ("int8", 2, 40.0))
    ]  # fmt: skip
    rows.append({"program": "int8", "batch": 64, "cycles_per_image": None, "fault": "out of memory"})
    output, given = asked(monkeypatch, rows, "google/siglip-base-patch16-224", "--batches", "1,2")
    assert given[2] == (1, 2)
    assert "int8\t1\t60\t1\t0\t0\t0.600" in output and "int8\t2\t40\t1\t0\t0\t0.500" in output
    assert "int8 at batch 64: out of memory" in output


def test_a_table_fits_80_columns_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_programs("google/siglip-base-patch16-224 on v5e:2x2", TPU_COLUMNS, ROWS)
    output = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)  # bold
    assert all(len(line) <= 80 for line in output.splitlines())
    assert re.search(r"^\+registers +\d+ ", output, re.MULTILINE) and re.search(
        r"flax-bf16 +48 +400000 ", output
    )  # nothing is cut or folded


def test_an_encoder_of_a_folder_is_asked_for_with_its_own_scheme_and_plan(monkeypatch, tmp_path):
    encoder = small.encoder("siglip").with_plan(small.plan(2))
    folder.save(tmp_path / "model", encoder)
    _, (spec, topology, batches, scheme, plan) = asked(
        monkeypatch, ROWS, str(tmp_path / "model"), "--topology", "v6e:2x2"
    )
    assert spec == encoder.spec and topology == "v6e:2x2" and batches is None and scheme.name == "w8a8"
    assert plan.schedule() == encoder.plan.schedule()
