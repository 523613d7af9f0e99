"""`regcache inspect` and `regcache search` on a planted encoder: what they print and write, and one message for what cannot be."""

from __future__ import annotations

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import regcache_jax as rc
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.studies.planted import plant, planted_spec

SEARCH = ("--registers", "1", "--batch-size", "3", "--max-trials", "12")


@pytest.fixture(scope="module")
def planted():
    return plant(["patch sinks"], spec=planted_spec(32, 4, 2, 16, 4), num_images=6)


@pytest.fixture(scope="module")
def folder(planted, tmp_path_factory):
    """The planted encoder and its pictures (black, white and noise) as files, by class, and an encoder with a NaN."""
    folder = tmp_path_factory.mktemp("planted")
    rc.save(folder / "model", planted.encoder)
    (folder / "pictures" / "one").mkdir(parents=True)
    (folder / "pictures" / "two").mkdir()
    for number, image in enumerate(planted.images):
        pixels = np.round((image + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / ("one" if number < 3 else "two") / f"{number}.png")
    for name, count in (("single", 1), ("black", 3)):
        (folder / name).mkdir()
        for number in range(count):
            Image.new("RGB", (16, 16)).save(folder / name / f"{number}.png")
    blocks = planted.encoder.params.image.blocks
    fc2 = blocks.mlp.fc2.replace(kernel=blocks.mlp.fc2.floats.at[0, 0, 0].set(jnp.nan))
    rc.save(folder / "broken", with_blocks(planted.encoder, blocks.with_layers({"fc2": fc2})))
    return folder


def data(folder, name="pictures"):
    return ["--dataset", "folder", "--data-dir", folder / name]


@pytest.mark.slow
def test_without_pictures_for_the_sensitivity_the_verdict_is_that_of_the_norms_alone(
    regcache, planted, folder, tmp_path
):
    report = tmp_path / "seen.json"
    arguments = ("inspect", folder / "model", *data(folder), "--sensitivity-images", 0, "--json", report)
    status, out, err = regcache(*arguments)
    assert status == 0 and f"patch sinks from block {planted.block}" in out, err
    assert "at stake" not in out and "one site" not in out and "now, on" not in err
    seen = json.loads(report.read_text())
    assert seen["sensitivity"] is None and seen["verdict"]["stakes"] is None


@pytest.mark.slow
def test_a_planted_encoder_is_inspected_and_searched_by_command(regcache, planted, folder, tmp_path):
    picture, report = tmp_path / "seen.svg", tmp_path / "seen.json"
    arguments = [
        "inspect",
        folder / "model",
        *data(folder),
        "--batch-size",
        "4",
        "--picture",
        picture,
        "--json",
        report,
    ]
    status, out, err = regcache(*arguments)
    assert status == 0, err
    assert f"patch sinks from block {planted.block}" in out and "sinks an image 2" in out
    assert "now, on 6 pictures: what each outlier costs" in err
    order = (
        "sinks an image 2",
        "sensitive block: ",
        "block\tqkv\tout\tfc1\tfc2",
        "at stake: ",
        "largest error of the features",
    )
    places = [out.index(words) for words in order]  # the verdict of the norms, then what is measured
    assert places == sorted(places)
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[1] for line in lines[1:9]] == ["class token", "patches"] * 4  # no trained registers here
    assert len(lines[0]) == 7 and all(len(line) == 7 for line in lines[1:9])  # block, tokens, five places
    seen = json.loads(report.read_text())
    (finding,) = seen["verdict"]["findings"]
    assert finding["kind"] == "patch sinks" and finding["figures"]["sinks an image"] == 2
    assert np.shape(seen["profile"]["percentile"]) == (5, 4, 3, 3) and np.shape(seen["sensitivity"]["errors"]) == (4, 4)
    drawn = picture.read_text()
    assert drawn.startswith("<svg") and "share of the 6 pictures with a sink here" in drawn and "class token" in drawn

    plans = []
    for form in ("kv", "token"):
        plans.append(tmp_path / f"{form}.safetensors")
        more = ["--form", form, *(["--refine", "1", "--class-token"] if form == "token" else [])]
        command = ["search", folder / "model", *data(folder), *SEARCH, *more, "--out", plans[-1], "--json", report]
        status, out, err = regcache(*command)
        assert status == 0 and "registers take away" in out, err
        assert ("refin" in out) == (form == "token")
        plan, metadata = rc.load_plan(plans[-1])
        assert plan.has_registers and metadata["search"]["form"] == form and metadata["objective"] == "pooled"
        assert metadata["scheme"]["weight_bits"] == 8 and metadata["reference"]["images"] == 6
        assert {"regcache-jax", "jax", "numpy"} <= set(metadata["versions"]) and len(metadata["encoder_hash"]) == 64
        assert not {"seconds", "trials"} & set(metadata) and {"seconds", "trials"} <= set(
            json.loads(report.read_text())
        )
    assert "refined" in metadata

    again = tmp_path / "again.safetensors"
    assert regcache("search", folder / "model", *data(folder), *SEARCH, "--out", again)[0] == 0
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (plans[0], again)}
    assert len(digests) == 1  # the same search writes the same bytes

    promised = rc.load_plan(again)[1]["claim"]["error"]
    quantize = ["quantize", folder / "model", *data(folder), "--registers", again, "--json", report]
    status, out, err = regcache(*quantize, "--out", tmp_path / "int8")
    assert status == 0 and "calibrated on the 4 pictures that the plan was judged with" in out, err
    assert f"the search promised {promised:.3g}" in out and "warning" not in err
    np.testing.assert_allclose(json.loads(report.read_text())["held_out"]["error"], promised, rtol=0.1)
    status, out, err = regcache(*quantize, "--limit", 4, "--out", tmp_path / "other")
    assert (
        status == 0 and "other pictures than the 4 that the plan was judged with: 3 of them calibrate, 1 are" in out
    ), err


