"""Time from the start of a command to its first result: --help, the first answer of predict, the first step of train.

    python -m benchmarks.startup --preset=base --rounds=3

Each side is a process of its own: one that finds no compiled programs and no prepared tokens (cold), then one that
finds those of the first (warm). `train` ends when its first step is compiled or loaded, its state is initialized and
its first batch has arrived: what follows is the speed of the step. `predict` reads a Hugging Face directory with random
parameters and answers one line. The JSON output has seconds and processor seconds (user + system) of every round.
"""

import argparse
import json
import os
import runpy
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.table import Options, Row, Spent, shown_command, spend
from cotmi_jax.files import CACHE_VARIABLE

SIDES = ("cold", "warm")
_LINE = '{"input": "Ann has 3 pens and buys 4 more. How many pens does she have?"}\n'
_TRAIN = ("--config=quickstart", "--config.eval.every=0", "--config.mi.monitor.every=0")
_WHAT = {
    "help": "train --help",
    "predict": "predict to its first answer",
    "train": "train to its first step",
}


def train_until_first_step(flags: list[str]) -> None:
    """Run the command train with these flags; when its first step could start, end this process with exit code 0."""
    import jax

    from cotmi_jax.training import loop

    make_train_step = loop.make_train_step

    def make(*arguments: Any, **options: Any) -> Any:
        step = make_train_step(*arguments, **options)

        def end(state: Any, batch: Mapping, streams: Mapping) -> NoReturn:
            step.lower(state, batch, streams).compile()  # type: ignore[attr-defined]
            jax.block_until_ready((state, batch))
            os._exit(0)

        return end

    loop.make_train_step = make
    sys.argv = ["train", *flags]
    runpy.run_module("cotmi_jax.train", run_name="__main__", alter_sys=True)


def write_student(preset: str, folder: Path) -> None:
    """A Hugging Face directory with random parameters and the vocabulary of the generated word problems."""
    import jax

    from cotmi_jax.config import base
    from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
    from cotmi_jax.data.vocabulary import Vocabulary
    from cotmi_jax.experiment import make_student
    from cotmi_jax.models.config import T5Config
    from cotmi_jax.models.hf import save_hf
    from cotmi_jax.models.student import StudentDef

    config = base()
    config.model.preset, config.model.init = preset, "random"
    student, _ = make_student(config, Vocabulary(VOCABULARY_PATH))
    assert isinstance(student, T5Config)
    params = jax.device_get(jax.jit(StudentDef.of(student).init)(jax.random.key(0)))
    save_hf(params, student, folder, vocabulary_file=VOCABULARY_PATH)


def commands(preset: str, steps_flags: list[str], scratch: Path) -> dict[str, list[str]]:
    """The commands that are measured, by name."""
    python = [sys.executable, "-m"]
    workdir = f"--workdir={scratch / 'run'}"
    return {
        "help": [*python, "cotmi_jax", "train", "--help"],
        "predict": [*python, "cotmi_jax.predict", f"--model={scratch / 'student'}", "--task=predict"],
        "train": [
            *python,
            "benchmarks.startup",
            "--until_first_step",
            *(*_TRAIN, f"--config.model.preset={preset}", workdir, *steps_flags),
        ],
    }


def measure(preset: str, rounds: int, flags: list[str]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Command → side → {"seconds", "cpu_seconds"} of every round. The sides of help are the same."""
    with tempfile.TemporaryDirectory(prefix="cotmi_startup_") as name:
        scratch = Path(name)
        spend([sys.executable, "-m", "benchmarks.startup", f"--preset={preset}", f"--student={scratch / 'student'}"])
        (scratch / "line").write_text(_LINE)
        found: dict[str, dict[str, list[dict[str, float]]]] = {each: {} for each in _WHAT}
        for number in range(rounds):
            # A compilation cache of the user's would make every start a warm one.
            environment = {CACHE_VARIABLE: str(scratch / f"cache{number}"), "JAX_COMPILATION_CACHE_DIR": ""}
            for side in SIDES:
                for each, command in commands(preset, flags, scratch).items():
                    with open(scratch / "line") as line:
                        spent = spend(command, environment=environment, stdin=line)
                    shutil.rmtree(scratch / "run", ignore_errors=True)
                    found[each].setdefault(side, []).append(_figures(spent))
                    print(f"{each}, {side}: {spent.seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def _figures(spent: Spent) -> dict[str, float]:
    return {"seconds": round(spent.seconds, 3), "cpu_seconds": round(spent.cpu_seconds, 3)}


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def rows(options: Options) -> list[Row]:
    """The suite `startup` of benchmarks.run: seconds and processor seconds of each command, warm beside cold."""
    preset = "tiny" if options.quick else "base"
    found, table = measure(preset, options.rounds, []), []
    command = shown_command("benchmarks.startup", f"--preset={preset}", f"--rounds={options.rounds}")
    for name, sides in found.items():
        what = _WHAT[name] if name == "help" else f"{_WHAT[name]} ({preset})"
        for key, unit in (("seconds", "s"), ("cpu_seconds", "CPU s")):
            warm, cold = ([each[key] for each in sides[side]] for side in ("warm", "cold"))
            if name == "help":
                table.append(Row.of(what, unit, warm, command=command))
            else:
                table.append(Row.of(what, unit, warm, cold, command=command, peer_name="without stored programs"))
    return table


def main(arguments: list[str]) -> None:
    """Print the medians and every round as JSON."""
    if arguments[:1] == ["--until_first_step"]:
        train_until_first_step(arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", help="of the student")
    parser.add_argument("--rounds", type=int, default=3, help="cold and warm starts of each command")
    parser.add_argument("--student", type=Path, help="only write a student into this folder")
    given, flags = parser.parse_known_args(arguments)  # other flags are those of train
    if given.student:
        write_student(given.preset, given.student)
        return
    found = measure(given.preset, given.rounds, flags)
    medians = {name: {side: _medians(rounds) for side, rounds in sides.items()} for name, sides in found.items()}
    print(json.dumps({"preset": given.preset, "medians": medians, "rounds": found}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
