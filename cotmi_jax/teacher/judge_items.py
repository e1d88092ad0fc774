"""What a judge is asked about: the rationales of one evaluated run, or of two on the same examples."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from cotmi_jax.data.example import EOS_TEXT
from cotmi_jax.data.grammar import FILE_KINDS, parse_dataset
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.methods import EvaluatedRun, check_same_data
from cotmi_jax.files import as_path, read_json
from cotmi_jax.teacher.rubric import Rubric

_VERSION = re.compile(r"(?:[-_@:.](?:v?\d|latest|preview|exp).*)?")
Status = Literal["judged", "empty", "identical"]


class Item(NamedTuple):
    """An example with the rationales of one run or two; cluster: what examples that depend on each other share."""

    id: str
    cluster: str
    input: str
    gold: str
    rationales: tuple[str, ...]

    @property
    def status(self) -> Status:
        """Whether the judge is asked. It is not where a rationale is empty, nor, of two, where both are the same."""
        if not all(self.rationales):
            return "empty"
        return "identical" if len(self.rationales) > len(set(self.rationales)) else "judged"

    @property
    def words(self) -> tuple[int, ...]:
        """Lengths of the rationales."""
        return tuple(len(rationale.split()) for rationale in self.rationales)

    def texts(self, rubric: Rubric) -> tuple[str, ...]:
        """The messages that ask about it: one or, of a pair, one for each order of presentation."""
        orders = {self.rationales: None, self.rationales[::-1]: None}
        return tuple(rubric.text(self.input, self.gold, *order) for order in orders)


def draw(ids: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """At most `limit` ids; None: all. Chosen by a hash of seed and id, and so the same for every run on a split.

    A smaller draw is part of a larger one. They are in the order given.
    """
    ids = list(ids)
    chosen = set(sorted(ids, key=lambda each: hashlib.sha256(f"{seed}:{each}".encode()).digest())[:limit])
    return [each for each in ids if each in chosen]


def read_items(run: EvaluatedRun, other: EvaluatedRun | None, split: str, limit: int | None, seed: int) -> list[Item]:
    """The drawn examples, with the rationales of `run` and, if there is one, of `other`.

    Raises:
      UserError: a run has no rationales, or the two were evaluated on different data.
    """
    runs = [run] if other is None else [run, other]
    if other is not None:
        if other.workdir == run.workdir:
            raise UserError(f"--against={other.workdir} is --workdir itself: give the workdir of another run")
        check_same_data(run, other, split)
    for each in runs:
        if not any(_rationale(line) for line in each.predictions.values()):
            raise UserError(
                f"{each.workdir}: no example of {split} has a rationale of the student (objective "
                f"{each.config['objective.name']}): judge a run whose objective gives rationales, such as dss or cotmi"
            )
    items = []
    for name in draw(run.predictions, limit, seed):
        line = run.predictions[name]
        question = str(line.get("input", "")).replace(EOS_TEXT, "\n")
        rationales = tuple(_rationale(each.predictions[name]) for each in runs)
        items.append(Item(name, str(line.get("cluster") or name), question, str(line.get("label", "")), rationales))
    return items


def _rationale(line: Mapping[str, Any]) -> str:
    return str(line.get("predicted_rationale") or "").strip()


def teacher_models(config: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Names of the models that wrote the rationales a run was trained on, and whether they are known of all its data.

    That of a released set is in config.data.teacher; those of a file of `annotate` are in the report beside it. No
    model wrote those of the generated sets. Of a source that an extension registers, which is not imported here, they
    are not known.
    """
    names: list[str] = []
    known = True
    for written in config["data.dataset"].split(","):
        try:
            (component,) = parse_dataset(written)
        except UserError:
            known = False
            continue
        path = as_path(component.argument) if component.kind in FILE_KINDS else None
        report = path and (path / f"train.{component.kind}" if path.is_dir() else path).with_suffix(".report.json")
        if component.kind == "released":
            names.append(config["data.teacher"])
        elif report is not None and report.exists():
            found = read_json(report, "remove or restore the report of annotate")
            names += [str(name) for name in (found.get("model"), *(found.get("models") or ())) if name]
        else:
            known = known and component.kind == "generated"
    return list(dict.fromkeys(names)), known


def is_same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: without the provider before "/", one may be the other with a version."""
    short, long = sorted((name.casefold().rpartition("/")[2] for name in (one, other)), key=len)
    return bool(short) and long.startswith(short) and _VERSION.fullmatch(long[len(short) :]) is not None
