"""The command line as people use it: help, wrong use, bad input, and the whole flow on the bundled encoder."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import numpy as np
import pytest
from PIL import Image
from randomized import clip, save_random
from safetensors.numpy import save_file

from regcache_jax.cli.main import COMMANDS, cli
from regcache_jax.demo.bundled import bundled_model

MODEL = str(bundled_model())
DATA = ["--dataset", "emoji", "--limit", "12"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(regcache, command):
    status, out, _ = regcache(command, "--help")
    assert status == 0 and out.startswith("Usage: regcache") and "None]" not in out  # a bound that there is not


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_for(command):
    found = cli.get_command(click.Context(cli), command)
    options = [each for each in found.params if isinstance(each, click.Option)]
    assert options and not [option.name for option in options if not option.help]
    assert not found.get_short_help_str(66).endswith("...")  # whole in the list of commands, 80 columns wide


def test_help_is_there_before_anything_heavy_is_loaded():
    code = (
        "import sys; from regcache_jax.cli.main import cli; cli(['-h'], standalone_mode=False); "
        "print({'jax', 'numpy', 'etils', 'pydantic', 'ml_collections'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("set()") and "inspect" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalute"], "Did you mean evaluate"),
        (["search", MODEL], "Missing option"),
        (["quantize", MODEL, *DATA, "--activations", "row", "--out", "x"], "'static', 'group', 'tensor', 'token'"),
        (["run", "--config", "demo", "--workdir", "w", "--config.nothing=1"], "there is no field 'nothing'; there are"),
        (
            ["run", "--config", "demo", "--workdir", "w", "--config.search.chunk=many"],
            "takes a whole number, got 'many'",
        ),
        (
            ["run", "--config", "demo", "--workdir", "w", "--config.search=1"],
            "is a group; give one of --config.search.align",
        ),
        (["run", "--config", "demo", "--workdir", "w", "--config.batch_size"], "--config.batch_size needs a value"),
        (["inspect", MODEL, "--dataset", "emoji", "--limit", "0"], "takes a whole number from 1 on, got 0"),
        (["run", "--config", "demo", "--workdir", "w", "--confg.batch_size=1"], "no such option"),
        (["export", MODEL, "--out", "x", "--pictures", "480"], "such as 480x640, got '480'"),
        (["export", MODEL, "--out", "x", "--again", "--batches", "8"], "--again takes everything but --out from"),
    ],
)
def test_wrong_use_exits_2_and_says_what_would_be_right(regcache, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = regcache(*arguments)
    assert status == 2 and message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere", *DATA], "there is no model folder nowhere"),
        (["inspect", ".", *DATA], "is not a model folder"),
        (["inspect", MODEL, "--dataset", "emojy"], "did you mean emoji"),
        (["inspect", MODEL, "--dataset", "folder", "--data-dir", "empty"], "empty holds no pictures"),
        (["inspect", MODEL, "--dataset", "folder", "--data-dir", "broken"], "bad.png"),
        (["inspect", MODEL, "--dataset", "folder", "--data-dir", "nowhere"], "there is no folder nowhere"),
        (["evaluate", MODEL, "--dataset", "folder", "--data-dir", "good"], "has no class names"),
        (["evaluate", MODEL, *DATA, "--bank-split", "prod", "--task", "knn"], "emoji has the splits train, test"),
        (["search", MODEL, *DATA, "--scheme", "w9a9", "--out", "plan"], "unknown scheme 'w9a9'; try w8a8"),
        (["search", MODEL, *DATA, "--scheme", "float", "--out", "plan"], "give a quantised scheme"),
        (["quantize", MODEL, *DATA, "--registers", "none.safetensors", "--out", "x"], "there is no register plan"),
        (["quantize", MODEL, *DATA, "--registers", "text.safetensors", "--out", "x"], "not a readable register plan"),
        (["quantize", MODEL, *DATA, "--out", "exists"], "exists already"),
        (["convert", "nothing.safetensors", "--out", "x"], "nothing.safetensors"),
        (["convert", "text.safetensors", "--out", "x"], "text.safetensors"),
        (["convert", "empty", "--out", "x"], "empty has no checkpoint"),
        (["convert", "bert", "--out", "x"], "bert"),
        (["convert", "text.safetensors", "--out", "exists"], "exists already"),
        (["export", MODEL, "--out", "text.safetensors"], "exists"),
        (["search", MODEL, *DATA, "--out", "text.safetensors"], "exists already"),
        (["embed", MODEL, "--images", "good", "--out", "text.safetensors"], "exists already"),
        (["embed", MODEL, "--images", "empty", "--out", "x.npz"], "holds no pictures"),
        (["embed", MODEL, "--images", "broken", "--out", "x.npz", "--strict"], "bad.png"),
        (
            ["run", "--config", "demos", "--workdir", "w"],
            "there is no config demos; give a file, or one of clip_b16, demo",
        ),
        (["run", "--config", "wrong.py", "--workdir", "w"], "config wrong.py fails: SyntaxError"),
        (["run", "--config", "other.py", "--workdir", "w"], "get_config() must return an ml_collections.ConfigDict"),
        (
            ["run", "--config", "null.py", "--workdir", "w", "--config.classnames=x"],
            "null.py: reference.limits: unexpected keyword argument, got 3; classnames: input should be a valid string, got None; "
            "batch_size: input should be greater than 0, got -1",
        ),
        (
            ["run", "--config", "demo", "--workdir", "w", "--config.rows=plain,best"],
            "rows best are unknown; rows are plain",
        ),
        (["run", "--config", "demo", "--workdir", "w", "--config.schemes="], "it names no scheme"),
        (["run", "--config", "demo", "--workdir", "w", "--config.model=nowhere.npz"], "nowhere.npz"),
        (["run", "--config", "demo", "--workdir", "text.safetensors/w"], "text.safetensors"),
        (["report", "empty", "--out", "x.html"], "holds no finished run"),
    ],
)
def test_bad_input_gets_one_line_exit_1_and_leaves_nothing(regcache, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("exists", "empty", "broken", "good", "bert"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "good" / "a.png")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    save_file(
        {"bert.embeddings.word_embeddings.weight": np.ones((2, 2), np.float32)}, tmp_path / "bert" / "model.safetensors"
    )
    (tmp_path / "wrong.py").write_text("def get_config(:")
    (tmp_path / "other.py").write_text("def get_config(): return 3")
    (tmp_path / "null.py").write_text(
        "from regcache_jax.configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config()\n"
        "    config.classnames, config.batch_size, config.reference.limits = None, -1, 3\n"
        "    return config\n"
    )
    (tmp_path / "text.safetensors").write_text("this is no checkpoint")
    (tmp_path / "broken" / "bad.png").write_bytes(b"\x89PNG and nothing more")
    before = sorted(tmp_path.rglob("*"))
    status, _, err = regcache(*arguments)
    messages = [line for line in err.splitlines() if line.startswith("regcache:")]
    assert status == 1 and len(messages) == 1 and message in messages[0]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_models_lists_the_catalog(regcache, tmp_path):
    status, out, _ = regcache("models", "--json", tmp_path / "models.json")
    assert status == 0 and "openai/clip-vit-base-patch16" in out
    assert len(json.loads((tmp_path / "models.json").read_text())) >= 28
    status, out, _ = regcache("models", "dinov2", "GIANT", "--json", tmp_path / "few.json")
    told = json.loads((tmp_path / "few.json").read_text())
    assert status == 0 and [row["name"] for row in told] == [
        "facebook/dinov2-giant",
        "facebook/dinov2-with-registers-giant",
    ]
    assert all(row["supported"] and row["since"] == "0.1.0" and "dinov2" in row["names"][1] for row in told)
    assert regcache("models", "gremlin")[0] == 1


@pytest.mark.slow
def test_a_dry_run_of_a_conversion_says_what_the_source_is_and_writes_nothing(regcache, tmp_path):
    source, model = save_random(clip(), tmp_path / "source"), tmp_path / "model"
    command = ("convert", source, "--out", model, "--dry-run")
    status, out, err = regcache(*command)
    assert status == 0 and out == f"{source}: source, Hugging Face CLIP; {model} would be written\n", err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    model.mkdir()
    assert regcache(*command)[0] == 1
    status, _, err = regcache("convert", source, "--out", tmp_path / "back.npz", "--to", "big_vision", "--dry-run")
    assert status == 2 and "does not go with --to" in err
    (source / "model.safetensors").write_bytes(b"torn")
    model.rmdir()
    assert regcache(*command)[0] == 1 and not model.exists()


@pytest.mark.slow
def test_the_whole_flow_from_inspect_to_embed(regcache, tmp_path):
    status, out, err = regcache("inspect", MODEL, *DATA, "--json", tmp_path / "i.json", "--picture", tmp_path / "i.svg")
    assert status == 0, err
    assert "patch sinks from block 4" in out and (tmp_path / "i.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "i.json").read_text())["verdict"]["sensitive_block"] == 4

    plan, table = tmp_path / "plan.safetensors", tmp_path / "trials.jsonl"
    search = ["search", MODEL, *DATA, "--max-trials", "24", "--out", plan, "--table", table]
    status, out, err = regcache(*search)
    assert status == 0 and "take away" in out, err
    assert (
        25 <= len(table.read_text().splitlines()) <= 26
    )  # its head, and trials: what is begun after the 23rd may be two
    assert regcache(*search)[0] == 1  # the plan exists

    model8 = tmp_path / "model8"
    status, out, err = regcache("quantize", MODEL, *DATA, "--registers", plan, "--out", model8)
    assert status == 0 and "with registers" in out, err
    rows = tmp_path / "rows.json"
    arguments = ["evaluate", MODEL, model8, "--dataset", "emoji", "--limit", "34", "--json", rows]
    status, out, err = regcache(*arguments, "--parallel", "pmap")
    assert status == 0, err
    by_pmap = json.loads(rows.read_text())
    assert [row["quantization"]["scheme"] for row in by_pmap] == ["float", "w8a8"]
    assert by_pmap[1]["quantization"]["registers"] is True
    assert regcache(*arguments)[0] == 0
    by_jit = json.loads(rows.read_text())
    assert [row["metrics"]["acc1"] for row in by_jit] == [row["metrics"]["acc1"] for row in by_pmap]

    knn = [
        "evaluate",
        model8,
        "--dataset",
        "emoji",
        "--limit",
        "34",
        "--bank-limit",
        "816",
        "--task",
        "knn",
        "--json",
        rows,
    ]
    assert regcache(*knn)[0] == 0
    assert json.loads(rows.read_text())["task"] == "knn"
    assert json.loads(rows.read_text())["metrics"]["acc1"] > 0.5  # 204 classes, other vendors' drawings vote

    other = ["quantize", model8, *DATA, "--out", tmp_path / "again"]
    status, _, err = regcache(*other)
    assert status == 1 and "quantised already" in err

    artefact = tmp_path / "int8.stablehlo"
    status, out, err = regcache("export", model8, "--out", artefact, "--platforms", "cpu,tpu")
    assert status == 0 and artefact.exists(), err
    assert regcache("export", model8, "--out", tmp_path / "other", "--platforms", "cpu,abacus")[0] == 1
    repository = tmp_path / "repository" / "emoji"
    asked = ["--triton", "--pictures", "90x60", "--batches", "8,1", "--platforms", "cpu"]
    status, out, err = regcache("export", model8, "--out", repository, *asked)
    assert status == 0 and (repository / "1" / "model.py").exists(), err
    assert "dims: [90, 60, 3]" in (repository / "config.pbtxt").read_text()

    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    Image.new("RGBA", (90, 30), (200, 10, 10, 120)).save(pictures / "wide.png")
    Image.new("L", (20, 20), 7).save(pictures / "sub" / "grey.jpg")
    (pictures / "sub" / "torn.png").write_bytes(b"\x89PNG torn")
    (tmp_path / "texts.txt").write_text("a red thing\n\nsomething grey\n")
    out_file = tmp_path / "features.npz"
    status, out, err = regcache(
        "embed", model8, "--images", pictures, "--texts", tmp_path / "texts.txt", "--out", out_file
    )
    assert status == 1 and "torn.png" in err and "1 of 3 pictures" in err
    with np.load(out_file) as stored:
        assert stored["paths"].tolist() == ["sub/grey.jpg", "wide.png"]
        assert stored["features"].shape == (2, 128) and stored["features"].dtype == np.float32
        assert stored["text_features"].shape == (2, 128)


def test_a_plan_of_another_encoder_is_refused(regcache, tmp_path):
    from regcache_jax.core.plan import empty_plan
    from regcache_jax.models.plan_file import save_plan

    plan = tmp_path / "plan.safetensors"
    save_plan(plan, empty_plan(8, 4, 32), {"encoder": "someone else", "encoder_hash": "0" * 64})
    status, _, err = regcache("quantize", MODEL, *DATA, "--registers", plan, "--out", tmp_path / "x")
    assert status == 1 and "another encoder (someone else)" in err
    small = tmp_path / "small.safetensors"
    save_plan(small, empty_plan(3, 4, 32))
    status, _, err = regcache("quantize", MODEL, *DATA, "--registers", small, "--out", tmp_path / "x")
    assert status == 1 and "3 blocks of 4 heads" in err and not (tmp_path / "x").exists()


def test_an_interrupt_that_falls_into_a_callback_of_c_code_is_not_lost():
    """Where Python would print "Exception ignored in" and go on to the end."""
    program = """
import gc, signal, sys, time
from regcache_jax.cli.main import interrupt_again
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def collected(phase, info):
    gc.callbacks.remove(collected)
    raise KeyboardInterrupt
sys.unraisablehook = interrupt_again
gc.callbacks.append(collected)
gc.collect()
try:
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stderr == ""


LATE = """
import sys, types
from regcache_jax.cli.main import interrupt_again
sys.__unraisablehook__ = lambda lost: print(lost.exc_value, file=sys.stderr)
for error in (RuntimeError("Event loop is closed"), RuntimeError("another fault")):
    interrupt_again(types.SimpleNamespace(exc_type=RuntimeError, exc_value=error))
"""


def test_what_tensorstore_reports_after_the_first_fault_is_no_traceback():
    """On a full disk every array that is being written fails; the first fault is told, in one line."""
    said = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True).stderr
    assert "another fault" in said and "Event loop" not in said
