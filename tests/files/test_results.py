"""Result files: one object a row, with the keys and the types that `clip_benchmark build` makes a line of."""

from __future__ import annotations

import csv
import json

from regcache_jax.files import results


def row(scheme: str, kind: str | None = None, registers: bool = False, **more) -> results.Row:
    quantization = {"scheme": scheme, "registers": registers, **({} if kind is None else {"row": kind})}
    return results.row(
        dataset="wds/pets", model="ViT-B-16", pretrained="models/b 16", task="zeroshot_classification",
        metrics={"acc1": 0.5, "acc5": 0.75}, quantization=quantization, **more,
    )  # fmt: skip


def table_of(files, out) -> list[dict[str, str]]:
    """As `build` does it: the metrics and the other keys of a file are the columns of a line, named by model and pretrained."""
    lines = []
    for file in files:
        stored = json.loads(file.read_text())
        line = {**stored["metrics"], **{key: value for key, value in stored.items() if key != "metrics"}}
        lines.append({**line, "model_fullname": f"{stored['model']} {stored['pretrained']}"})
    with out.open("w") as handle:
        writer = csv.DictWriter(handle, fieldnames=sorted({key for line in lines for key in line}))
        writer.writeheader()
        writer.writerows(lines)
    with out.open() as handle:
        return list(csv.DictReader(handle))


def test_every_row_is_a_file_that_clip_benchmarks_builder_can_read_and_tell_apart(tmp_path):
    rows = [
        row("float"),
        row("float", "registers", True),
        row("w8a8", "plain"),
        row("w8a8", "registers", True),
        row("w4a4"),
    ]
    files = results.write_each(tmp_path / "results", rows)
    assert [file.name for file in files[:2]] == [
        "wds-pets_models-b-16_ViT-B-16_en_zeroshot_classification.json",
        "wds-pets_models-b-16-float-registers_ViT-B-16_en_zeroshot_classification.json",
    ]
    assert len(list((tmp_path / "results").iterdir())) == 5
    table = table_of(files, tmp_path / "benchmark.csv")
    assert [line["model_fullname"] for line in table] == [
        "ViT-B-16 models/b 16", "ViT-B-16 models/b 16 float registers", "ViT-B-16 models/b 16 w8a8 plain",
        "ViT-B-16 models/b 16 w8a8 registers", "ViT-B-16 models/b 16 w4a4 plain",
    ]  # fmt: skip
    assert {(line["acc1"], line["dataset"], line["language"]) for line in table} == {("0.5", "wds/pets", "en")}


def test_class_names_and_templates_stand_under_clip_benchmarks_keys_where_they_are_asked_for(tmp_path):
    dumped = {"classnames": ["cat"], "templates": ["a {c}"]}
    (file,) = results.write_each(tmp_path, [row("w8a8", dumped=dumped)])
    stored = json.loads(file.read_text())
    assert set(stored) == {
        "dataset", "model", "pretrained", "task", "metrics", "language", "classnames", "templates", "quantization",
    }  # fmt: skip
    assert stored["classnames"] == ["cat"] and stored["templates"] == ["a {c}"]
