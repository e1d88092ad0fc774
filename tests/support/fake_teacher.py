"""A chat endpoint on localhost with the OpenAI protocol and injected faults."""

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "oracle-1"
# A fault replaces the response to a request: it writes to the handler itself.
Fault = Callable[["_Handler"], None]


class FakeTeacher:
    """Answers questions of the form "… 3 + 4 …" with `n` completions "3 and 4 make 7. So the answer is 7.".

    complete: returns another completion, from the last user message and the index of the sample. faults: one for each
    of the first requests. requests: the bodies of all requests, in order; keys: their authorization headers.
    reasoning_tokens: the model reasons for so many tokens before it answers, and is served as OpenAI serves its
    reasoning models: max_tokens and any temperature but 1 are refused, and the tokens count towards the limit.
    """

    def __init__(
        self, complete: Callable[[str, int], str] | None = None, faults: Sequence[Fault] = (), delay_s: float = 0
    ):
        self.complete = complete or add_up
        self.reasoning_tokens: int | None = None
        self.faults = list(faults)
        self.delay_s = delay_s
        self.largest_n = 100
        self.model = MODEL
        self.finish_reason = "stop"
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10}
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.in_flight = self.most_in_flight = 0
        self.times: list[float] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "FakeTeacher":
        ThreadingHTTPServer.request_queue_size = 128
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.teacher = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def asked(self) -> list[str]:
        """The last user message of every request."""
        return [body["messages"][-1]["content"] for body in self.requests]


def add_up(text: str, sample: int) -> str:
    a, b = re.search(r"(\d+) \+ (\d+)", text).groups()  # type: ignore[union-attr]
    return f"{a} and {b} make {int(a) + int(b)}. So the answer is {int(a) + int(b)}."


def completion(teacher: FakeTeacher, body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion in the format of the protocol."""
    samples = range(min(body.get("n", 1), teacher.largest_n))
    text = body["messages"][-1]["content"]
    limit = body.get("max_completion_tokens", 1 << 20)
    cut = teacher.reasoning_tokens is not None and teacher.reasoning_tokens >= limit
    choices = [
        {
            "index": k,
            "message": {"role": "assistant", "content": "" if cut else teacher.complete(text, k)},
            "finish_reason": "length" if cut else teacher.finish_reason,
        }
        for k in samples
    ]
    return {"id": "c", "object": "chat.completion", "model": teacher.model, "choices": choices, "usage": teacher.usage}


def refused_parameter(body: dict[str, Any]) -> dict[str, str] | None:
    """The error of OpenAI's API for a parameter that its reasoning models refuse, the first of them."""
    if "max_tokens" in body:
        message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return api_error(f"Unsupported parameter: {message}", "max_tokens", "unsupported_parameter")
    if (temperature := body.get("temperature", 1)) != 1:
        message = (
            f"'temperature' does not support {temperature} with this model. Only the default (1) value is supported."
        )
        return api_error(f"Unsupported value: {message}", "temperature", "unsupported_value")
    return None


def api_error(message: str, parameter: str, code: str) -> dict[str, str]:
    return {"message": message, "type": "invalid_request_error", "param": parameter, "code": code}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: a second packet would wait for the acknowledgement of the first
    body: dict[str, Any]

    def do_POST(self) -> None:
        teacher: FakeTeacher = self.server.teacher  # type: ignore[attr-defined]
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with teacher.lock:
            teacher.requests.append(self.body)
            teacher.keys.append(self.headers.get("Authorization"))
            teacher.times.append(time.monotonic())
            teacher.in_flight += 1
            teacher.most_in_flight = max(teacher.most_in_flight, teacher.in_flight)
            fault = teacher.faults.pop(0) if teacher.faults else None
        try:
            time.sleep(teacher.delay_s)
            if self.path != "/v1/chat/completions":
                self.reply(404, {"detail": "Not Found"})
            elif fault is not None:
                fault(self)
            elif teacher.reasoning_tokens is not None and (refusal := refused_parameter(self.body)):
                self.reply(400, {"error": refusal})
            else:
                self.reply(200, completion(teacher, self.body))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed or timed out
        finally:
            with teacher.lock:
                teacher.in_flight -= 1

    def reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.raw(status, json.dumps(body).encode(), headers or {})

    def raw(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, message: str = "no", headers: dict[str, str] | None = None, kind: str | None = None) -> Fault:
    """An error in the format of the protocol."""
    return lambda handler: handler.reply(code, {"error": {"message": message, "code": kind}}, headers)


def slow(seconds: float) -> Fault:
    """The correct response after a delay."""

    def fault(handler: _Handler) -> None:
        time.sleep(seconds)
        handler.reply(200, completion(handler.server.teacher, handler.body))  # type: ignore[attr-defined]

    return fault


def trickle(seconds: float) -> Fault:
    """A response in single bytes, each within the time-out, all together beyond it."""

    def fault(handler: _Handler) -> None:
        handler.raw(200, b" ", {}, length=1000)
        for _ in range(round(seconds / 0.05)):
            time.sleep(0.05)
            handler.wfile.write(b" ")
            handler.wfile.flush()

    return fault


def truncated_json(handler: _Handler) -> None:
    """Half of the response, with the length of the half."""
    content = json.dumps(completion(handler.server.teacher, handler.body)).encode()  # type: ignore[attr-defined]
    handler.raw(200, content[: len(content) // 2], {})


def cut_off(handler: _Handler) -> None:
    """Half of the response with the full length, then the connection ends."""
    content = json.dumps(completion(handler.server.teacher, handler.body)).encode()  # type: ignore[attr-defined]
    handler.raw(200, content[: len(content) // 2], {}, length=len(content))
    handler.close_connection = True


def dropped(handler: _Handler) -> None:
    """No response; the connection ends."""
    handler.close_connection = True


def web_page(handler: _Handler) -> None:
    """An HTML page in place of a response, as proxies return."""
    handler.raw(200, b"<html>sign in</html>", {"Content-Type": "text/html"})


def error_in_200(handler: _Handler) -> None:
    """An error with status 200."""
    handler.reply(200, {"error": {"message": "upstream overloaded"}})
