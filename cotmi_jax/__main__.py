"""Chain-of-thought distillation into T5: cotmi COMMAND --flag=value …, or python -m cotmi_jax COMMAND …"""

import ast
import runpy
import sys
from pathlib import Path

from cotmi_jax import __version__
from cotmi_jax.errors import did_you_mean

COMMANDS = (
    "train",
    "evaluate",
    "study",
    "compare",
    "report",
    "predict",
    "export",
    "describe",
    "annotate",
    "judge",
    "weigh",
    "prepare",
    "aot",
)


def _purpose(command: str) -> str:
    """The first words of a command's docstring, read without importing it."""
    package = Path(__file__).parent
    file = package / f"{command}.py"
    source = (file if file.is_file() else package / command / "__main__.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0].split(": python -m")[0]


def overview() -> str:
    """What `cotmi --help` prints."""
    commands = [f"  {name:<10}{_purpose(name)}" for name in COMMANDS]
    closing = "cotmi COMMAND --help lists the flags of a command and the exit codes. docs/ and README.md explain them."
    return "\n".join([(__doc__ or "").strip(), "", *commands, "", closing])


def main() -> None:
    """Run the command that the arguments name, as python -m cotmi_jax.COMMAND does."""
    name, *rest = sys.argv[1:] or [""]
    if name in ("--help", "-h", "help"):
        print(overview())
    elif name == "--version":
        print(f"cotmi_jax {__version__}")
    elif name in COMMANDS:
        sys.argv = [name, *rest]
        runpy.run_module(f"cotmi_jax.{name}", run_name="__main__", alter_sys=True)
    else:
        problem = f"unknown command {name[:100]!r}" if name else "no command"
        choice = did_you_mean(name, COMMANDS) or f": give one of {', '.join(COMMANDS)}"
        print(f"error: {problem}{choice} (cotmi --help)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
