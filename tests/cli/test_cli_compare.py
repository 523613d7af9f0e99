"""`regcache compare` and `regcache quantize --auto` as people use them, on small encoders and random pictures."""

from __future__ import annotations

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image

from regcache_jax.demo.bundled import bundled_model
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.models.folder import load, save
from regcache_jax.models.plan_file import save_plan

DUMMY = ["--dataset", "dummy", "--limit", "24"]


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model", small.encoder("siglip"))


@pytest.mark.slow
def test_of_a_folder_without_splits_one_picture_in_five_is_measured_on(regcache, model, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number:02d}.png")
    command = ["compare", model, "--dataset", "folder", "--data-dir", tmp_path / "pictures", "--out", tmp_path / "out"]
    command += ["--bits", "8", "--methods", "rtn", "--no-registers"]
    status, out, err = regcache(*command)
    assert status == 0 and "one picture in 5 is tested (3), the others train (9)" in err and "w8a8\trtn" in out, err
    for number in range(1, 12):
        (tmp_path / "pictures" / f"{number:02d}.png").unlink()
    status, _, err = regcache(*command)
    assert status == 1 and "holds too few pictures" in err


@pytest.mark.slow
def test_a_comparison_is_written_five_times_and_goes_on_where_it_was_killed(regcache, model, tmp_path):
    encoder, plan, out = load(model).encoder, tmp_path / "plan.safetensors", tmp_path / "out"
    save_plan(plan, small.plan(1), {"encoder": encoder.spec.name, "encoder_hash": encoder_hash(encoder)})
    command = ["compare", model, *DUMMY, "--bits", "8,w4a6", "--methods", "rtn,token", "--calibration", "16"]
    command += ["--registers", plan, "--out", out]
    status, table, err = regcache(*command)
    assert status == 0, err
    assert [line.split("\t")[:3] for line in table.splitlines()[1:9]] == [
        [bits, recipe, registers]
        for bits in ("w8a8", "w4a6")
        for recipe in ("rtn", "token")
        for registers in ("no", "yes")
    ]
    rows = json.loads((out / "compare.json").read_text())
    assert [row["quantization"]["scheme"] for row in rows] == ["w8a8"] * 4 + ["w4a6"] * 4
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(rows[0]) and rows[0][
        "dataset"
    ] == "dummy"
    known = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    assert [float(row["error"]) for row in known] == [row["quantization"]["label_free_error"] for row in rows]
    assert (out / "compare.md").exists() and (out / "compare.svg").read_text().count("<polyline") == 2
    page = (out / "compare.html").read_text()
    assert page.count("<tr") == 2 * (1 + 4) and page.count('aria-label="error over cost at') == 2
    (out / "stages" / "evaluate_w8a8-token.json").unlink()  # as if killed before it
    before = {path.name: path.stat().st_mtime_ns for path in (out / "stages").iterdir()}
    status, again, err = regcache(*command)
    assert status == 0 and again == table, err
    after = {path.name: path.stat().st_mtime_ns for path in (out / "stages").iterdir()}
    assert {name: time for name, time in after.items() if name in before} == before and len(after) == 8
    status, other, err = regcache(*command, "--limit", "8")  # other pictures: measured anew
    assert status == 0 and other != table, err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--bits", "9"], 1, "unknown scheme 'w9a9'"),
        (["--methods", "magic"], 1, "unknown recipe 'magic'"),
        (["--methods", ","], 1, "must each name something"),
        (["--registers", "plan", "--no-registers"], 2, "exclude each other"),
        (["--cost", "v9z"], 1, "topology must be of v4, v5e, v5p, v6e"),
    ],
)
def test_wrong_use_is_answered_before_anything_is_read(regcache, tmp_path, arguments, status, message):
    found, _, err = regcache("compare", tmp_path / "none", *DUMMY, "--out", tmp_path / "out", *arguments)
    assert found == status and message in err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_auto_writes_the_encoder_that_it_chose_and_says_which(regcache, model, tmp_path):
    command = ["quantize", model, *DUMMY, "--scheme", "w6a6", "--auto", "--no-registers", "--static-only"]
    command += ["--recipes", "rtn,token,mse", "--cost", "model"]
    command += ["--work", tmp_path / "work", "--out", tmp_path / "model6"]
    status, out, err = regcache(*command)
    assert status == 0, err
    assert "chosen: w6a6-" in out and "w6a6-token" not in out  # measured scales were excluded
    quantized = load(tmp_path / "model6").encoder
    assert quantized.scheme.name == "w6a6"
    assert np.isfinite(encode_image(quantized, jnp.asarray(small.images(2)))).all()
    status, _, err = regcache(*command, "--method", "gptq")
    assert status == 2 and "chooses the recipe" in err
    status, _, err = regcache("quantize", model, *DUMMY, "--static-only", "--out", tmp_path / "x")
    assert status == 2 and "go with --auto" in err


