"""The report: tables and plots say what the numbers say."""

from __future__ import annotations

import re

import pytest
import stories
from stories import plain, trial

from regcache_jax.core.errors import UserError
from regcache_jax.files import results
from regcache_jax.files.paths import write_json
from regcache_jax.files.sealed import seal
from regcache_jax.report import first, flips, numbers, plots, rivals, tables
from regcache_jax.report.page import page
from regcache_jax.report.story import read_story


@pytest.fixture
def rows():
    return stories.rows()


@pytest.fixture
def story():
    return stories.story()


def test_the_results_table_has_a_line_a_row_and_says_each_note_once(rows):
    text = plain(tables.results_table(rows))
    assert text.count("<tr") == 1 + len(rows) and text.count("the same plan") == 1 and text.count("<sup>1</sup>") == 2
    assert "87.0 %" in text and "0.9800" in text
    full = re.findall(r'<tr class="full [^"]*"><td>(\w+)</td>', text)
    assert full == ["float", "w8a8"]


def test_measures_that_no_row_has_get_no_column(rows):
    bare = [{**row, "metrics": {"acc1": row["metrics"]["acc1"]}} for row in rows]
    text = tables.results_table(bare)
    assert "top-1" in text and "top-5" not in text and "cosine" not in text


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        (trial(0), "nothing"),
        (trial(0, 3, 8), "prefix only"),
        (trial(0, delete_count=3), "delete only"),
        (trial(0, 3, 8, 3), "prefix and delete"),
    ],
)
def test_a_trial_is_told_by_what_its_plan_does(numbers, kind):
    assert tables.trial_kind(numbers["numbers"]) == kind


def test_the_best_of_a_kind_is_one_that_most_pictures_have_judged(story):
    text = tables.trials_table(story["search"])
    assert "0.00158" in text and "0.2<" not in text and "25%" in text  # deletion was seen by one chunk of four


def test_the_chosen_plan_stands_in_words(story):
    text = tables.chosen_table(story["search"])
    assert "1 in blocks 3 to 7, 2.5 copies" in text and "<td>none</td>" in text


def test_code_in_backticks_is_set_as_code_and_the_rest_is_escaped():
    assert tables.sentences(["`a<b` & c"]) == "<ul><li><code>a&lt;b</code> &amp; c</li></ul>"


def test_a_value_ten_times_as_large_lies_one_power_higher():
    axis = plots.LogAxis([0.5, 300.0, 0.0])
    assert (axis.low, axis.high) == (-1, 3)
    assert axis(10.0) - axis(100.0) == pytest.approx(axis(1.0) - axis(10.0))
    assert axis(1000.0) == plots.TOP and axis(0.1) == plots.HEIGHT - plots.BOTTOM


def test_an_axis_of_one_value_or_none_still_has_a_height():
    assert plots.LogAxis([100.0]).low < plots.LogAxis([100.0]).high
    assert plots.LogAxis([0.0]).low < plots.LogAxis([0.0]).high


def test_heat_maps_run_from_dark_to_bright_and_take_zeros():
    light = [int(re.findall(r"(\d+)%\)", plots.colour_of(value, 90.0))[0]) for value in (0.0, 1.0, 10.0, 90.0, 900.0)]
    assert light == sorted(light) and light[0] < light[1] < light[3] == light[4]
    assert plots.heat_map([[0.0, 0.0], [0.0, 0.0]], 0.0).count("<rect") == 4


def test_the_page_needs_no_network_and_escapes_names(rows, story):
    text = page(rows, story)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and text.count("<script") == 1
    assert "small &lt;b&gt;" in text and "small <b>" not in text
    assert "trained and planted on purpose" in text


def test_the_page_says_how_near_patches_are_and_draws_pictures_of_any_shape(rows, story):
    story["figures"]["maps"][0].update(plain=[[1, 90, 3]], registers=[[1, 2, 3]])
    for found in story["figures"]["patches"]["rows"].values():
        found["maps"] = [[[0.1, 0.7, 0.2]]]
    text = page(rows, story)
    assert "without registers: 0.05 on average, 0.4 exceeded by one patch in a hundred; with registers: 0.01" in text
    drawn = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*><title>error of patches', text)
    assert drawn == [("128", "42.6667")] * 2


