"""All measurements beside their peers: one table, and a file of results.

    python -m benchmarks.run --suite=train,input,mi --json=results.json --markdown=docs/performance.md

Suites that the results file has are not run again, so that the command can be interrupted and repeated; --fresh
repeats them. A peer that is not installed leaves its row without a ratio, and the row says which extra to install.
"""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.table import Options, environment, markdown, write_markdown
from cotmi_jax.errors import UserError
from cotmi_jax.files import replace_file

# In the order of the table. Each module has rows(options: Options) -> list[Row].
SUITES = {
    "train": "benchmarks.train_step",
    "decode": "benchmarks.decode",
    "evaluate": "benchmarks.evaluate",
    "input": "benchmarks.input",
    "mi": "benchmarks.mi_term",
    "startup": "benchmarks.startup",
    "compile": "benchmarks.compile",
}


def suite_names(text: str) -> list[str]:
    """The suites of a list with commas, in the order of the table. Raises UserError for an unknown name."""
    names = text.split(",")
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite={text}: there is no suite {name!r}: choose from {','.join(SUITES)}")
    return [name for name in SUITES if name in names]


def read_results(path: Path | None) -> dict[str, Any]:
    """The results by suite of a file; none where there is no file. Raises UserError for another kind of file."""
    if path is None or not path.exists():
        return {}
    try:
        suites = json.loads(path.read_text())["suites"]
        markdown(suites)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--json={path} is no results file of benchmarks.run: give another name") from None
    return suites


def run_suite(name: str, options: Options) -> dict[str, Any]:
    """The result of a suite, in the form of the results file."""
    rows = importlib.import_module(SUITES[name]).rows(options)
    return environment() | {"options": dataclasses.asdict(options), "rows": [row.to_json() for row in rows]}


def run_missing(
    names: list[str], results: dict[str, Any], options: Options, path: Path | None, *, fresh: bool
) -> list[str]:
    """Run the suites that `results` lacks, or all if `fresh`, and write each into the file; returns those that failed.

    Raises UserError where results of a suite were measured with other options.
    """
    asked, failed = dataclasses.asdict(options), []
    for name in names:
        if name in results and not fresh:
            if results[name]["options"] != asked:
                raise UserError(
                    f"--json={path} has the suite {name} with other options: give --fresh, or another file "
                    f"(there {results[name]['options']}, now {asked})"
                )
            print(f"{name}: from {path}, measured {results[name]['date']}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: running", file=sys.stderr, flush=True)
        try:
            results[name] = run_suite(name, options)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        if path is not None:
            ordered = {each: results[each] for each in SUITES if each in results}
            replace_file(path, json.dumps({"suites": ordered}, indent=1) + "\n")
    return failed


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=",".join(SUITES), help="suites, separated by commas; default: all")
    parser.add_argument("--json", type=Path, help="results; suites in it are not run again")
    parser.add_argument("--markdown", type=Path, help="page with the markers, to write the table to")
    parser.add_argument("--fresh", action="store_true", help="run suites again that the results have")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side")
    parser.add_argument("--examples", type=int, default=512, help="of suites that process a data set")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that everything runs")
    parser.add_argument("--data_root", help="folder of the papers' data; default: $COTMI_DATA_ROOT")
    parser.add_argument("--baseline", default="", help="revision of this repository, to compare with")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the suites and print the table; 1 if a suite failed, 2 for a user error."""
    given = parse(arguments)
    options = Options(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Options)})
    try:
        names, results = suite_names(given.suite), read_results(given.json)
        failed = run_missing(names, results, options, given.json, fresh=given.fresh)
        table = markdown({name: results[name] for name in SUITES if name in results})
        if given.markdown:
            write_markdown(given.markdown, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
