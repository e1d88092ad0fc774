"""Read hostile files and count what happens: every content has to be read, or refused with one line.

    python -m benchmarks.fuzz --mutants=20000 --output=runs/fuzz

For each kind of file: the attacks of benchmarks/attacks.py, and random mutants of a valid file. A case fails if it
raises anything but the refusal of its reader, takes more than three seconds of processor time, or more than 200 MB of
address space above the size of the file. Failures are written to the output folder; exits with 1 if there are any.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from benchmarks import attacks
from cotmi_jax.config import base
from cotmi_jax.data.codecs import tokenizer_json
from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.files import as_path, parse_json, read_json
from cotmi_jax.inference.lines import read_lines
from cotmi_jax.models.config import preset
from cotmi_jax.models.hf import load_hf, save_hf
from cotmi_jax.models.hf_config import config_from_hf
from cotmi_jax.models.hf_weights import open_weights
from cotmi_jax.models.student import StudentDef
from cotmi_jax.models.torch_bin import open_torch_bin
from cotmi_jax.parallel.accelerators import skip_absent_tpu
from cotmi_jax.teacher.answers import RULE_NAMES, make_rule, read_sample
from cotmi_jax.teacher.journal import Choice, Journal, Record, read_journal
from cotmi_jax.teacher.response import parse_reply
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.record import read_run, run_record

SECONDS = 3.0  # of processor time: three times the limit, since busy cores count double and more
BYTES = 200 << 20
MAX_MESSAGE = 600
ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Raise where the body takes more address space than BYTES above the file's size, or more time than SECONDS.

    Raises:
      MemoryError: an allocation beyond the limit.
      TimeoutError: the body has ended, after more processor time.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES + size, before[1]))
    start = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - start
        resource.setrlimit(resource.RLIMIT_AS, before)
    if seconds > SECONDS:
        raise TimeoutError(f"{seconds:.1f} s of processor time")


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file: its path, what reads it there, valid contents to damage, and the attacks made for it.

    refusals: what the reader raises for a content that cannot be used.
    wrap: makes the file from a valid content that is a part of it.
    """

    name: str
    path: Path
    read: Callable[[], object]
    valid: tuple[bytes, ...]
    made: Callable[[], attacks.Attacks] = attacks.broken_json
    refusals: tuple[type[Exception], ...] = (UserError,)
    wrap: Callable[[bytes], bytes] = bytes

    def cases(self, mutants: int, draw: random.Random) -> attacks.Attacks:
        """The attacks, then so many mutants."""
        yield from self.made()
        for number in range(mutants):
            yield f"mutant {number}", self.wrap(attacks.mutant(draw.choice(self.valid), draw))

    def outcome(self, content: bytes) -> str:
        """ "read" or "refused"; any other text is what went wrong."""
        self.path.write_bytes(content)
        try:
            with bounded(len(content)):
                self.read()
        except self.refusals as error:
            message = str(error)
            if isinstance(error, UserError) and not (message.isprintable() and len(message) <= MAX_MESSAGE):
                return f"a message of {len(message)} characters: {message[:200]!r}"
            return "refused"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]!r}"
        return "read"


def _read_all(tensors: contextlib.AbstractContextManager[dict]) -> None:
    with tensors as opened:
        for tensor in opened.values():
            tensor.read()


def _encode(path: Path) -> None:
    vocabulary = Vocabulary(as_path(str(path)))
    for ids in vocabulary.encode(["ab 12", "é東\U0010fffd"]):
        vocabulary.decode(ids)


def checkpoint_targets(folder: Path) -> Iterator[Target]:
    """Files of a Hugging Face checkpoint."""
    config = preset("tiny", vocab_size=512)
    student = folder / "student"
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f"), StudentDef.of(config).shapes)
    save_hf(zeros, config, student, vocabulary_file=None)
    load_hf(student)  # the first load traces the network, for which no attack should pay
    for name in ("weights", "config", "vocabulary"):
        (folder / name).mkdir()
    weights, file = folder / "weights", folder / "weights" / "pytorch_model.bin"
    pickled, marker = attacks.state_dict(), folder / "ran"

    def read_torch() -> None:
        _read_all(open_torch_bin(file))
        file.unlink()
        if marker.exists():
            raise AssertionError("a pickle has run code")

    torch_attacks = itertools.chain(attacks.gadgets(marker), attacks.pickle_bombs(), attacks.archives())
    yield Target("torch file", file, read_torch, (attacks.torch_file(pickled),), lambda: torch_attacks)
    yield Target("pickle", file, read_torch, (pickled,), lambda: iter(()), wrap=attacks.torch_file)
    file = weights / "model.safetensors"
    tensors = safetensors.numpy.save({"shared.weight": np.ones((2, 3), "f"), "b": np.ones(2, np.float16)})
    yield Target("safetensors", file, lambda: _read_all(open_weights(weights)), (tensors,), attacks.safetensors_files)
    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model.bin"}}).encode()
    path = weights / "model.safetensors.index.json"
    yield Target("index", path, lambda: _read_all(open_weights(weights)), (index,), attacks.indices)
    path = folder / "config" / "config.json"
    fields = (student / "config.json").read_bytes()
    yield Target(
        "config.json",
        path,
        lambda: config_from_hf(read_json(path, "restore it"), str(path)),
        (fields,),
        lambda: attacks.configs(json.loads(fields)),
    )
    spiece, tokenizer = folder / "vocabulary" / "spiece.model", folder / "vocabulary" / "tokenizer.json"
    model = VOCABULARY_PATH.read_bytes()
    converted = tokenizer_json(VOCABULARY_PATH, model)
    yield Target("spiece.model", spiece, lambda: _encode(spiece), (model,))
    steps = json.loads(converted)
    yield Target(
        "tokenizer.json", tokenizer, lambda: _encode(tokenizer), (converted,), lambda: attacks.tokenizers(steps)
    )


