"""The pipeline: stages are kept, redone when what they depend on changes, and survive a kill; the page opens in a browser."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from randomized import draw_parameters, siglip

from regcache_jax import pipeline
from regcache_jax.cli.run import load_config, override
from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.data import load_images, open_dataset
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.encoders import catalog
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.files import results
from regcache_jax.models import folder as checkpoints
from regcache_jax.pipeline.material import Material

SMALL = (
    "--config.schemes=w8a8", "--config.reference.limit=24", "--config.calibration.limit=24",
    "--config.evaluation.limit=32", "--config.search.max_trials=8", "--config.search.chunk=24", "--config.batch_size=32",
)  # fmt: skip


class Recorder(Observer):
    """Remembers which stages ran and which were kept."""

    def __init__(self):
        self.ran, self.kept = [], []

    def started(self, stage):
        self.ran.append(stage)

    def skipped(self, stage):
        self.kept.append(stage)


def small_config(*more: str):
    config = load_config("demo")
    override(config, (*SMALL, *more))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run of the demo's config."""
    folder = tmp_path_factory.mktemp("run")
    recorder = Recorder()
    rows = pipeline.run(small_config(), folder, recorder)
    return folder, rows, recorder


@pytest.mark.slow
def test_the_rows_of_the_demo_have_the_keys_that_others_read(finished):
    folder, rows, _ = finished
    assert results.read(folder / "results.json") == json.loads(json.dumps(rows))
    kinds = [
        (row["quantization"]["scheme"], row["quantization"]["method"], row["quantization"]["registers"]) for row in rows
    ]
    assert kinds == [
        ("float", None, False), ("float", None, True), ("w8a8", "rtn", False), ("w8a8", "rtn", True),
        ("w8a8", "prefix-only", False), ("w8a8", "delete-only", False), ("w8a8", "rtn", False), ("w8a8", "smoothquant+erq", False),
        ("w8a8", "rtn", False),
    ]  # fmt: skip
    assert [row["quantization"]["activations"] for row in rows[2:]] == ["static"] * 6 + ["token"]
    assert all(set(row["metrics"]) >= {"acc1", "acc5", "mean_per_class_recall"} for row in rows)


@pytest.mark.slow
def test_a_second_run_keeps_every_stage_and_gives_the_same_rows(finished):
    folder, rows, _ = finished
    recorder = Recorder()
    assert pipeline.run(small_config(), folder, recorder) == rows
    assert recorder.ran == [] and sorted(recorder.kept) == sorted(finished[2].ran)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(regcache, tmp_path):
    status, out, err = regcache("run", "--config", "demo", "--workdir", tmp_path / "run", "--dry-run", *SMALL)
    assert status == 0, err
    assert "reference: 24 pictures of emoji (train)" in out and "evaluation: 32 pictures of emoji (test)" in out
    assert "1 search (w8a8), then 9 rows: float plain, float registers, w8a8 plain" in out
    assert not (tmp_path / "run").exists()
    status, _, err = regcache("run", "--config", "demo", "--workdir", tmp_path, "--dry-run", "--config.rows=best")
    assert status == 1 and "rows best are unknown" in err
    status, _, err = regcache("run", "--config", "demo", "--workdir", tmp_path, "--dry-run", "--config.cost=v9z")
    assert status == 1 and "topology must be of v4" in err


