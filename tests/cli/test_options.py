"""Options are fields of dataclasses: what a field says is what a command offers, and what was given comes back as one."""

from __future__ import annotations

import dataclasses
from typing import Literal

import click
import pytest
from click.testing import CliRunner

import regcache_jax as rc
from regcache_jax.cli.main import COMMANDS, cli
from regcache_jax.cli.options import some, takes
from regcache_jax.core.errors import UserError
from regcache_jax.core.options import check_fields, like, meaning_of, option
from regcache_jax.core.search_config import SearchConfig


@dataclasses.dataclass(frozen=True)
class Soup:
    """What is cooked."""

    name: str = option("Which soup.")
    salt: float = option("How much.", 0.5, unit="grams", above=0)
    kind: Literal["thick", "thin"] = option("Its kind.", "thin")
    leeks: tuple[int, ...] = option("Numbers to try.", (1, 2), least=1)
    herbs: tuple[str, ...] | None = option("Names.", None)
    heat: int | Literal["auto"] = option("Degrees.", "auto", unit="degrees", least=1)
    hot: bool = option("Whether hot.", False)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.hot and self.kind == "thick":
            raise UserError("--hot goes with --kind thin")


def cooked(*arguments: str) -> tuple[int, str, list[Soup]]:
    """Status and output of a command that takes a soup, and the soup."""
    seen: list[Soup] = []

    @click.command()
    @takes(soup=Soup)
    def cook(soup: Soup) -> None:
        seen.append(soup)

    result = CliRunner().invoke(cook, arguments)
    return result.exit_code, result.output, seen


def test_what_is_given_comes_back_as_the_dataclass_and_what_is_not_is_its_default():
    assert cooked("--name", "pea")[2] == [Soup("pea")]
    given = [
        "--name",
        "pea",
        "--salt",
        "2",
        "--kind",
        "thick",
        "--leeks",
        "4, 5",
        "--herbs",
        "dill,mint",
        "--heat",
        "90",
    ]
    assert cooked(*given)[2] == [Soup("pea", 2.0, "thick", (4, 5), ("dill", "mint"), 90)]


def test_help_has_the_fields_words_unit_choices_bounds_and_default():
    _, help, _ = cooked("--help")
    assert "--name TEXT" in help and "Which soup.  [required]" in help
    assert "--salt GRAMS" in help and "[default: 0.5; x>0]" in help
    assert "[thick|thin]" in help and "[default: 1,2]" in help and "--heat DEGREES" in help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--name'"),
        (["--name", "pea", "--salt", "0"], "takes a number above 0, got 0"),
        (["--name", "pea", "--kind", "solid"], "'thick', 'thin'"),
        (["--name", "pea", "--leeks", "1,none"], "takes numbers from 1 on, such as 1,2, got '1,none'"),
        (["--name", "pea", "--heat", "much"], "takes a whole number from 1 on or auto, got much"),
        (["--name", "pea", "--hot", "--kind", "thick"], "--hot goes with --kind thin"),
    ],
)
def test_bad_values_and_combinations_are_wrong_use(arguments, message):
    status, output, seen = cooked(*arguments)
    assert status == 2 and message in output and seen == []


def test_a_field_made_like_another_says_the_same_but_for_what_is_changed():
    @dataclasses.dataclass(frozen=True)
    class Stew:
        salt: float = like(Soup, "salt", help="How much of it.", default=1.0)

    (field,), (_, original, *_) = dataclasses.fields(Stew), dataclasses.fields(Soup)
    assert Stew().salt == 1.0
    assert meaning_of(field) == dataclasses.replace(meaning_of(original), help="How much of it.")


def test_some_fields_of_a_dataclass_are_options_and_the_others_keep_their_defaults():
    @click.command()
    @takes(config=some(SearchConfig, "registers", "form"))
    def look(config: SearchConfig) -> None:
        click.echo(repr(config == SearchConfig(registers=(3,))))

    assert CliRunner().invoke(look, ["--registers", "3"]).output == "True\n"
    assert "--copies" not in CliRunner().invoke(look, ["--help"]).output


def test_python_is_told_of_values_out_of_bounds_as_the_command_line_is():
    with pytest.raises(UserError, match=r"back must be at least 0, got -1; registers must be at least 1, got 0"):
        rc.SearchConfig(back=-1, registers=(0, 1))
    with pytest.raises(UserError, match=r"max_minutes must be above 0, got nan"):
        rc.SearchConfig(max_minutes=float("nan"))
    with pytest.raises(UserError, match=r"kind must be one of thick, thin, got 'solid'"):
        Soup("pea", kind="solid")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_more_than_eight_things(command):
    function = cli.get_command(click.Context(cli), command).callback
    assert function.__wrapped__.__code__.co_argcount <= 8
