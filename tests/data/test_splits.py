"""The valid split, subsampling, and loading of a corpus by the name of its data set."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from releases import write_release

from cotmi_jax.data import corpus as sources
from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.splits import subsample, with_valid_split
from cotmi_jax.errors import UserError


def make_examples(count: int, split: str = "train") -> tuple[Example, ...]:
    return tuple(Example(f"made/{split}/{i}", f"in {i}", f"label {i}", f"why {i}") for i in range(count))


def write_svamp(root: Path, rationales: list[str], split: str = "train", name: str = "svamp") -> None:
    rows = [{"input": f"{name} {i}?", "label": f"( {i}.0 + 1.0 )"} for i in range(len(rationales))]
    completions = [f"{rationale} The answer is ({i} + 1)." for i, rationale in enumerate(rationales)]
    write_release(root, name, rows, completions, split=split)


def load(dataset="svamp", **changes):
    return load_corpus(Loading(dataset=dataset, **({"size": 50} | changes)))


@pytest.fixture
def root(tmp_path):
    write_svamp(tmp_path, [f"thought {i}" for i in range(30)])
    write_svamp(tmp_path, [f"test thought {i}" for i in range(4)], split="test")
    return tmp_path


@pytest.mark.parametrize(("count", "cut"), [(2, 1), (9, 1), (10, 1), (11, 2), (800, 80), (9741, 975)])
def test_valid_split_is_the_first_tenth_of_a_fixed_permutation(count, cut):
    train, test = make_examples(count), make_examples(3, "test")
    splits = with_valid_split({"test": test, "train": train})
    order = np.random.default_rng(0).permutation(count)
    assert list(splits) == ["train", "valid", "test"]
    assert splits["valid"] == tuple(train[i] for i in order[:cut])
    assert splits["train"] == tuple(train[i] for i in order[cut:])
    assert splits["test"] == test
    assert sorted(splits["train"] + splits["valid"], key=train.index) == list(train) if count < 100 else True
    assert not {e.id for e in splits["train"]} & {e.id for e in splits["valid"]}


def test_a_valid_split_by_cluster_divides_no_cluster():
    draw = np.random.default_rng(1)
    train = tuple(
        dataclasses.replace(each, cluster=f"premise {draw.integers(40)}" if number < 90 else "")
        for number, each in enumerate(make_examples(100))
    )
    splits = with_valid_split({"train": train}, split_by="cluster")
    keys = {name: {each.cluster or each.id for each in examples} for name, examples in splits.items()}
    assert not keys["train"] & keys["valid"]
    assert sorted(splits["train"] + splits["valid"], key=train.index) == list(train)
    largest = max(Counter(each.cluster for each in train[:90]).values())
    assert 10 <= len(splits["valid"]) < 10 + largest
    # By example, clusters are in both; without clusters both ways give the same valid split.
    by_example = with_valid_split({"train": train})
    assert {each.cluster for each in by_example["valid"]} & {each.cluster for each in by_example["train"]}
    plain = make_examples(30)
    assert with_valid_split({"train": plain}, split_by="cluster") == with_valid_split({"train": plain})


def test_clusters_that_cannot_be_divided():
    same = tuple(dataclasses.replace(each, cluster="one") for each in make_examples(5))
    with pytest.raises(UserError, match="^train holds one cluster, which config.data.split_by = cluster cannot divide"):
        with_valid_split({"train": same}, split_by="cluster")
    two = tuple(dataclasses.replace(each, cluster=each.id[-1] == "0" and "a" or "b") for each in make_examples(5))
    splits = with_valid_split({"train": two}, split_by="cluster")
    assert {each.cluster for each in splits["train"]} != {each.cluster for each in splits["valid"]}
    with pytest.raises(UserError, match="split_by"):
        Loading(dataset="arithmetic", split_by="premise")


def test_a_split_by_cluster_has_another_fingerprint():
    one, other = (Loading(dataset="arithmetic", split_by=how) for how in ("example", "cluster"))
    assert sources.corpus_fingerprint(one) != sources.corpus_fingerprint(other)


def test_an_existing_valid_split_stays():
    splits = {"train": make_examples(20), "valid": make_examples(2, "valid")}
    assert with_valid_split(splits) == splits


def test_one_example_is_too_few_for_a_valid_split():
    with pytest.raises(UserError, match="train holds 1 example"):
        with_valid_split({"train": make_examples(1)})


@pytest.mark.parametrize("fraction", [0.125, 0.3, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("seed", [0, 7])
def test_subsample_keeps_the_end_of_the_permutation_of_its_seed(fraction, seed):
    examples = make_examples(137)
    order = np.random.default_rng(seed).permutation(137)
    kept = order[math.ceil((1 - fraction) * 137) :]
    assert subsample(examples, fraction, seed) == tuple(examples[i] for i in kept)


def test_subsample_of_everything_changes_nothing():
    examples = make_examples(10)
    assert subsample(examples, 1.0, 3) == examples
    assert len(subsample(examples, 0.7, 3)) == 6  # in floating point 1 - 0.7 is slightly above 0.3


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_subsample_refuses_other_fractions(fraction):
    with pytest.raises(UserError, match=f"subsample = {fraction}: give a fraction"):
        subsample(make_examples(10), fraction, 0)


def test_subsample_refuses_to_keep_nothing():
    with pytest.raises(UserError, match="subsample = 0.01 of 10 examples keeps none"):
        subsample(make_examples(10), 0.01, 0)


def test_load_subsamples_before_it_makes_the_valid_split(root):
    read = ReleasedSource(root, "svamp").read().splits
    expected = with_valid_split({"train": subsample(read["train"], 0.5, 4), "test": read["test"]})
    loaded = load(data_root=str(root), subsample=0.5, seed=4)
    assert loaded.corpus.splits == expected
    assert {split: len(examples) for split, examples in expected.items()} == {"train": 13, "valid": 2, "test": 4}
    assert loaded.dropped == {"train": 0, "valid": 0, "test": 0}


def test_asdiv_stays_out_of_the_valid_split(root):
    write_svamp(root, [f"added thought {i}" for i in range(40)], name="asdiv")
    plain = load(data_root=str(root)).corpus.splits
    augmented = load(data_root=str(root), augment_asdiv=True).corpus.splits
    assert augmented["valid"] == plain["valid"] and augmented["test"] == plain["test"]
    assert augmented["train"][: len(plain["train"])] == plain["train"]
    assert {e.id for e in augmented["train"][len(plain["train"]) :]} == {f"asdiv/train/{i}" for i in range(40)}
    halved = load(data_root=str(root), augment_asdiv=True, subsample=0.5).corpus.splits
    assert len(halved["train"]) + len(halved["valid"]) == 35
    assert all(e.id.startswith("svamp/") for e in halved["valid"])


def test_blank_rationales_are_refused_or_dropped_from_train_only(tmp_path):
    write_svamp(tmp_path, ["thought", " ", "thought", "thought"])
    write_svamp(tmp_path, ["thought", " "], split="valid")
    write_svamp(tmp_path, [" ", "thought", "thought"], split="test")
    gold = tmp_path / "svamp" / "svamp_train.json"
    with pytest.raises(UserError, match=f"^{gold}:2: no rationale for example svamp/train/1; .*=drop"):
        load(data_root=str(tmp_path))
    loaded = load(data_root=str(tmp_path), empty_rationale="drop")
    assert [e.id for e in loaded.corpus.splits["train"]] == ["svamp/train/0", "svamp/train/2", "svamp/train/3"]
    assert [len(loaded.corpus.splits[split]) for split in ("valid", "test")] == [2, 3]
    assert loaded.dropped == {"train": 1, "valid": 0, "test": 0}
    write_svamp(tmp_path, ["", ""])
    with pytest.raises(UserError, match="none of the 2 train examples has a rationale"):
        load(data_root=str(tmp_path), empty_rationale="drop")


def test_blank_rationales_in_evaluation_are_refused_too(root):
    write_svamp(root, ["thought", " "], split="test")
    with pytest.raises(UserError, match=r"svamp_test.json:2: no rationale for example svamp/test/1"):
        load(data_root=str(root))


def test_empty_gold_is_an_error_whatever_the_policy(root):
    gold = root / "svamp" / "svamp_test.json"
    gold.write_text(gold.read_text().replace("svamp 2?", " "))
    for policy in ("error", "drop"):
        with pytest.raises(UserError, match=f"^{gold}:3: the input is empty"):
            load(data_root=str(root), empty_rationale=policy)


def test_unparsed_completions_are_counted(root):
    completions = ["No label here."] * 3 + ["Fine. The answer is (1)."] * 27
    (root / "svamp" / "llm" / "train_CoT_0.json").write_text(json.dumps(completions))
    unparsed = load(data_root=str(root)).unparsed
    assert unparsed["train"] + unparsed["valid"] == 3 and unparsed["test"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "gsm8k"}, "dataset = 'gsm8k': choose one of anli1, arithmetic, cqa, deduction, esnli, svamp"),
        ({"empty_rationale": "blank"}, "empty_rationale = 'blank': choose one of error, drop, keep"),
        ({"bad_rows": "drop"}, "bad_rows = 'drop': choose one of error, skip"),
        ({"label_kind": "number"}, "label_kind = 'number': choose one of text, equation"),
        ({"dataset": "arithmetic", "augment_asdiv": True}, "augment_asdiv goes with dataset 'svamp' only"),
        ({"dataset": "arithmetic", "size": 0}, "size = 0: give the number of train examples"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(UserError) as error:
        load(**changes)
    assert message in str(error.value)


def test_data_root_comes_from_argument_or_environment_alone(root, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("folder") / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv(sources.DATA_ROOT_VARIABLE, raising=False)
    (folder.parent / "shared").mkdir()
    (folder.parent / "shared" / "data").symlink_to(root)
    with pytest.raises(
        UserError, match="no data root: set config.data.root .* or COTMI_DATA_ROOT .*dss/{set}/"
    ) as error:
        load()
    assert "t5/spiece.model" in str(error.value)
    monkeypatch.setenv(sources.DATA_ROOT_VARIABLE, str(root))
    assert len(load().corpus.splits["train"]) == 27
    monkeypatch.setenv(sources.DATA_ROOT_VARIABLE, "/nowhere")
    with pytest.raises(UserError, match="^/nowhere: holds neither svamp/ nor dss/svamp/"):
        load()
    assert len(load(data_root=str(root)).corpus.splits["train"]) == 27


def test_arithmetic_needs_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(sources.DATA_ROOT_VARIABLE, raising=False)
    splits = load("arithmetic", size=40).corpus.splits
    assert [len(splits[split]) for split in ("train", "valid", "test")] == [40, 500, 500]
    smaller = load("arithmetic", size=40, subsample=0.25, seed=9).corpus.splits
    assert smaller["train"] == subsample(splits["train"], 0.25, 9) and smaller["valid"] == splits["valid"]


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [("cqa", (8766, 975, 1221)), ("svamp", (720, 80, 200)), ("esnli", (9999, 9842, 9824))],
)
def test_real_sizes(data_root, dataset, sizes):
    loaded = load(dataset, data_root=str(data_root), empty_rationale="drop")
    assert tuple(len(loaded.corpus.splits[split]) for split in ("train", "valid", "test")) == sizes
    assert loaded.dropped == {"train": int(dataset == "esnli"), "valid": 0, "test": 0}


def test_real_empty_rationale_is_named(data_root):
    with pytest.raises(UserError, match=r"esnli_train.json:1093: no rationale for example esnli/train/1092;"):
        load("esnli", data_root=str(data_root))