@pytest.mark.slow
def test_other_evaluation_data_redoes_the_evaluation_only(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    recorder = Recorder()
    pipeline.run(small_config("--config.evaluation.limit=24"), tmp_path / "run", recorder)
    assert recorder.kept == ["inspect", "search_w8a8", "quantize_w8a8", "costs"]
    assert all(stage.startswith("evaluate_") for stage in recorder.ran[:-1]) and recorder.ran[-1] == "figures"


@pytest.mark.slow
def test_the_encoder_that_auto_made_is_a_row_of_the_errors_of_patches(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    recorder, other = Recorder(), tmp_path / "auto"
    shutil.copytree(folder / "models" / "w8a8", other)  # what `quantize --auto` might have written
    pipeline.run(small_config(f"--config.auto={other}"), folder, recorder)
    assert recorder.ran == ["figures"]
    found = json.loads((folder / "story.json").read_text())["figures"]["patches"]["rows"]
    assert list(found) == ["plain", "registers", "auto"] and found["auto"] == found["registers"]
    assert "by auto" in (folder / "report.html").read_text()
    with pytest.raises(UserError, match=r"config\.auto must be a .* at w8a8, from `quantize --auto`; .* at float"):
        pipeline.run(small_config(f"--config.auto={bundled_model()}"), folder, recorder)


@pytest.mark.slow
def test_a_damaged_stage_record_is_redone_and_never_believed(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    record = tmp_path / "run" / "stages" / "evaluate_w8a8_plain.json"
    record.write_text(record.read_text()[:40])
    recorder = Recorder()
    assert pipeline.run(small_config(), tmp_path / "run", recorder) == finished[1]
    assert recorder.ran == ["evaluate_w8a8_plain"]


@pytest.mark.slow
def test_the_report_of_a_run_renders_in_a_browser_without_errors(finished, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None, "no Chromium on this machine; `make test` installs Debian's where it can"
    page = finished[0] / "report.html"
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--window-size=1000,2400",
    ]  # fmt: skip
    done = subprocess.run([browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    dump = done.stdout
    assert dump.count("<tr") >= 9 and dump.count("<svg") >= 13
    shown = re.findall(
        r"<tr class=\"[^\"]*\"><td>[^<]*</td><td>[^<]*(?:<sup>\d</sup>)?</td><td>([\d.]+)&nbsp;%</td>", dump
    )
    assert shown == [f"{100 * row['metrics']['acc1']:.1f}" for row in results.read(finished[0] / "results.json")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_exits_130_and_leaves_nothing_half_written(tmp_path, number):
    command = [sys.executable, "-m", "regcache_jax.cli", "run", "--config", "demo", "--workdir", str(tmp_path), *SMALL]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    for line in process.stderr:
        if line.startswith("search_w8a8 ..."):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert [file for file in tmp_path.rglob("*") if file.name.startswith(".")] == []
    assert (tmp_path / "stages" / "inspect.json").exists() and not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_another_model_in_the_same_folder_is_not_mistaken_for_the_first(finished, tmp_path):
    """A checkpoint is converted into the work folder; with another checkpoint it is converted again."""
    experiments = []
    for seed in (0, 1):
        source = tmp_path / f"source{seed}"
        draw_parameters(siglip(), seed).save_pretrained(source)
        config = small_config(f"--config.model={source}")
        experiments.append(Material(pipeline.read_config(config), tmp_path / "run", Observer()).identity)
    assert experiments[0] != experiments[1]


@pytest.mark.slow
def test_the_int8_folder_that_is_left_gives_the_row_that_was_measured(finished):
    folder, rows, _ = finished
    model = checkpoints.load(folder / "models" / "w8a8")
    assert model.encoder.scheme.name == "w8a8" and model.encoder.plan is not None
    data = open_dataset("emoji", split="test", limit=32)
    features = np.asarray(encode_image(model.encoder, jnp.asarray(load_images(data, model.preprocess))))
    reference = np.load(folder / "features" / "float.npy")
    cosine = float(np.mean(np.sum(features * reference, axis=1)))
    assert cosine == pytest.approx(
        rows[3]["metrics"]["cosine"], abs=1e-5
    )  # batches of another size add in another order


@pytest.mark.slow
def test_a_plan_that_does_not_keep_its_names_promise_has_a_note(finished):
    _, rows, _ = finished
    notes = {row["quantization"]["row"]: row["quantization"] for row in rows[2:]}
    deletes = notes["registers"]["numbers"]["delete_count"] > 0
    tried = notes["delete-only"]["numbers"]["delete_count"] > 0  # eight trials may end before a deletion alone
    assert tried == ("tried no deletion" not in (notes["delete-only"]["note"] or ""))
    assert (notes["prefix-only"]["note"] is None) == deletes == (notes["delete-only"]["note"] is None)


@pytest.mark.parametrize("name", ["clip_b16", "openclip_b16", "siglip_b16", "siglip2_b16", "dinov2_b14"])
def test_every_encoders_config_can_be_run_and_expects_the_published_accuracy(name):
    config = load_config(name)
    pipeline.check_config(pipeline.read_config(config))
    row = catalog.get(config.model)
    assert config.expected_acc1 == pytest.approx(row.published / 100)
    assert (config.task == "knn") == (row.spec.text is None)
    assert config.schemes == ("w8a8", "w6a6", "w4a4")


@pytest.mark.slow
def test_a_float_accuracy_off_by_more_than_a_third_of_a_point_makes_quantised_rows_invalid():
    config = pipeline.read_config(small_config("--config.evaluation.limit=0", "--config.expected_acc1=0.87"))
    for found, valid in ((0.8701, True), (0.8729, True), (0.8661, False)):
        rows = [{"metrics": {"acc1": found}, "quantization": {}} for _ in range(2)]
        pipeline.check_float_accuracy(rows, config, Observer())
        assert [row["quantization"]["valid"] for row in rows] == [valid, valid]
