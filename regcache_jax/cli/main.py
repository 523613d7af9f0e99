"""The command group: which commands there are, and what becomes of errors.

Exit status: 0 done, 1 failed (one line says why), 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from regcache_jax.core.errors import LONGEST_MESSAGE, UserError, shown
from regcache_jax.core.registry import load_modules
from regcache_jax.files import distributed

COMMANDS = {
    "demo": "run",
    "models": "convert",
    "convert": "convert",
    "inspect": "inspect",
    "search": "registers",
    "calibrate": "calibrate",
    "calibration": "calibrate",
    "quantize": "quantize",
    "compare": "compare",
    "evaluate": "evaluate",
    "embed": "embed",
    "run": "run",
    "report": "run",
    "tpu": "tpu",
    "gpu": "tpu",
    "export": "export",
}
"""Command -> the file of this folder that holds it, in the order in which `--help` lists them."""


GOOGLE = "0x1ae0"
"""Google's number among makers of PCI devices; TPUs have it."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """One command, or None for an unknown name (click then names the nearest)."""
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"regcache_jax.cli.{COMMANDS[name]}"), name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does it, with the nearest names for a typing error."""
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 3)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {' or '.join(near)}?", ctx) from None
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--with",
    metavar="MODULE",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, option, modules: load_modules(modules),
    help="Import a Python module first, which registers layouts, methods, objectives or tasks of your own.",
)
@click.version_option(package_name="regcache-jax", prog_name="regcache")
def cli() -> None:
    """Vision encoders in int8 on TPUs, GPUs and CPUs, without training.

    A checkpoint becomes a model folder (convert); its outlier tokens are looked at (inspect) and given registers
    (search); it is quantised (quantize) and held against its float self (evaluate). `regcache demo` shows it all.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its status."""
    say_nothing_of_what_is_not_there()
    # see `core.precision`; so that threads and child processes know it too
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    sys.unraisablehook = interrupt_again
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        status = cli.main(arguments, prog_name="regcache", standalone_mode=False)
    except click.exceptions.Abort:
        status = interrupted()
    except KeyboardInterrupt:
        status = interrupted()
    except click.ClickException as error:
        show_usage(error)
        status = error.exit_code
    except UserError as error:
        from regcache_jax.cli.screen import wrapped

        click.echo(wrapped(f"regcache: {error}", sys.stderr.isatty()), err=True)
        status = 1
    except ImportError as error:
        driver = re.search(r"nstall (\w+) to access", str(error))  # fsspec's words
        if driver is None:
            raise
        click.echo(f"regcache: paths in this store of objects need {driver[1]}: pip install {driver[1]}", err=True)
        status = 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"regcache: {shown(f'{error.strerror or error}{where}', LONGEST_MESSAGE)}", err=True)
        status = 1
    status = status if isinstance(status, int) else 0
    if status:
        distributed.leave(status)
    sys.exit(status)


def say_nothing_of_what_is_not_there(devices: str = "/sys/bus/pci/devices") -> None:
    """Where the machine has no TPU (no PCI device of Google's), libtpu need not ask the network for one, nor JAX load it where it has no
    other plugin; and a hub that cannot be reached is one line of ours, not each of its retries. What stands in the environment is left
    alone."""
    vendors = (path.read_text().strip() for path in Path(devices).glob("*/vendor"))
    if GOOGLE not in vendors:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        if importlib.util.find_spec("jax_plugins") is None and not importlib.metadata.entry_points(group="jax_plugins"):
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def show_usage(error: click.ClickException) -> None:
    """What was wrong with the use of a command, as click says it, broken between words."""
    from regcache_jax.cli.screen import wrapped

    written = io.StringIO()
    error.show(written)
    for line in written.getvalue().splitlines():
        click.echo(wrapped(line, sys.stderr.isatty()), err=True)


def interrupt_again(lost: Any) -> None:
    """Python drops what is raised in a callback of C code (JAX has one that runs at garbage collection), Ctrl-C included: then it
    is raised once more, when the callback is over.

    Of several arrays that cannot be read or written (a full disk) Orbax raises the first fault, which is told, and closes the loop that
    TensorStore's threads report the others to: those reports are dropped without a traceback."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    elif str(lost.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(lost)


def interrupted() -> int:
    """Says so; 130 is what shells use for Ctrl-C."""
    click.echo("regcache: interrupted; what was finished is kept, nothing is half-written", err=True)
    return 130
