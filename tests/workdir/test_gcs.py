"""A complete run in a bucket, against a fake server that implements the required requests of Cloud Storage's API.

The clients are the real ones: gcsfs for files, tensorstore for arrays, google-cloud-storage for what orbax asks of it.
"""

import asyncio
import functools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import fake_gcs
import fsspec
import jax
import numpy as np
import pytest
import runs

from cotmi_jax import files
from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.job import score
from cotmi_jax.inference.load import load_trained
from cotmi_jax.models.hf import save_hf
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training import job
from cotmi_jax.training.job import train
from cotmi_jax.workdir import mirror
from cotmi_jax.workdir.checkpoint import Checkpoints, Saved, damage, find, steps_saved
from cotmi_jax.workdir.lock import Periods, workdir_lock
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.recovery import choose, set_aside

if not files.GCS_INSTALLED:  # not importorskip: gcsfs reads the server's environment when it is imported
    pytest.skip("gs:// needs the extra gcs", allow_module_level=True)
quick_compilation = runs.quick_compilation
RUN = "gs://bucket/runs/one"
# Runs of this process wait this long for the heartbeat of a killed one; test_lock.py tests the default periods.
QUICK = Periods(beat=0.5, stale=3.0, settle=0.5)


@pytest.fixture(scope="module")
def store() -> Iterator[fake_gcs.FakeGcs]:
    with fake_gcs.serving("bucket") as store, pytest.MonkeyPatch.context() as patch:
        for name in store.environment:
            patch.setenv(name, "")  # so that they are as before in the end
        fake_gcs.use(store.environment)
        patch.setattr(job, "workdir_lock", functools.partial(workdir_lock, periods=QUICK))
        yield store


@pytest.fixture(autouse=True)
def asks_again(store: fake_gcs.FakeGcs) -> Iterator[None]:
    files._check_bucket.cache_clear()
    yield
    store.refuse = 0