@pytest.mark.slow
def test_a_calibration_is_kept_looked_at_and_used_without_pictures(regcache, model, tmp_path):
    encoder, plan, kept = load(model).encoder, tmp_path / "plan.safetensors", tmp_path / "calibration"
    save_plan(plan, small.plan(1), {"encoder": encoder.spec.name, "encoder_hash": encoder_hash(encoder)})
    status, out, err = regcache("calibrate", model, *DUMMY, "--registers", plan, "--out", kept)
    assert status == 0 and "24 pictures, with registers" in out, err
    status, table, _ = regcache("calibration", kept, "--json", tmp_path / "shown.json")
    rows = json.loads((tmp_path / "shown.json").read_text())["sites"]
    assert status == 0 and [(row["block"], row["site"]) for row in rows] == [
        (block, site) for block in range(3) for site in ("qkv", "out", "fc1", "fc2")
    ]
    assert len(table.splitlines()) == 13 and all(row["mse"] <= row["absmax"] for row in rows)
    options = ["--calibration", kept, "--asymmetric", "--out", tmp_path / "model8"]
    status, _, err = regcache("quantize", model, *options)  # without the plan that was in place
    assert status == 1 and "another register plan" in err and not (tmp_path / "model8").exists()
    status, _, err = regcache("quantize", model, *options, "--registers", plan)
    assert status == 0, err
    scales = load(tmp_path / "model8").encoder.params.image.blocks.grids.fc1.scale
    ends = [(row["highest"] - row["lowest"]) / 254 for row in rows if row["site"] == "fc1"]
    np.testing.assert_allclose(scales, ends, rtol=1e-5)  # float32
    status, _, err = regcache("quantize", model, "--out", tmp_path / "x")
    assert status == 2 and "--dataset" in err
    status, _, err = regcache("calibration", plan)
    assert status == 1 and "is not a calibration file" in err


@pytest.mark.slow
def test_a_method_of_the_command_line_is_in_the_model_it_writes(regcache, model, tmp_path):
    options = ["--method", "smoothquant+gptq", "--asymmetric", "--estimator", "mse", "--keep-float", "2"]
    options += ["--integer-attention", "--integer-head"]
    status, _, err = regcache("quantize", model, *DUMMY, *options, "--out", tmp_path / "model8")
    assert status == 0, err
    scheme = load(tmp_path / "model8").encoder.scheme
    assert (scheme.method, scheme.symmetric, scheme.estimator) == ("smoothquant+gptq", False, "mse")
    assert (scheme.products, scheme.also) == (("qk", "pv"), ("head",))
    assert [rule.quantized for rule in scheme.rules] == [False, False]
    status, _, err = regcache("quantize", model, *DUMMY, "--method", "magic", "--out", tmp_path / "other")
    assert status == 1 and "unknown method magic" in err


@pytest.mark.slow
def test_scales_that_are_measured_as_they_pass_need_no_pictures(regcache, model, tmp_path):
    status, out, err = regcache("quantize", model, "--activations", "token", "--out", tmp_path / "model8")
    assert status == 0 and "token activations" in out, err
    assert load(tmp_path / "model8").encoder.scheme.activations == "token"
    for options in ((), ("--activations", "token", "--method", "gptq")):
        status, _, err = regcache("quantize", model, *options, "--out", tmp_path / "other")
        assert status == 2 and "Missing option '--dataset'" in err


@pytest.mark.slow
def test_accuracy_stands_beside_the_error_where_there_are_classes(regcache, tmp_path):
    data = ["--dataset", "emoji", "--limit", "48", "--calibration", "16", "--bits", "8", "--methods", "smoothquant"]
    status, out, err = regcache("compare", bundled_model(), *data, "--no-registers", "--out", tmp_path)
    assert status == 0 and "float: acc1 0." in out, err
    (row,) = json.loads((tmp_path / "compare.json").read_text())
    assert row["metrics"]["acc1"] > 0.7 and row["quantization"]["float_reference"]["acc1"] > 0.7