def data_targets(folder: Path) -> Iterator[Target]:
    """Files of a user's own data, and the standard input of predict."""
    row = json.dumps({"input": "What is 2 + 3?", "label": "5", "rationale": ["2 + 3 = 5", "é東"], "weight": [1, 0.5]})
    rows = f"{row}\n{row}\n{row}\n".encode()
    for kind, valid in {"jsonl": rows, "csv": b'input,label,rationale\n"a, b",1,"c\nd"\ne,2,f\n'}.items():
        path = folder / f"rows.{kind}"
        for policy in ("error", "skip"):
            loading = Loading(dataset=f"{kind}:{path}", bad_rows=policy, empty_rationale="keep")
            yield Target(f"{kind}, {policy}", path, lambda loading=loading: load_corpus(loading), (valid,))  # type: ignore[misc]
    path = folder / "stdin"
    for skip in (None, lambda line: None):
        name = "stdin, skip" if skip else "stdin"
        lines = b"a text\n" + row.encode() + b"\n"
        yield Target(
            name,
            path,
            lambda skip=skip: [  # type: ignore[misc]
                line.answered([{"label": "5"}]) for line in read_lines(path.open("rb"), skip=skip) if line
            ],
            (lines, row.encode()),
        )


def teacher_targets(folder: Path) -> Iterator[Target]:
    """Responses of a teacher, the texts in them, and the journal of an annotation."""
    message = {"content": "<think>2 + 3</think> Since 2 + 3 = 5.\n**So the answer is \\boxed{5}.**", "reasoning": "a"}
    body = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    path = folder / "response"
    rules = [make_rule([name], kind) for name in RULE_NAMES for kind in ("text", "equation")]

    def read_samples(choices: tuple[Choice, ...]) -> None:
        for choice, rule in itertools.product(choices, rules):
            read_sample(choice, rule)

    def read_response() -> None:
        read_samples(parse_reply(parse_json(path.read_bytes())).choices)

    # A response that is none is a failed request, which the client makes of the ValueError.
    yield Target("response", path, read_response, (json.dumps(body).encode(),), refusals=(ValueError,))
    answers = [
        message["content"],
        '{"rationale": "a", "answer": 5}',
        "So the answer is (a).",
        "The answer is (2 + 3) * 4.",
    ]
    long = (
        20_000 * each for each in ("(", "[", "{", "**", "\\boxed{", "<think>", "So the answer is ", "\n", "1+", "9")
    )
    yield Target(
        "answer",
        path,
        lambda: read_samples((Choice(path.read_bytes().decode("utf-8", "replace"), "stop"),)),
        tuple(answer.encode() for answer in answers),
        lambda: ((f"{text[:8]!r}, often", text.encode()) for text in long),
    )
    journal, header = folder / "journal.jsonl", {"model": "m"}
    with Journal(journal, header) as opened:
        opened.append(Record("1", "digest", False, "m", (Choice("é\u2028a", "stop", "b"),), 1, None))
    yield Target("journal", journal, lambda: read_journal(journal, header), (journal.read_bytes(),))


def workdir_targets(folder: Path) -> Iterator[Target]:
    """Files of a workdir."""
    workdir = as_path(str(folder / "run"))
    workdir.mkdir()
    (workdir / "spiece.model").write_bytes(VOCABULARY_PATH.read_bytes())
    record = json.dumps(run_record(base(), preset("tiny", vocab_size=512), Vocabulary(workdir / "spiece.model")))
    yield Target("run.json", Path(workdir / "run.json"), lambda: read_run(workdir), (record.encode(),))
    lines = b"".join(b'{"step": %d, "train/loss": 1.5}\n' % step for step in range(1, 5))
    yield Target(
        "metrics.jsonl",
        Path(workdir / "metrics.jsonl"),
        lambda: MetricWriter(workdir, start=3, trackers=()).close(),
        (lines,),
    )


