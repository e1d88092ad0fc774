"""Settings of the test suite: eight fake CPU devices, no implicit rank promotion, the real data if installed."""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

# Compiling is most of the suite's time. This code generator for fusions on CPU doubles it, and code in parts, which are
# compiled in parallel, adds a quarter, though other test processes need the other cores. Commands that tests start
# inherit the variable. Later versions of JAX do not have the first flag.
if importlib.metadata.version("jax") < "0.11":
    flags = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
    os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *flags))

import jax
import pytest
from paths import REPOSITORY

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite compiles hundreds of small programs and runs each once or twice: compiling them is most of its time.
jax.config.update("jax_disable_most_optimizations", True)

# Prepared tokens of runs and commands stay out of the user's cache.
os.environ["COTMI_CACHE"] = tempfile.mkdtemp(prefix="cotmi_jax_cache_")
atexit.register(shutil.rmtree, os.environ["COTMI_CACHE"], ignore_errors=True)


# Compiled programs are shared by the workers of the suite, which inherit this variable, and by the commands they start.
if "COTMI_TEST_EXECUTABLES" not in os.environ:
    os.environ["COTMI_TEST_EXECUTABLES"] = tempfile.mkdtemp(prefix="cotmi_jax_executables_")
    atexit.register(shutil.rmtree, os.environ["COTMI_TEST_EXECUTABLES"], ignore_errors=True)


# Workers take whole files in this order: those of a few long tests first, so that no worker ends long after the others.
LONGEST_FILES = (
    *(
        "test_readme.py",
        "test_gcs.py",
        "test_soak.py",
        "test_killed_workers.py",
        "test_multihost.py",
        "test_estimate.py",
        "test_aot.py",
    ),
    *("test_training.py", "test_mi_monitor.py", "test_run.py", "test_cli.py", "test_launch_runs.py", "test_resume.py"),
    *("test_disks.py", "test_hostile.py", "test_compilation_cache.py", "test_export_page.py"),
    *("test_legacy.py", "test_families.py", "test_describe.py", "test_extending.py"),
)


# Tracing makes objects by the million, few of them garbage: with Python's default of a collection per 700 it takes a
# tenth longer.
gc.set_threshold(100_000, 20, 20)


def pytest_collection_finish() -> None:
    """Leave what has been imported out of later collections."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: index for index, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """Root of the real data sets (`dss/`, `t5/`); skips where they are not installed."""
    root = pathlib.Path(os.environ.get("COTMI_DATA_ROOT", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}: set COTMI_DATA_ROOT")
    return root
