"""Processes of one run that were given different settings, code or packages end with one line that names them."""

import functools
import json
import time
from importlib import metadata
from pathlib import Path

import hosts
import pytest
import runs

from cotmi_jax.config import shared_settings
from cotmi_jax.errors import UserError
from cotmi_jax.parallel import distributed
from cotmi_jax.parallel.agreement import check_agreement
from cotmi_jax.parallel.distributed import EXIT_PEER_LOST
from cotmi_jax.workdir.provenance import start_facts

quick_compilation = runs.quick_compilation


def refusal(*facts: dict[str, object]) -> str:
    """The message for processes with these facts."""
    with pytest.raises(UserError) as error:
        check_agreement("give all the same", facts[0], lambda _: [json.dumps(each) for each in facts])
    return str(error.value)


def test_the_message_names_what_differs_and_which_processes_have_it() -> None:
    given = [{"seed": 0, "steps": 4}] * 6
    given[1] = {"seed": 7, "steps": 4}
    given[4] = {"seed": 7}
    assert refusal(*given) == (
        "the processes of this job differ in seed (process 0, 2-3, 5: 0; process 1, 4: 7), "
        "steps (process 0-3, 5: 4; process 4: absent): give all the same"
    )


def test_equal_facts_are_accepted_and_many_differences_are_counted() -> None:
    check_agreement("", {"a": [1, 2.5, "x"]}, lambda text: [text, text])
    message = refusal({}, {f"k{number}": "v\n" * 5000 for number in range(9)})
    assert "and 4 more: give" in message and "\n" not in message and len(message) < 800


def test_places_of_a_host_may_differ_and_the_content_of_extensions_counts(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "study.py").write_text("VALUE = 1\n")
    one, two = (
        runs.tiny_config(
            {
                "data.root": f"/{folder}",
                "data.cache": f"/{folder}",
                "compilation_cache": f"/{folder}",
                "extensions": f"{tmp_path}/{folder}/study.py",
            }
        )
        for folder in ("one", "two")
    )
    facts = start_facts(one)
    assert facts == start_facts(two)
    assert facts["jax"] == metadata.version("jax") and facts["config.optimizer.beta1"] == 0.9
    assert {f"config.{key}" for key in shared_settings(one)} <= facts.keys() and "config.data.cache" not in facts
    (tmp_path / "two" / "study.py").write_text("VALUE = 2\n")
    assert start_facts(two)["config.extensions"] != facts["config.extensions"]


def _other_numpy() -> None:
    version = metadata.version
    metadata.version = lambda name: "0.1" if name == "numpy" else version(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "hook", "expected"),
    [
        (["--config.seed=7"], None, "config.seed (process 0: 0; process 1: 7)"),
        ([], _other_numpy, f"numpy (process 0: {metadata.version('numpy')}; process 1: 0.1)"),
    ],
)
def test_processes_that_were_given_different_things_do_not_train(
    tmp_path: Path, flag: list[str], hook: hosts.Hook | None, expected: str
) -> None:
    address, flags = hosts.free_address(), [*runs.config_flags(runs.tiny_config()), f"--workdir={tmp_path}"]
    start = functools.partial(hosts.start, processes=2, address=address)
    (first,) = start("train", *flags, only=0)
    time.sleep(3)  # the order and the delay of starts do not matter
    (second,) = start("train", *flags, *flag, only=1, hooks=[None, hook])
    results = [first.result(), second.result()]
    assert {result.code for result in results} <= {2, EXIT_PEER_LOST}
    for result in results:
        assert f"the processes of this job differ in {expected}: give all the same command" in result.err, result
        assert result.err.count("\n") == 1
    assert not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_processes_with_different_flags_do_not_evaluate(tmp_path: Path) -> None:
    """Places on their hosts may differ; what differs is found before a workdir is read."""
    address, common = hosts.free_address(), [f"--workdir={tmp_path}", "--split=valid"]
    started = [
        hosts.start(
            "evaluate", *common, f"--max_tokens={n}", f"--data_root=/{n}", processes=2, address=address, only=n - 3
        )
        for n in (3, 4)
    ]
    for (host,) in started:
        result = host.result()
        assert result.code in (2, EXIT_PEER_LOST) and result.err.count("\n") == 1, result
        assert "differ in --max_tokens (process 0: 3; process 1: 4): give all the same command" in result.err


def _join_quickly() -> None:
    distributed.JOIN_SECONDS = 5  # type: ignore[misc]


@pytest.mark.slow
def test_a_wrong_coordinator_ends_both_processes_with_the_address_and_the_time(tmp_path: Path) -> None:
    flags = [*runs.config_flags(runs.tiny_config()), f"--workdir={tmp_path / 'run'}"]
    addresses, waiting = (hosts.free_address(), hosts.free_address()), []
    for number, address in enumerate(addresses):
        hooks = [_join_quickly, _join_quickly]
        waiting += hosts.start("train", *flags, processes=2, address=address, only=number, hooks=hooks)
    for host, address in zip(waiting, addresses, strict=True):
        result = host.result()
        assert result.code in (2, EXIT_PEER_LOST) and "Traceback" not in result.err, result
        assert address in result.err.splitlines()[-1], result
    assert not (tmp_path / "run").exists()