_TRICKS = (
    "$(touch {0})",
    "`touch {0}`",
    "; touch {0}",
    "\ntouch {0}\n",
    "'; touch {0}; '",
    '"; touch {0}; "',
    "| touch {0}",
)
_LAUNCHERS = {
    "local": (["--processes={}"], ["--processes=1"]),
    "gpus": (["run", "--dir={}", "--gpus={}"], ["run", "--dir=d"]),
    "slurm": (
        ["run", "--name={}", "--time={}", "--venv={}"],
        ["run", "--name=n", "--time=24:00:00", "--venv=/v", "--gpus-per-node=8"],
    ),
    "tpu_vm": (
        ["run", "--name={}", "--zone={}", "--type={}", "--env={}"],
        ["run", "--name=n", "--zone=z", "--type=v5litepod-8"],
    ),
    "gke_xpk": (
        ["run", "--cluster={}", "--zone={}", "--workload={}", "--tpu-type={}", "--docker-image={}"],
        ["run", "--cluster=c", "--zone=z", "--workload=w", "--tpu-type=v5litepod-8", "--docker-image=i"],
    ),
}


def fuzz_launchers(folder: Path, fail: Callable[[str, str, bytes], None]) -> collections.Counter[str]:
    """Dry runs with shell syntax as the value of each flag and as an argument of the training; none may be run.

    What a dry run prints is then given to a shell in which every command is empty.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    marker, empty = folder / "ran", folder / "empty"
    empty.mkdir()
    for name, (flags, plain) in _LAUNCHERS.items():
        for trick in (text.format(marker) for text in _TRICKS):
            for given in (
                [flag.format(trick) for flag in flags],
                [*plain, "--", f"--config={trick}", f"--workdir=gs://b/{trick}"],
            ):
                at = given.index("--") if "--" in given else len(given)
                command = ["bash", f"launch/{name}.sh", *given[:at], "--dry-run", *given[at:]]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
                if done.returncode == 0:
                    subprocess.run(
                        ["/bin/bash", "-c", done.stdout], cwd=empty, env={"PATH": str(empty)}, capture_output=True
                    )
                outcome = {0: "read", 2: "refused"}.get(done.returncode, f"exit code {done.returncode}")
                if marker.exists():
                    outcome = "a command was run"
                    marker.unlink()
                outcomes[outcome] += 1
                if outcome not in ("read", "refused"):
                    fail("launchers", outcome, repr(given).encode())
    return outcomes


GROUPS = {
    "checkpoints": checkpoint_targets,
    "data": data_targets,
    "teacher": teacher_targets,
    "workdir": workdir_targets,
}


def fuzz(mutants: int, seed: int, output: Path, groups: Sequence[str] = (*GROUPS, "launchers")) -> bool:
    """Run the cases of some groups and print a line for each target; True if none fails."""
    failures = 0

    def fail(target: str, reason: str, content: bytes) -> None:
        nonlocal failures
        failures += 1
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{target.replace(' ', '-').replace(',', '')}-{failures}"
        path.write_bytes(content)
        print(f"FAILED {target}: {reason}; the content is {path}", file=sys.stderr)

    print(f"{'target':20} {'cases':>8} {'refused':>8} {'read':>8} {'failed':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for group in groups:
            if group == "launchers":
                _print_counts(group, fuzz_launchers(folder, fail))
                continue
            for target in GROUPS[group](folder):
                outcomes: collections.Counter[str] = collections.Counter()
                cases = target.cases(mutants, random.Random(f"{seed} {target.name}"))
                for case, content in tqdm(cases, desc=target.name, leave=False, disable=None):
                    outcome = target.outcome(content)
                    outcomes[outcome] += 1
                    if outcome not in ("read", "refused"):
                        fail(target.name, f"{case}: {outcome}", content)
                _print_counts(target.name, outcomes)
    return not failures


def _print_counts(name: str, outcomes: collections.Counter[str]) -> None:
    refused, read, total = outcomes["refused"], outcomes["read"], outcomes.total()
    print(f"{name:20} {total:8,} {refused:8,} {read:8,} {total - refused - read:8,}", flush=True)


def main() -> None:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000, help="random mutants of each valid file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="+", choices=(*GROUPS, "launchers"), default=(*GROUPS, "launchers"))
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder for the contents that fail")
    arguments = parser.parse_args()
    skip_absent_tpu()
    sys.exit(0 if fuzz(arguments.mutants, arguments.seed, arguments.output, arguments.groups) else 1)


if __name__ == "__main__":
    main()
