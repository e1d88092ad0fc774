"""Vocabularies of a data set's own texts, beside one another: what they cost, on the same examples."""

import json
import sys
from typing import Any

import pytest
import runs

from benchmarks import vocabulary

quick_compilation = runs.quick_compilation


@pytest.mark.slow
def test_every_vocabulary_has_its_tokens_parameters_and_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, Any]] = []

    def no_steps(config: Any, student: Any, device: str) -> Any:
        return lambda batch: steps.append((student.vocab_size, batch))

    monkeypatch.setattr(vocabulary, "jax_steps", no_steps)
    flags = ["--dataset=arithmetic", "--batch_size=4", "--pieces", "80", "300", "--steps=2"]
    monkeypatch.setattr(sys, "argv", ["vocabulary", *flags])
    vocabulary.main()
    default, small, large = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [default["flops_ratio"], default["seconds_ratio"]] == [1.0, 1.0]
    assert small["vocabulary"] == "own:80" and large["vocabulary"] == "own:300"
    assert small["pieces"] < large["pieces"] and small["parameters"] < large["parameters"]
    for kind in ("input_tokens", "label_tokens", "rationale_tokens"):
        assert small[kind] > large[kind]  # smaller pieces
    assert large["flops_ratio"] == large["flops"] / default["flops"]
    assert len(steps) == 3 * 3 and len({vocab_size for vocab_size, _ in steps}) == 3  # each batch in every vocabulary