def test_the_page_has_the_patches_of_auto_too_where_a_run_was_given_its_encoder(rows, story):
    assert "by auto" not in page(rows, story)
    found = story["figures"]["patches"]["rows"]
    found["auto"] = {"mean": 0.007, "worst": 0.03, "maps": [[[0.0, 0.05], [0, 0]]]}
    text = page(rows, story)
    assert "with registers: 0.01 on average, 0.02 exceeded by one patch in a hundred; by auto: 0.007" in text
    assert "largest 0.7 without registers, 0.2 with registers, 0.05 by auto" in text


def test_the_first_screen_has_the_verdict_its_intervals_the_claim_beside_what_was_found_and_commands(rows, story):
    text = plain(page(rows, story).split("<h2>Results</h2>")[0])
    assert "87.0 % of 816 pictures are right (84.0 to 89.0); the float encoder has 87.0 % (84.0 to 89.0)" in text
    assert "Registers gain +17.6 points (+15.0 to +20.0) over plain rounding" in text
    assert "0.00158 &plusmn; 0.0002" in text and "0.04 (0.02 to 0.06)" in text  # 2 (1 - cosine)
    assert "2.3 MB of 8.2 MB" in text and "1.1 million of 2 million (55%)" in text and "config.cost=v5e:2x2" in text
    assert "scales, per token) does as well, as far as these pictures tell: 87.2 %, +0.2 points (-0.5 to +1.0)" in text
    assert "regcache embed models/w8a8 --images PICTURES" in text


def test_cycles_stand_where_work_does_if_a_compiler_was_asked(rows, story):
    story["config"]["cost"] = "v5e:2x2"
    story["costs"] = {
        "unit": "v5e:2x2 cycles an image, by the TPU compiler",
        "of": {"float": [24202.8], "w8a8": [36000.0, 35778.3]},
    }
    text = plain(first.first_screen(rows, story))
    assert (
        "35.8 thousand of 24.2 thousand (148%)" in text
        and "Work: v5e:2x2 cycles an image, by the TPU compiler." in text
    )


def test_a_gain_whose_interval_holds_zero_is_called_what_it_is(rows, story):
    story["changes"]["schemes"]["w8a8"]["gain"]["interval"] = [-0.01, 0.3]
    assert "cannot be told from these pictures" in first.first_screen(rows, story)


def test_without_plain_rounding_or_registers_the_first_screen_says_what_there_is(rows, story):
    story["changes"]["schemes"]["w8a8"] |= {"rows": ["float", "plain"], "gain": None, "flips": None, "rivals": {}}
    text = plain(first.first_screen([row for row in rows if row["quantization"]["row"] != "registers"], story))
    assert "w8a8, plain: 69.4 %" in text and "Registers" not in text
    assert "classes" not in flips.flips_section(story["changes"])


def test_rivals_stand_beside_registers_with_the_difference_and_its_interval(rows, story):
    text = plain(rivals.rivals_section(rows, story))
    assert "<td>dynamic scales, per token</td><td>87.2 % (84.0 to 89.0)</td><td>+0.2 points (-0.5 to +1.0)</td>" in text
    assert text.count("<tr") == 4 and '<tr class="full"><td>registers (full plan)</td>' in text
    story["changes"]["schemes"]["w8a8"]["rivals"] = {}
    assert rivals.rivals_section(rows, story) == ""


def test_sensitivity_stands_without_and_with_registers_in_one_scale_of_shades(rows, story):
    text = page(rows, story).split("<h2>What inspect found</h2>")[1].split("<h3>Norms by block</h3>")[0]
    assert "block 1 costs most: 0.11. With the registers found for w8a8 the most that a site costs is 0.0003" in text
    assert (
        text.count("<title>fc2, block 1: 0.11</title>") == 1 and text.count("<title>fc2, block 1: 0.0003</title>") == 1
    )
    assert (
        'fill-opacity="0.66"><title>fc2, block 1: 0.11<' in text
        and 'fill-opacity="0.06"><title>fc2, block 1: 0.0003<' in text
    )


def test_every_setting_and_every_version_stands_on_the_page(rows, story):
    text = page(rows, story)
    for name, value in (("search.chunk", "64"), ("model", "&quot;bundled&quot;"), ("expected_acc1", "0.87")):
        assert f"<td><code>{name}</code></td><td>{value}</td>" in text
    assert "<td>jax</td><td>0.10</td>" in text


