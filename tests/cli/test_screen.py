"""What a person sees: bars and drawn tables on a terminal, quiet lines and tab-separated tables in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from regcache_jax.cli.columns import Columns
from regcache_jax.cli.main import say_nothing_of_what_is_not_there
from regcache_jax.files import progress as shown

PYTHON = """
import regcache_jax as rc
with rc.progress("searching") as told:
    told(0, None, "getting ready")
    told(3, 4, "best error 0.1")
"""

JOB = """
from regcache_jax.cli.screen import print_table, progress
with progress("stirring", 3) as update:
    for _ in range(3):
        update(1, note="slowly")
with progress("waiting") as update:
    update(note="longer")
print_table("Soups", ("soup", "salt"), [("leek", 0.5), ("pea", None)])
"""


def on_a_terminal(code: str) -> str:
    """What a program writes to a terminal of 80 columns, without the codes that move the cursor."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # Linux: the other side is closed
        pass
    os.close(ours)
    assert child.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())


def test_on_a_terminal_bars_count_steps_or_seconds_and_tables_are_drawn():
    seen = on_a_terminal(JOB)
    assert "stirring" in seen and "3/3" in seen and "slowly" in seen and "━" in seen
    assert re.search(r"waiting.*\b\d+ s", seen) and "0/?" not in seen
    assert "leek  0.500" in seen and "stirring:" not in seen


def test_columns_give_way_down_to_their_words_then_texts_then_heads_and_numbers_are_broken_last():
    columns = Columns(("model", "name", "relative error"), [("a" * 30, "b " * 10 + "b", "0.125 / 1e-05")])
    assert columns.figures == [False, False, True] and columns.whole == [30, 4, 13]
    assert columns.widths(104) == [30, 21, 14]
    assert columns.widths(60) == [30, 13, 13]  # b's may be broken between
    assert columns.widths(40) == [21, 4, 13]
    assert columns.widths(20) == [2, 3, 13]


def test_sentences_wrap_between_words_on_a_terminal_and_stay_one_line_in_a_pipe():
    sentence = " ".join(["sentences"] * 20)
    code = f"from regcache_jax.cli.screen import say, tell; say({sentence!r}); tell({sentence!r})"
    lines = on_a_terminal(code).split("\r\n")
    assert [len(line) for line in lines] == [79, 79, 39, 79, 79, 39, 0]  # eight, eight and four words, twice
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == sentence + "\n"


def test_wrong_use_is_told_in_lines_that_wrap_between_words():
    code = "from regcache_jax.cli import main; main(['evaluate', 'model', '--dataset', 'emoji', '--task', 'none'])"
    seen = on_a_terminal(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    )  # which exits with 2
    assert "Invalid value for '--task'" in " ".join(seen.split()) and max(map(len, seen.split("\r\n"))) <= 80


def test_a_machine_without_a_tpu_is_not_searched_for_one(tmp_path, monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "HF_HUB_VERBOSITY", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "0000:00:00.0").mkdir()
    (tmp_path / "0000:00:00.0" / "vendor").write_text("0x1ae0\n")
    say_nothing_of_what_is_not_there(str(tmp_path))
    assert "TPU_SKIP_MDS_QUERY" not in os.environ and os.environ["HF_HUB_VERBOSITY"] == "error"
    (tmp_path / "0000:00:00.0" / "vendor").write_text("0x10de\n")
    say_nothing_of_what_is_not_there(str(tmp_path))
    assert (
        os.environ["TPU_SKIP_MDS_QUERY"] == "1" and os.environ["JAX_PLATFORMS"] == "cpu"
    )  # no plugin of JAX's is installed


def test_a_plugin_of_jax_is_left_to_be_found(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / "jax_plugins").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    say_nothing_of_what_is_not_there(str(tmp_path))
    assert "JAX_PLATFORMS" not in os.environ


def test_the_tab_key_completes_commands_options_and_words():
    environment = {**os.environ, "_REGCACHE_COMPLETE": "bash_complete"}
    command = [sys.executable, "-c", "from regcache_jax.cli import main; main()"]
    for words, wanted in (
        ("qu", "quantize"),
        ("quantize --activ", "--activations"),
        ("quantize --activations t", "token"),
    ):
        place = {"COMP_WORDS": f"regcache {words}", "COMP_CWORD": str(len(words.split()))}
        done = subprocess.run(command, env={**environment, **place}, capture_output=True, text=True, check=True)
        assert f"plain,{wanted}" in done.stdout.splitlines()


def test_in_a_pipe_a_line_says_what_begins_and_one_how_long_it_took():
    done = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"stirring \.\.\.\nstirring: 0\.\d s\nwaiting \.\.\.\nwaiting: 0\.\d s\n", done.stderr)
    assert done.stdout == "soup\tsalt\nleek\t0.500\npea\t\n"


NASTY = """
from regcache_jax.cli.screen import Bars, print_table, progress, say, tell
name = "x\\x1b[31m\\rregcache: all is well\\n[red]y"
say(name); tell(name)
print_table(name, ("a", name), [(name, 0.5)])
with progress(name) as update:
    update(note=name)
with Bars() as bars:
    bars.skipped(name)
"""


def test_a_name_cannot_steer_the_terminal_nor_begin_a_line():
    done = subprocess.run([sys.executable, "-c", NASTY], capture_output=True, text=True, check=True)
    for said in (done.stdout, done.stderr):
        assert "\x1b" not in said and "\r" not in said and not re.search(r"^regcache:", said, re.M)
        assert r"x\x1b[31m\rregcache: all is well\n[red]y" in said
    assert "\r" not in on_a_terminal(NASTY.replace("with progress", "if False:\n  with progress")).replace("\r\n", "")


def test_in_a_pipe_progress_says_now_and_then_how_much_is_done_and_about_how_long_the_rest_takes(monkeypatch, capsys):
    """Steps took 10, 19.9, 1.1, 14 and 17 seconds."""
    now = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    lines = shown.Lines("stirring", None, 0.0)
    for second in (10, 29.9, 31, 45, 62):
        now[0] = second
        lines(1, total=10 if second > 40 else None, note="slowly")
    assert capsys.readouterr().err.splitlines() == [
        "stirring: 3 (slowly)",
        "stirring: 5 of 10, about 70 s left (slowly)",
    ]


def test_in_a_pipe_a_step_that_takes_long_says_how_long_it_has_taken(monkeypatch, capsys):
    monkeypatch.setattr(shown, "EVERY", 0.3)
    with shown.bar("compiling"):
        shown.time.sleep(0.5)
    assert re.match(r"compiling \.\.\.\ncompiling: \d s so far\ncompiling: \d\.\d s\n", capsys.readouterr().err)


def test_python_shows_progress_as_the_command_line_does():
    seen = on_a_terminal(PYTHON)
    assert "searching" in seen and "3/4" in seen and "best error 0.1" in seen
    done = subprocess.run([sys.executable, "-c", PYTHON], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"searching \.\.\.\nsearching: \d\.\d s\n", done.stderr) and not done.stdout
