"""What every test runs under: two simulated CPU devices, quick compilation, strict dtype promotion, annotated shapes checked."""

import gc
import os
import resource
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

OLDEST = version("jaxlib").startswith("0.10.")
# Compiled programs are kept from file to file, worker to worker and run to run (`make clean` drops them): what a test costs is
# mostly compiling. A program's key is its text, the compiler's version and its options, so a stale one is never taken. Not with jaxlib
# 0.12, which ended a worker by a segmentation fault as it put a program into bytes.
if OLDEST:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Two devices tell what more would; project/test_eight_devices.py runs the tests marked `devices` with eight. Most programs run once, on
# arrays of a few hundred numbers: by the older, simpler emitters and without optimisation they are compiled in a tenth of the time.
DEVICES = os.environ.get("SIMULATED_DEVICES", "2")
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if OLDEST:  # later ones have no other emitters, and end at a flag that they do not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES} {QUICK}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Each worker has a core: threads of PyTorch and BLAS that wait for one another would only spin on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No test cuts the power: a disk need not hold what is written before the next line runs.
os.fsync = lambda handle: None

from jaxtyping import install_import_hook

# The numeric tower of PEP 484: an int is welcome where a float is announced, as type checkers have it.
install_import_hook("regcache_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
gc.freeze()
gc.set_threshold(100_000, 50, 50)


MORE_MEMORY = 2 << 30
"""Bytes that a worker may hold when programs were last dropped, and so many more."""
MAPS = int(Path("/proc/sys/vm/max_map_count").read_text()) // 3
"""Pieces of memory that Linux may map for a worker, a third of what it allows: a program is several, and XLA ends the process
by a segmentation fault where there are no more."""
_held = [0]
NEEDED = 2 << 30
"""Bytes that programs and the folders of tests take at most."""


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(autouse=True, scope="module")
def _programs_of_finished_files():
    """What a file has traced and compiled serves the files after it, until it is too much: of the whole run it is 8 GiB a worker, and more
    pieces of memory than there may be."""
    yield
    maps = Path("/proc/self/maps").read_text().count("\n")
    if _memory() > _held[0] + MORE_MEMORY or maps > MAPS:
        jax.clear_caches()
        _held[0] = _memory()  # what is freed does not all go back to the system


@pytest.fixture(scope="module")
def drawings():
    """All bundled drawings, as the recipe of the bundled encoder trains on them."""
    from regcache_jax.demo.recipe.drawings import bundled_drawings

    return bundled_drawings()


@pytest.fixture(scope="module")
def few(drawings):
    """Twelve of its concepts."""
    return drawings.keep(range(0, 204, 17))


@pytest.fixture
def regcache(capsys):
    """Runs a command in this process; gives its status, standard output and standard error."""
    from regcache_jax.cli.main import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def pytest_sessionstart(session: pytest.Session) -> None:
    """A disk that gets full ends in hundreds of failures, none of which says why. Workers start when it has been looked at."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    for place in () if is_worker else (tempfile.gettempdir(), session.config.rootpath):
        if (free := shutil.disk_usage(place).free) < NEEDED:
            pytest.exit(
                f"{place} has {free / 2**30:.1f} GiB free, and the tests write up to {NEEDED >> 30} GiB", returncode=2
            )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
