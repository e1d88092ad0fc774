"""Messages about missing files say where the release and T5's vocabulary are found, and what each file is called."""

import pytest
import runs
from releases import nli_row, write_release

from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.files import as_path

RELEASE = "datasets.zip of github.com/google-research/distilling-step-by-step"
VOCABULARY = "spiece.model of huggingface.co/google/t5-v1_1-base"


def test_missing_files_are_named_with_their_origin(tmp_path, monkeypatch):
    def message(**settings: str) -> str:
        with pytest.raises(UserError) as error:
            load_corpus(Loading(dataset="esnli", **settings))
        return str(error.value)

    monkeypatch.delenv("COTMI_DATA_ROOT", raising=False)
    assert RELEASE in message() and VOCABULARY in message()
    found = message(data_root=str(tmp_path))
    assert found.startswith(f"{tmp_path}: holds neither esnli/ nor dss/esnli/; ") and found.endswith(RELEASE)
    gold = write_release(tmp_path, "esnli", [nli_row(0)], ["A. Answer: neutral"])
    completions = tmp_path / "esnli" / "llm" / "train_CoT_0.json"
    for path in (completions, gold):
        path.unlink()
        found = message(data_root=str(tmp_path))
        assert found.startswith(f"{path}: No such file or directory; ") and found.endswith(RELEASE)
    with pytest.raises(UserError) as error:
        Vocabulary(as_path(str(tmp_path / "t5" / "spiece.model")))
    assert str(error.value).startswith(f"no vocabulary at {tmp_path}/t5/spiece.model: ") and VOCABULARY in str(
        error.value
    )


@pytest.mark.slow
def test_describe_says_where_the_files_are_found():
    printed = "".join(runs.command("describe", "--help").out.split())  # absl breaks lines within names
    assert RELEASE.replace(" ", "") in printed and VOCABULARY.replace(" ", "") in printed
