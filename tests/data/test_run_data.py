"""The data of a run: which cache it uses, what the cache depends on, and components that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
import runs

from cotmi_jax.data import run_data as run_data_module
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError


def test_a_cache_in_a_bucket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="config.data.cache gs://b/tokens: .* leave it empty"):
        run_data_module.find_cache(runs.tiny_config({"data.cache": "gs://b/tokens"}))
    monkeypatch.setenv(run_data_module.CACHE_VARIABLE, "gs://b/all")
    with pytest.raises(UserError, match=r"\$COTMI_CACHE gs://b/all: "):
        run_data_module.find_cache(runs.tiny_config({"data.cache": ""}))


def run_data(folder: Path | str, **changes: Any) -> RunData:
    config = runs.tiny_config({"data.cache": str(folder)} | changes)
    return RunData.of(config, Vocabulary(VOCABULARY_PATH))


def test_a_run_finds_its_data_again_and_reads_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_data(tmp_path)
    assert not first.found and f"tokens now in {tmp_path}" in first.notes(None)[0]
    monkeypatch.setattr(run_data_module, "load_corpus", lambda *arguments: pytest.fail("the corpus was read"))
    second = run_data(tmp_path, **{"steps": 9, "batch_size": 4, "data.packing": False})
    assert second.found and f"tokens from {tmp_path}" in second.notes(None)[0]
    assert second.prepared.fingerprint == first.prepared.fingerprint
    assert second.position(3) == {"step": 3, "examples": 12, "fingerprint": first.prepared.fingerprint}
    dss = run_data(tmp_path, **{"objective.name": "dss"})
    assert dss.found  # its sequences are those of cotmi


@pytest.mark.parametrize(
    "changes",
    [
        {"data.size": 21},
        {"data.max_target_tokens": 30},
        {"data.label_type": "llm"},
        {"objective.name": "single_task"},
        {"data.subsample": 0.5},
        {"data.too_long": "skip"},
    ],
)
def test_a_run_with_other_data_prepares_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    run_data(tmp_path)
    assert not run_data(tmp_path, **changes).found


def test_the_environment_sets_the_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTMI_CACHE", str(tmp_path / "there"))
    assert run_data_module.find_cache(runs.tiny_config({"data.cache": ""})) == tmp_path / "there"
    assert run_data_module.find_cache(runs.tiny_config({"data.cache": "none"})) is None
    monkeypatch.delenv("COTMI_CACHE")
    assert run_data_module.find_cache(runs.tiny_config({"data.cache": ""})) == Path.home() / ".cache" / "cotmi_jax"


def test_the_manifest_holds_the_identity_of_the_data(tmp_path: Path) -> None:
    run_data(tmp_path)
    (place,) = tmp_path.iterdir()
    identity = json.loads((place / "manifest.json").read_text())["identity"]
    assert identity.keys() == {"corpus", "vocabulary", "sequences", "mark", "settings"}
    assert (
        identity["sequences"] == ["two tasks", "predict: ", "explain: "]
        and identity["settings"]["max_input_tokens"] == 1024
    )


def test_a_component_that_is_all_too_long_is_named(tmp_path: Path) -> None:
    for folder, text in (("short", "Two pens."), ("long", "Two pens. " * 30)):
        rows = [{"input": text, "label": "2", "rationale": f"It is {n}."} for n in range(12)]
        (tmp_path / f"{folder}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = f"jsonl:{tmp_path}/short.jsonl,jsonl:{tmp_path}/long.jsonl"
    changes = {"data.dataset": dataset, "data.max_input_tokens": 40, "data.too_long": "skip"}
    with pytest.raises(
        UserError, match="train of jsonl:long: all 10 examples are longer than config.data.max_input_to"
    ):
        run_data("none", **changes)


def write_rows(folder: Path, rationales: list[str], *, text: str = "Two pens.") -> str:
    """A set of a row for each rationale, "" for none, and one valid row."""
    folder.mkdir()
    for split, column in (("train", rationales), ("valid", ["So."])):
        rows = [{"input": f"{text} {n}", "label": "2", "rationale": written} for n, written in enumerate(column)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder}"


def test_rationales_are_not_trained_on_a_set_without_any(tmp_path: Path) -> None:
    changes = {"data.dataset": write_rows(tmp_path / "mine", [""] * 3), "data.empty_rationale": "keep"}
    with pytest.raises(UserError, match="none of the 3 examples has a rationale, which objective cotmi trains on: set"):
        run_data(tmp_path / "cache", **changes)
    with pytest.raises(UserError, match=r"objective dss .*\.name to standard, or .* cotmi_jax\.annotate"):
        run_data(tmp_path / "cache", **{"objective.name": "dss"}, **changes)  # its tokens are cached now
    assert run_data("none", **{"objective.name": "standard"}, **changes).train.size == 3
    config = runs.tiny_config({"data.cache": "none"} | changes)
    resumed = RunData.of(config, Vocabulary(VOCABULARY_PATH), fresh=False)  # an earlier version started it
    assert resumed.summary()["train"]["share_without_rationale"] == 1.0


def test_the_share_of_examples_without_a_rationale_is_reported(tmp_path: Path) -> None:
    changes = {"data.dataset": write_rows(tmp_path / "mine", ["", "So.", ""]), "data.empty_rationale": "keep"}
    data = run_data("none", **changes)
    assert "train: 2 of 3 examples (66.7%) have no rationale: only their label is trained" in data.notes(None)
    assert not any("have no rationale" in note for note in data.notes(None) if note.startswith("valid"))
    train = data.summary()["train"]
    assert (train["examples"], train["without_rationale"], train["share_without_rationale"]) == (3, 2, 2 / 3)
    standard = run_data("none", **{"objective.name": "standard"}, **changes)
    assert standard.summary()["train"]["without_rationale"] is None
    assert not any("rationale" in note for note in standard.notes(None))


def test_unknown_tokens_are_counted_by_split_and_column(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "mine", ["So 東.", "So.", "東 or 東."], text="How many ï?")
    data = run_data(tmp_path / "cache", **{"data.dataset": dataset})
    cached = run_data(tmp_path / "cache", **{"data.dataset": dataset})
    for each in (data, cached):
        found = {name: split["unknown"] for name, split in each.summary().items()}
        assert found == {
            "train": {"input": 3, "label": 0, "rationale": 3},
            "valid": {"input": 1, "label": 0, "rationale": 0},
        }
        assert (
            "train: unknown tokens, for characters that the vocabulary lacks: 3 in the input (of 3 texts), 3 in the "
            "rationale (of 2 texts)"
        ) in each.notes(None)
    single = run_data("none", **{"data.dataset": dataset, "objective.name": "single_task"})
    assert single.summary()["train"]["unknown"] == {"input": 3, "target": 3}