@pytest.mark.slow
def test_a_plan_is_quantised_by_the_objective_that_it_was_searched_by(regcache, folder, tmp_path):
    plan, report = tmp_path / "plan.safetensors", tmp_path / "report.json"
    patches = ["--objective", "patches", "--delete-counts", "2"]
    status, out, err = regcache("search", folder / "model", *data(folder), *SEARCH, *patches, "--out", plan)
    assert status == 0 and "registers take away" in out, err
    metadata = rc.load_plan(plan)[1]
    assert metadata["objective"] == "patches" and metadata["search"]["delete_counts"] == [2]
    quantize = ["quantize", folder / "model", *data(folder), "--registers", plan, "--json", report]
    status, out, err = regcache(*quantize, "--out", tmp_path / "int8")
    assert status == 0 and f"the search promised {metadata['claim']['error']:.3g}" in out, err
    status, out, err = regcache(*quantize, "--objective", "pooled", "--out", tmp_path / "other")
    assert status == 0 and "the search went by patches, which is not measured here" in out, err
    assert json.loads(report.read_text())["objective"] == "pooled"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["inspect", "model", "pictures", "--picture", "seen.png"], 1, "--picture writes SVG; call it something.svg"),
        (["inspect", "model", "black", "--accuracy"], 1, "pictures without a class"),
        (["inspect", "broken", "pictures"], 1, "token norms of block 1 are not finite"),
        (["search", "model", "single"], 1, "needs at least 2 images to tell a gain from chance, got 1"),
        (["search", "model", "black"], 1, "all 3 reference images are the same"),
        (["search", "broken", "pictures"], 1, "token norms of block 1 are not finite"),
        (["search", "model", "black", "--objective", "accuracy"], 1, "pictures without a class"),
        (["search", "model", "pictures", "--registers", "0"], 2, "takes numbers from 1 on, such as 1,2, got '0'"),
        (["search", "model", "pictures", "--max-minutes", "0"], 2, "takes a number above 0, got 0"),
        (["search", "model", "pictures", "--max-block-flops", "-1"], 2, "takes a number above 0, got -1"),
        (["search", "model", "pictures", "--objective", "labels"], 2, "'both', 'accuracy'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_inspected_or_searched_gets_one_message(regcache, folder, tmp_path, arguments, status, message):
    command, model, pictures, *more = arguments
    out = ["--out", tmp_path / "plan.safetensors"] if command == "search" else []
    found, _, err = regcache(command, folder / model, *data(folder, pictures), *more, *out)
    assert found == status and message in err
    assert list(tmp_path.iterdir()) == []
