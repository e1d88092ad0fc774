"""The command describe: data sets, mixtures and recipes before training."""

import json
from pathlib import Path

import pytest
import runs

from cotmi_jax.data.origins import RELEASE
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH

quick_compilation = runs.quick_compilation


@pytest.mark.slow
def test_describe_prints_json() -> None:
    result = runs.command("describe", "--dataset=arithmetic", "--rationale_answer=append", "--json")
    assert (result.code, result.err) == (0, "")
    described = json.loads(result.out)
    assert {split: counts["examples"] for split, counts in described["splits"].items()} == {
        "train": 16_000,
        "valid": runs.HELD_OUT,
        "test": runs.HELD_OUT,
    }
    assert described["splits"]["test"]["teacher_value"] == pytest.approx(0.8, abs=0.5 / runs.HELD_OUT)
    agreeing = round(described["splits"]["test"]["teacher_value"] * runs.HELD_OUT)
    others = {"no_span": 0, "cut": 0, "other": runs.HELD_OUT - agreeing}
    assert described["answers"]["test"] == {"found": agreeing} | others


def test_describe_reads_the_release(tmp_path: Path) -> None:
    root = runs.write_svamp(tmp_path)
    result = runs.command("describe", "--dataset=svamp", f"--data_root={root}", f"--vocabulary={VOCABULARY_PATH}")
    assert (result.code, result.err) == (0, "")
    assert "svamp/train/" in result.out and "Ida has" in result.out
    counts = {
        line.split()[0]: line.split()[1] for line in result.out.splitlines() if line[:5] in ("train", "valid", "test ")
    }
    assert counts == {"train": "18", "valid": "2", "test": "5"}
    runs.assert_refused(runs.command("describe", "--dataset=mathqa", f"--data_root={root}"), "dataset = 'mathqa'")
    runs.assert_refused(runs.command("describe", "--dataset=cqa", f"--data_root={root}"), "holds neither cqa/", RELEASE)


@pytest.mark.slow
def test_a_recipe_is_described_as_a_run_of_it_reads_the_data(tmp_path: Path) -> None:
    """Its limits cut, flags change its keys, and what its training refuses is refused."""
    recipe = runs.config_flags(runs.tiny_config({"data.max_input_tokens": 3}))
    result = runs.command("describe", *recipe, "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["checks"]["train"]["cut"]["input"] == runs.SEED_RECIPE["data.size"]
    runs.assert_refused(runs.command("describe", *recipe, "--dataset=cqa", f"--data_root={tmp_path}"), "neither cqa/")
    runs.assert_refused(
        runs.command("describe", *recipe, "--augment_asdiv"), "augment_asdiv needs config.data.dataset svamp"
    )


def test_describe_reads_mixtures_of_jsonl_files_and_lists_skipped_rows(tmp_path: Path) -> None:
    root, mine = runs.write_svamp(tmp_path / "release"), tmp_path / "mine.jsonl"
    rows = [{"question": f"Is {n} even?", "label": label, "rationale": "So."} for n, label in enumerate("ynynq")]
    mine.write_text("\n".join(map(json.dumps, rows)))
    flags = [f"--data_root={root}", f"--vocabulary={VOCABULARY_PATH}", "--fields=input=question"]
    flags.append(f"--dataset=svamp=3,jsonl:{mine}")
    result = runs.command("describe", *flags, "--labels=y,n", "--bad_rows=skip", "--json")
    assert (result.code, result.err) == (0, "")
    described = json.loads(result.out)
    assert described["splits"]["train"]["skipped"] == 1 and described["label_kind"] == "mixed"
    assert described["skip_notes"] == [f"{mine}:5: label = 'q'; data.labels allows y, n"]
    assert [(part["name"], part["rate"]) for part in described["components"]] == [("svamp", 3.0), ("jsonl:mine", 1.0)]
    runs.assert_refused(runs.command("describe", *flags, "--labels=y,n"), f"{mine}:5: label = 'q'")
