"""Servers as they are: refused parameters, thinking, odd or hostile responses, redirects, certificates."""

import contextlib
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fake_teacher as fake
import pytest
from annotations import annotation, read_rows, report, sums
from fake_teacher import FakeTeacher, add_up, completion

from cotmi_jax.errors import UserError
from cotmi_jax.teacher import client
from cotmi_jax.teacher.prompt import load_prompt
from cotmi_jax.teacher.session import request_settings

GIVEN = {"max_tokens": None, "temperature": None}


@pytest.mark.parametrize("concurrency", [1, 8])
def test_refused_parameters_are_left_out_of_later_requests_and_reported_once(tmp_path, capsys, concurrency):
    with FakeTeacher(delay_s=0.02) as teacher:
        teacher.reasoning_tokens = 50
        run = annotation(tmp_path, teacher.url, sums(20), samples=2, concurrency=concurrency, max_retries=0)
        assert run.run() == 0
    assert len(teacher.requests) <= 20 + 2 * concurrency
    assert [body["max_completion_tokens"] for body in teacher.requests[-10:]] == [64] * 10
    assert not any(name in body for body in teacher.requests[-10:] for name in GIVEN)
    err = capsys.readouterr().err
    assert err.count("oracle-1 refuses the parameter max_tokens: requests have max_completion_tokens = 64 instead") == 1
    assert err.count("oracle-1 refuses the parameter temperature: requests have the model's default instead") == 1
    assert len(read_rows(tmp_path / "r.jsonl")) == 20 and report(tmp_path)["samples"] == 40
    assert json.loads((tmp_path / "r.journal.jsonl").read_text().split("\n")[0])["body.temperature"] == 0.7


def test_a_refusal_without_the_code_is_recognized_by_its_message(tmp_path):
    message = "Unsupported value: 'temperature' does not support 0.7 with this model."
    with FakeTeacher(faults=(fake.status(400, message, kind="invalid_request_body"),)) as teacher:
        assert annotation(tmp_path, teacher.url, sums(1)).run() == 0
    assert [set(body) & {"temperature", "max_tokens"} for body in teacher.requests] == [
        {"temperature", "max_tokens"},
        {"max_tokens"},
    ]


def test_a_parameter_that_the_user_chose_is_not_left_out(tmp_path):
    refusal = {"error": fake.api_error("Unsupported parameter: 'top_k'", "top_k", "unsupported_parameter")}
    with FakeTeacher(faults=(lambda handler: handler.reply(400, refusal),)) as teacher:
        with pytest.raises(UserError, match="400 Unsupported parameter: 'top_k'; change the request"):
            annotation(tmp_path, teacher.url, sums(1), settings={"top_k": 5}).run()
    assert len(teacher.requests) == 1


def test_a_server_that_refuses_again_ends_the_run(tmp_path):
    refusal = {"error": fake.api_error("Unsupported", "temperature", "unsupported_value")}
    with FakeTeacher(faults=[lambda handler: handler.reply(400, refusal)] * 9) as teacher:
        with pytest.raises(UserError, match="400 Unsupported; change the request"):
            annotation(tmp_path, teacher.url, sums(1)).run()
    assert len(teacher.requests) == 2


def test_a_reasoning_model_that_spends_the_limit_names_the_remedy(tmp_path):
    with FakeTeacher() as teacher:
        teacher.reasoning_tokens = 64
        with pytest.raises(UserError, match="3 were cut by the limit on tokens, one is empty: raise --max_tokens"):
            annotation(tmp_path, teacher.url, sums(3)).run()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_in_a_field_is_journaled_and_can_be_the_rationale(tmp_path, field):
    def reply(handler):
        body = completion(handler.server.teacher, handler.body)
        body["choices"][0]["message"][field] = "Perhaps 9? No, 10."
        handler.reply(200, body)

    with FakeTeacher(faults=(reply,)) as teacher:
        assert annotation(tmp_path, teacher.url, sums(1)).run() == 0
        assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["0 and 10 make 10."]
        assert annotation(tmp_path, teacher.url, sums(1), rationale="thinking").run() == 0
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["Perhaps 9? No, 10."]
    assert len(teacher.requests) == 1