def test_flipped_answers_are_escaped_and_the_right_ones_stand_out(story):
    text = flips.flips_section(story["changes"])
    assert "200 with plain and 3 with registers" in text
    assert "<td><strong>cat</strong></td><td>dog &lt;i&gt;</td><td><strong>cat</strong></td>" in text
    assert "<td>4</td><td>4</td><td>1</td><td>3</td><td>-1</td>" in text


@pytest.mark.parametrize(("number", "text"), [(12, "12 B"), (2_300_000, "2.3 MB"), (1.7e9, "1.7 GB")])
def test_bytes_are_written_for_people(number, text):
    assert plain(numbers.size(number)) == text


def test_the_note_on_the_bundled_encoder_is_for_the_bundled_encoder_alone(rows, story):
    story["config"]["model"] = "clip_b16"
    assert "planted on purpose" not in page(rows, story)


def test_an_invalid_float_accuracy_is_said_before_any_number(rows, story):
    rows[0]["quantization"]["valid"] = False
    text = page(rows, story)
    assert "the quantised rows are not valid" in text.split("<h2>")[0]


def test_a_folder_without_a_finished_run_or_with_a_torn_one_is_refused(rows, story, tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        read_story(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    write_json(tmp_path / "story.json", seal(story))
    with pytest.raises(UserError, match=r"results\.json holds no row"):
        read_story(tmp_path)
    results.write(tmp_path / "results.json", rows)
    (tmp_path / "story.json").write_text('{"inspect"')
    with pytest.raises(UserError, match=r"story\.json is not readable JSON"):
        read_story(tmp_path)


def test_a_row_or_a_story_that_was_changed_since_it_was_written_is_refused(rows, story, tmp_path):
    results.write(tmp_path / "results.json", rows)
    write_json(tmp_path / "story.json", seal(story))
    assert read_story(tmp_path) == (rows, seal(story))
    for name, old, new in (("results.json", "0.694", "0.994"), ("story.json", "0.00158", "0.00157")):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(whole.replace(old, new))
        with pytest.raises(UserError, match=rf"{name}.* not as it was written"):
            read_story(tmp_path)
        (tmp_path / name).write_text(whole)


SPOILT = {
    "no acc1": (lambda rows, story: rows[1]["metrics"].pop("acc1"), "row 2 of results.json has no acc1"),
    "no scheme": (lambda rows, story: rows[0]["quantization"].pop("scheme"), "row 1 of results.json has no scheme"),
    "unknown row": (lambda rows, story: rows[2]["quantization"].update(row="x"), "row 3 .* unknown kind 'x'"),
    "no model": (lambda rows, story: rows[0].pop("model"), r"results\.json: 0\.model: field required"),
    "text as metric": (lambda rows, story: rows[0]["metrics"].update(acc1="1"), r"0\.metrics\.acc1: .*valid number"),
    "no maps": (lambda rows, story: story["figures"].update(maps=[]), r"figures\.maps: .*at least 1 item"),
    "block beyond": (lambda rows, story: story["figures"]["maps"][0].update(block=9), "map of block 9 and 2 blocks"),
    "intervals of other rows": (lambda rows, story: story["changes"].update(intervals=[]), "intervals for 0 of 8 rows"),
    "no costs": (lambda rows, story: story["costs"]["of"].update(w8a8=[1.0]), "no costs for w8a8"),
    "no bytes": (lambda rows, story: story["changes"].update(bytes={}), "no bytes for w8a8"),
    "maps of two sizes": (lambda rows, story: story["figures"]["maps"][0].update(plain=[[1.0]]), "of several sizes"),
    "patches of other pictures": (
        lambda rows, story: story["figures"]["patches"]["rows"]["plain"]["maps"].append([[1.0]]),
        "not of the same pictures",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_rows_and_stories_without_what_a_page_needs_get_one_line(rows, story, tmp_path, spoil, said):
    spoil(rows, story)
    results.write(tmp_path / "results.json", rows)
    write_json(tmp_path / "story.json", seal(story))
    with pytest.raises(UserError, match=said) as fault:
        read_story(tmp_path)
    assert str(tmp_path) in str(fault.value)