def upload(store: fake_gcs.FakeGcs, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


@pytest.fixture(scope="module")
def workdir(store: fake_gcs.FakeGcs) -> files.Path:
    """A run in the bucket that was killed after step 5 and resumed."""
    flags = [f"--workdir={RUN}", *runs.config_flags(runs.tiny_config())]
    killed = functools.partial(runs.signal_after, 5, signal.SIGKILL)
    before = functools.partial(fake_gcs.use, store.environment, killed)
    result = runs.command("train", *flags, devices=jax.device_count(), before=before)
    assert result.code == -signal.SIGKILL, result.err
    assert "runs/one/metrics.jsonl" in store.names() and "runs/one/checkpoints/2/commit_success.txt" in store.names()
    store.put("runs/one/checkpoints/5/params/_METADATA", b"what a kill leaves of a checkpoint")
    assert train(runs.tiny_config(), RUN) == 6
    return files.as_path(RUN)


@pytest.mark.slow
def test_a_killed_run_resumes_in_the_bucket_bit_for_bit(workdir: files.Path) -> None:
    straight = runs.trained()
    runs.assert_same(runs.read_state(workdir), runs.read_state(straight))
    runs.assert_same(runs.read_params(workdir), runs.read_params(straight))
    assert runs.read_metrics(workdir) == runs.read_metrics(straight)
    assert runs.steps_in(workdir / "best") == runs.steps_in(straight / "best")
    assert (workdir / "spiece.model").read_bytes() == (straight / "spiece.model").read_bytes()
    assert json.loads((workdir / "run.json").read_text()) == json.loads((straight / "run.json").read_text())
    first, second = (json.loads(line) for line in (workdir / "starts.jsonl").read_text().splitlines())
    assert first["step"] == 0 and second["step"] in (2, 4)


@pytest.mark.slow
def test_events_for_tensorboard_are_in_the_bucket(workdir: files.Path, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    for number, event_file in enumerate(sorted((workdir / "tensorboard").iterdir())):
        (tmp_path / "tensorboard" / f"{number}").write_bytes(event_file.read_bytes())
        os.utime(tmp_path / "tensorboard" / f"{number}", (number, number))
    shown, expected = runs.read_tensorboard(tmp_path), runs.read_tensorboard(runs.trained())
    assert shown["train/loss"] == expected["train/loss"]


@pytest.mark.slow
def test_a_complete_run_in_the_bucket_is_recognized(workdir: files.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(runs.tiny_config(), RUN) == 6
    assert f"{RUN} is complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{RUN} holds a run of another config"):
        train(runs.tiny_config({"seed": 5}), RUN)


@pytest.mark.slow
def test_unfinished_checkpoints_do_not_count(workdir: files.Path, store: fake_gcs.FakeGcs) -> None:
    store.put("runs/one/checkpoints/9/params/_METADATA", b"")
    assert find(workdir, "latest").step == 6
    with pytest.raises(UserError, match="no checkpoint of step 9 in gs://bucket/runs/one"):
        find(workdir, 9)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_moved_within_the_bucket(store: fake_gcs.FakeGcs) -> None:
    place, said = files.as_path("gs://bucket/runs/damaged"), list[str]()
    runs.save_states(place, 1, 2)
    store.put("runs/damaged/checkpoints/2/data/metadata", b"{")
    names = [name.removeprefix("runs/damaged/checkpoints/2/") for name in store.names("runs/damaged/checkpoints/2/")]
    choice = choose(place)
    assert str(choice.latest) == "gs://bucket/runs/damaged/checkpoints/1" and len(choice.damaged) == 1
    set_aside(place, choice, said.append)
    assert "commit_success.txt" in names and steps_saved(place / "checkpoints") == [1]
    assert store.names("runs/damaged/checkpoints/2/") == []
    moved = "runs/damaged/damaged/checkpoints-2/"
    assert [name.removeprefix(moved) for name in store.names(moved)] == names
    assert len(said) == 1 and "moved to gs://bucket/runs/damaged/damaged/checkpoints-2: resuming from" in said[0]


def test_an_interrupted_move_leaves_a_complete_source_or_an_unmarked_one(
    store: fake_gcs.FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files.as_path("gs://bucket/moving/2"), files.as_path("gs://bucket/moved/2")
    names = [f"moving/2/{name}" for name in ("a/0", "b", "mark", "z")]
    for name in names:
        store.put(name, name.encode())

    client = type(fsspec.filesystem("gcs"))
    copy_one, remove_one, removed = client._cp_file, client._rm_file, list[str]()

    async def copy(self: object, one: str, other: str, **kwargs: object) -> None:
        if one.endswith("z"):
            raise OSError("killed")
        await copy_one(self, one, other, **kwargs)

    async def remove(self: object, name: str, **kwargs: object) -> None:
        if removed:
            raise OSError("killed")
        removed.append(name)
        await remove_one(self, name, **kwargs)

    for method, replacement, left in (("_cp_file", copy, names), ("_rm_file", remove, [*names[:2], names[3]])):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
            patch.setattr(client, method, replacement)
            files.move_folder(source, target, "mark")
        assert store.names("moving/") == left
    assert [store.objects[name.replace("moving", "moved")][0] for name in names] == [name.encode() for name in names]
    with pytest.raises(FileNotFoundError):
        files.move_folder(files.as_path("gs://bucket/moving/3"), target, "mark")


@pytest.mark.slow
def test_students_in_a_bucket_are_evaluated_and_exported(workdir: files.Path, store: fake_gcs.FakeGcs) -> None:
    mesh = make_mesh()
    trained = load_trained(RUN, "best", mesh)
    save_hf(
        jax.device_get(trained.params),
        trained.student.config,
        files.as_path("gs://bucket/hf/student"),
        vocabulary_file=trained.vocabulary.path,
    )
    written = [name for name in store.writes if name.startswith("hf/")]
    assert written[-1] == "hf/student/config.json" and "hf/student/spiece.model" in written
    again = load_trained("gs://bucket/hf/student", "best", mesh)
    runs.assert_same(jax.device_get(again.params), jax.device_get(trained.params))
    result = score(RUN, "test", output="gs://bucket/scores", information=False)
    assert str(result.output) == "gs://bucket/scores"
    assert len((result.output / "predictions.jsonl").read_text().splitlines()) == result.metrics["n"]
    assert json.loads((result.output / "metrics.json").read_text()) == json.loads(json.dumps(result.metrics))


def test_data_in_a_bucket_equals_that_on_disk(store: fake_gcs.FakeGcs, tmp_path: Path) -> None:
    runs.write_svamp(tmp_path)
    rows = "".join(json.dumps({"input": f"{n}?", "label": "yes", "rationale": "So."}) + "\n" for n in range(20))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text(rows)
    upload(store, tmp_path, "data")
    here = Loading(dataset=f"svamp,jsonl:{tmp_path}/mine", data_root=str(tmp_path))
    there = Loading(dataset="svamp,jsonl:gs://bucket/data/mine", data_root="gs://bucket/data")
    assert corpus_fingerprint(there) == corpus_fingerprint(here)
    expected = load_corpus(here).corpus.splits
    for split, examples in load_corpus(there).corpus.splits.items():
        assert [example.id for example in examples] == [example.id for example in expected[split]]
        assert examples[0].place.startswith("gs://bucket/data/svamp/svamp_")
    with pytest.raises(UserError, match="gs://bucket/data/none.jsonl: No such file or directory; restore the file"):
        load_corpus(Loading(dataset="jsonl:gs://bucket/data/none.jsonl"))


def test_objects_written_by_other_clients_are_listed(store: fake_gcs.FakeGcs) -> None:
    folder = files.as_path("gs://bucket/shared")
    for name in ("a", "b"):
        store.put(f"shared/{name}", b"")
        assert [path.name for path in folder.iterdir()][-1] == name and (folder / name).exists()


def test_metrics_are_copied_periodically_and_on_request(
    store: fake_gcs.FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copies() -> int:
        return store.writes.count("runs/two/metrics.jsonl")

    writer = MetricWriter(files.as_path("gs://bucket/runs/two"), start=0)
    for step in range(1, 11):
        writer.write(step, {"loss": 1.0})
    assert copies() == 1  # of the first line
    writer.flush()
    writer.flush()
    assert copies() == 2
    monkeypatch.setattr(mirror, "_SECONDS", 0.0)
    writer.write(11, {"loss": 1.0})
    assert copies() == 3
    writer.close()
    assert copies() == 3
    MetricWriter(files.as_path("gs://bucket/runs/two"), start=4).close()
    lines = store.objects["runs/two/metrics.jsonl"][0].splitlines()
    np.testing.assert_array_equal([json.loads(line)["step"] for line in lines], range(1, 5))


def test_a_bucket_without_get_permission_is_a_one_line_error(
    store: fake_gcs.FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "describes_bucket", False)
    with pytest.raises(UserError, match="^gs://bucket/three/checkpoints cannot hold checkpoints: 403 .*buckets.get"):
        Checkpoints(files.as_path("gs://bucket/three"), keep=1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_denies_access_is_a_one_line_error(store: fake_gcs.FakeGcs, status: int) -> None:
    store.refuse = status
    with pytest.raises(UserError, match="^gs://bucket cannot be used: .*refused.*; check the name, log in"):
        train(runs.tiny_config(), "gs://bucket/run")


def test_a_missing_bucket_is_a_one_line_error() -> None:
    with pytest.raises(
        UserError, match="^gs://another cannot be used: there is no such bucket; check the name"
    ) as caught:
        load_trained("gs://another/run", "best", make_mesh())
    assert "\n" not in str(caught.value)


def test_a_read_only_bucket_is_reported_before_training(store: fake_gcs.FakeGcs) -> None:
    files.as_path("gs://bucket/run")
    store.refuse = 403
    with pytest.raises(UserError, match="^cannot write to --workdir gs://bucket/run: Forbidden"):
        train(runs.tiny_config(), "gs://bucket/run")


def test_a_client_time_out_is_a_one_line_error() -> None:
    from google.api_core.exceptions import RetryError

    with pytest.raises(UserError, match="^results: Timeout of 60s exceeded, last exception: 503$"):
        with files.user_error_on_failure("results"):
            raise RetryError("Timeout of 60s exceeded", Exception("503"))


def test_a_network_failure_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(0))  # gcsfs tries for half a minute
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="^gs://bucket cannot be used: Cannot connect to host 127.0.0.1:1"):
        files.as_path("gs://bucket/run")


@pytest.mark.slow
def test_altered_objects_are_noticed_without_reading_any(
    store: fake_gcs.FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = files.as_path("gs://bucket/runs/altered")
    runs.save_states(place, 1)
    (checkpoint,) = (Saved(place / "checkpoints", step) for step in steps_saved(place / "checkpoints"))
    prefix = "runs/altered/checkpoints/1/"
    names = [name for name in store.names(prefix) if name.count("/") > 4]
    read: list[str] = []
    monkeypatch.setattr(store, "reads", read)
    assert damage(checkpoint) is None
    assert {name.removeprefix(prefix) for name in read} == {"_CHECKPOINT_METADATA", "checksums.json"}
    for name in names:
        content, _ = store.objects[name]
        store.put(name, content[:-1] + bytes([content[-1] ^ 1]))
        reason = damage(checkpoint)
        item = name.removeprefix(prefix).partition("/")[0]
        assert reason is not None and reason.startswith(f"{item}: ") and "was altered" in reason
        store.put(name, content)
    assert len(names) > 10 and damage(checkpoint) is None
