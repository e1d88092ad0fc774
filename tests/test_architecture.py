"""The layout of the package, read from the syntax trees: directions of imports, lengths and places of files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

PACKAGE = REPOSITORY / "cotmi_jax"
COMMANDS = {
    "__main__",
    "train",
    "evaluate",
    "compare",
    "predict",
    "export",
    "describe",
    "annotate",
    "judge",
    "weigh",
    "prepare",
}
LIBRARY = {"config", "errors", "cli", "files", "compilation_cache", "experiment", "help", "huge_pages"}
LIBRARY |= {"extensions", "recipes", "__init__"}
# From top to bottom: an entry imports only from itself and from entries below it.
ORDER = (
    *(
        "commands",
        "report",
        "study",
        "aot",
        "training",
        "teacher",
        "evaluation",
        "inference",
        "experiment",
        "workdir",
        "config",
        "extensions",
    ),
    *("objectives", "mi", "models", "data", "cli", "help", "recipes", "huge_pages", "parallel", "compilation_cache"),
    *("files", "errors", "__init__"),
)
MAX_LINES = 400
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "builders" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def entry(module: str) -> str:
    """The entry of ORDER for a dotted module name; all commands are one."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "commands" if name in COMMANDS else name


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, also within functions."""
    names = {module_name(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "cotmi_jax")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if (node.module or "").split(".")[0] == "cotmi_jax":
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in names else str(node.module)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down_the_list(path: Path) -> None:
    mine = entry(module_name(path))
    if mine == "__init__":
        assert not list(imports(path))
        return
    for imported in imports(path):
        theirs = entry(imported)
        assert theirs in ORDER, f"{imported} is not in ORDER"
        assert ORDER.index(theirs) >= ORDER.index(mine), f"{module_name(path)} imports {imported}, which is above it"
        if mine == "commands":
            assert theirs != "commands", f"{module_name(path)} imports the command {imported}"


def test_no_import_cycle() -> None:
    graph = {module_name(path): set(imports(path)) for path in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "mi").glob("*.py")), ids=module_name)
def test_mi_imports_only_itself_and_errors(path: Path) -> None:
    assert {entry(imported) for imported in imports(path)} <= {"mi", "errors"}


@pytest.mark.parametrize("folder", ["cotmi_jax", "tests", "benchmarks", "configs"])
def test_no_file_is_long(folder: str) -> None:
    files = (REPOSITORY / folder).rglob("*.py")
    long = {str(path): n for path in files if (n := len(path.read_text("utf-8").splitlines())) > MAX_LINES}
    assert not long, long


def test_top_level_modules_are_the_listed_ones() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == COMMANDS | LIBRARY
    assert len(list((PACKAGE / "training").glob("*.py"))) <= 10


def test_test_folders_mirror_the_packages() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    outside = {"benchmarks", "launch", "support", "golden"}
    folders = {path.name for path in (REPOSITORY / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= packages | outside, folders - packages - outside
