"""The export command with an upload, as users start it, against a fake of the hub."""

from pathlib import Path

import fake_hub
import huggingface_hub
import huggingface_hub.constants
import jax
import numpy as np
import pytest
import runs
from helpers import numpy_params, small_config

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.models.hf import load_hf, save_hf
from cotmi_jax.models.student import StudentDef

quick_compilation = runs.quick_compilation


class PointAt:
    """Have a command's process use a hub and a token."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url, token

    def __call__(self) -> None:
        import os

        huggingface_hub.constants.ENDPOINT = self.url
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        os.environ |= {"HF_TOKEN": self.token, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


@pytest.mark.slow
def test_an_export_is_uploaded_with_its_card(tmp_path: Path) -> None:
    student = StudentDef.of(small_config(vocab_size=512))
    params = jax.tree.map(np.asarray, numpy_params(student))
    save_hf(params, student.config, tmp_path / "student", vocabulary_file=VOCABULARY_PATH)
    flags = [f"--model={tmp_path / 'student'}", "--push_to_hub=owner/student", "--license=apache-2.0"]
    output = tmp_path / "exported"
    with fake_hub.running() as hub:
        result = runs.command("export", *flags, f"--output={output}", before=PointAt(hub.url, "of another"))
        runs.assert_refused(result, "--push_to_hub=owner/student: the hub refuses the token (401)")
        assert not output.exists() and not hub.files
        result = runs.command("export", *flags, f"--output={output}", before=PointAt(hub.url, fake_hub.TOKEN))
        assert (result.code, result.out) == (0, f"written: {output}\nuploaded: {hub.url}/owner/student\n"), result
        assert hub.files == {path.name: path.read_bytes() for path in output.iterdir()}
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert card.data.license == "apache-2.0" and "# owner/student\n" in card.content
    runs.assert_same(load_hf(output)[1], params)
