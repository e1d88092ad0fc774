"""The code of docs/export.md, on students of random parameters."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import numpy_params, small_config
from paths import REPOSITORY

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef

pytest.importorskip("torch")
PAGE = (REPOSITORY / "docs" / "export.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n.*?```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
KINDS: dict[str, dict[str, Any]] = {
    "v1.0": dict(gated=False, tied=True),
    "v1.1": {},
    "byt5": dict(vocab_size=384),
    "umt5": dict(model_type="umt5"),
}


@pytest.fixture
def student(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables of the page after the code for transformers, with student_hf in the working folder."""
    config = small_config(
        **(dict(vocab_size=512, d_model=32, num_encoder_layers=2, num_decoder_layers=2) | KINDS[request.param])
    )
    definition = StudentDef.of(config)
    params = jax.tree.map(np.asarray, numpy_params(definition))
    vocabulary = Path("bytes") if request.param == "byt5" else VOCABULARY_PATH
    save_hf(params, config, tmp_path / "student_hf", vocabulary_file=vocabulary)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(SECTIONS["transformers"], variables)
    assert variables["text"]
    return variables


@pytest.mark.slow
@pytest.mark.parametrize("student", KINDS, indirect=True)
def test_ctranslate2_gives_the_texts_and_the_probabilities(student: dict[str, Any]) -> None:
    pytest.importorskip("ctranslate2")
    exec(SECTIONS["CTranslate2"], student)
    assert student["ct2_text"] == student["text"]
    tokenizer = student["tokenizer"]
    labels = tokenizer("7 + 5 = 12", return_tensors="pt").input_ids
    logits = student["model"](**tokenizer(student["question"], return_tensors="pt"), labels=labels).logits
    expected = logits.log_softmax(-1)[0].gather(1, labels[0, :, None])[:, 0].detach().numpy()
    target = tokenizer.convert_ids_to_tokens(labels[0])[:-1]  # the library adds the eos
    (found,) = student["translator"].score_batch([student["tokens"]], [target])
    np.testing.assert_allclose(found.log_probs, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["v1.1"], indirect=True)
def test_onnx_gives_the_texts(student: dict[str, Any]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    exec(SECTIONS["ONNX"], student)
    assert student["onnx_text"] == student["text"]


def test_the_page_has_the_sections_that_are_run() -> None:
    assert {"transformers", "CTranslate2", "ONNX"} <= SECTIONS.keys()