def test_content_as_a_list_of_parts_is_read(tmp_path):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "0 and 10 make 10. So the "},
        {"type": "text", "text": "answer is 10."},
    ]
    body = {"choices": [{"message": {"content": parts}}], "model": "oracle-1"}
    with FakeTeacher(faults=(lambda handler: handler.reply(200, body),)) as teacher:
        annotation(tmp_path, teacher.url, sums(1)).run()
    (record,) = read_rows(tmp_path / "r.journal.jsonl")[1:]
    assert record["choices"][0]["thinking"] == "Hm."
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["0 and 10 make 10."]


def test_structured_output_requests_a_schema_and_reads_it(tmp_path):
    prompt = load_prompt("json")
    settings = request_settings(0.7, 64, "{}", prompt.schema())
    reply = json.dumps({"rationale": "Zero adds nothing.", "answer": "10"})
    with FakeTeacher(lambda *_: reply) as teacher:
        annotation(tmp_path, teacher.url, sums(1), prompt="json", settings=settings).run()
    (body,) = teacher.requests
    assert body["response_format"]["type"] == "json_schema"
    schema = body["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["rationale", "answer"] == schema["required"]
    assert schema["additionalProperties"] is False and body["response_format"]["json_schema"]["strict"] is True
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["Zero adds nothing."]
    with pytest.raises(UserError, match=r"--structured: \S*generic.toml reads no JSON; pass --prompt=json"):
        load_prompt("generic").schema()


def one_choice(choice: object, **more: object) -> fake.Fault:
    return lambda handler: handler.reply(200, {"choices": [choice], **more})


def raw(content: bytes) -> fake.Fault:
    return lambda handler: handler.raw(200, content, {})


DEEP = b"[" * 200_000
UNREADABLE = {
    "200,000 brackets": raw(DEEP),
    "a choice of 200,000 brackets": raw(b'{"choices": [' + DEEP),
    "a closed choice of 900 brackets": raw(b'{"choices": [' + b"[" * 900 + b"]" * 900 + b"]}"),
    "5,000 digits": raw(b'{"choices": [{"message": {"content": ' + b"7" * 5_000 + b"}}]}"),
    "no choices": lambda handler: handler.reply(200, {"choices": []}),
    "choices as a text": lambda handler: handler.reply(200, {"choices": "all"}),
    "a choice as a number": one_choice(3),
    "no choice": one_choice(None),
    "content as a number": one_choice({"message": {"content": 12}}),
    "content as an object": one_choice({"message": {"content": {"text": "a"}}}),
    "a message as a list": one_choice({"message": ["a"]}),
    "a list": lambda handler: handler.reply(200, [1, 2]),
    "null": raw(b"null"),
    "nothing": raw(b""),
    "zeros": raw(bytes(1000)),
    "a compressed page": lambda handler: handler.raw(200, b"\x1f\x8b\x08" + bytes(99), {"Content-Encoding": "gzip"}),
    "an error of 200,000 brackets": lambda handler: handler.raw(500, DEEP, {}),
    "an error as an object": lambda handler: handler.reply(500, {"error": {"message": {"a": []}, "code": [1]}}),
}


@pytest.mark.parametrize("fault", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_response_fails_one_question_and_the_run_continues(tmp_path, fault):
    with FakeTeacher(faults=(fault,)) as teacher:
        with pytest.raises(UserError, match="1 of 2 questions are missing samples .first: q0") as raised:
            annotation(tmp_path, teacher.url, sums(2), concurrency=1, max_retries=0).run()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 700
    assert [len(row["rationale"]) for row in read_rows(tmp_path / "r.jsonl")] == [0, 1]


ODD = {
    "counts": {"usage": {"prompt_tokens": 10**4000, "completion_tokens": -1}},
    "true as a count": {"usage": {"prompt_tokens": True, "completion_tokens": "9"}},
    "usage as a list": {"usage": [1]},
    "the model as an object": {"model": {"a": []}},
    "the reason as a list": {"choices": [{"message": {"content": "So the answer is 10."}, "finish_reason": [1]}]},
    "thinking as a number": {"choices": [{"message": {"content": "A. So the answer is 10.", "reasoning": 7}}]},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_odd_fields_beside_the_text_do_no_harm(tmp_path, change):
    def reply(handler):
        handler.reply(200, completion(handler.server.teacher, handler.body) | change)

    with FakeTeacher(faults=(reply,)) as teacher:
        assert annotation(tmp_path, teacher.url, sums(2), concurrency=1).run() == 0
    assert report(tmp_path)["tokens_in"] in (100, 200) and report(tmp_path)["parse_failures"] == 0
    assert read_rows(tmp_path / "r.journal.jsonl")[1]["tokens_out"] in (None, 10)


def test_of_a_response_with_an_odd_choice_the_others_are_kept(tmp_path):
    def reply(handler):
        body = completion(handler.server.teacher, handler.body)
        body["choices"][1] = {"message": None}
        handler.reply(200, body)

    with FakeTeacher(faults=(reply,)) as teacher:
        assert annotation(tmp_path, teacher.url, sums(1), samples=3).run() == 0
    assert [body.get("n", 1) for body in teacher.requests] == [3, 1]


def test_bytes_that_are_not_utf8_and_control_characters_stay_out_of_messages(tmp_path):
    text = json.dumps({"error": {"message": "\x1b[31mred \u202e\ud83d", "code": None}}).encode() + b"\xff"
    with FakeTeacher(faults=(lambda handler: handler.raw(400, text, {}),)) as teacher:
        with pytest.raises(UserError) as raised:
            annotation(tmp_path, teacher.url, sums(1)).run()
    assert str(raised.value).isprintable()


def test_a_response_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "MAX_BYTES", 1000)
    with FakeTeacher(lambda text, _: add_up(text, 0) if "1 + 10" in text else "x" * 2000) as teacher:
        with pytest.raises(UserError, match="q0: .*more than 1000 bytes"):
            annotation(tmp_path, teacher.url, sums(2), max_retries=0).run()


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(tmp_path, code):
    with FakeTeacher() as elsewhere:
        target = f"{elsewhere.url}/chat/completions"
        with FakeTeacher(faults=(fake.status(code, headers={"Location": target}),)) as teacher:
            with pytest.raises(UserError, match=f"redirects requests to {target}, which are not sent there"):
                annotation(tmp_path, teacher.url, sums(1)).run()
        assert not elsewhere.requests


@contextlib.contextmanager
def tls_teacher(folder: Path) -> Iterator[FakeTeacher]:
    """A teacher with a certificate for 127.0.0.1 that no authority has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, which makes the certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    with FakeTeacher() as teacher:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        teacher.server.socket = context.wrap_socket(teacher.server.socket, server_side=True)
        teacher.url = teacher.url.replace("http:", "https:")
        yield teacher


def test_an_invalid_certificate_ends_the_run_at_once_unless_it_is_trusted(tmp_path, monkeypatch):
    with tls_teacher(tmp_path) as teacher:
        teacher.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client closes the connection
        with pytest.raises(UserError, match=r"the certificate of https://127\S+ is not valid: self.signed") as raised:
            annotation(tmp_path, teacher.url, sums(1)).run()
        assert "SSL_CERT_FILE" in str(raised.value) and "\n" not in str(raised.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert annotation(tmp_path, teacher.url, sums(1)).run() == 0


def test_https_to_a_server_without_tls_ends_the_run_at_once(tmp_path):
    with FakeTeacher() as teacher:
        teacher.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(UserError, match="does not speak TLS: set --base_url to http://"):
            annotation(tmp_path, teacher.url.replace("http:", "https:"), sums(1)).run()
