"""The parts of a chat completion that are used, read from JSON of which nothing is taken for granted."""

from typing import NamedTuple

from cotmi_jax.teacher.journal import Choice

MAX_BYTES = 1 << 26  # of a response: far above 128 completions of a reasoning model
_MAX_COUNT = 1 << 53
# The thinking of reasoning models: of DeepSeek, SGLang and earlier versions of vLLM; of OpenRouter and vLLM.
_THINKING_FIELDS = ("reasoning_content", "reasoning")


class Reply(NamedTuple):
    """A response. Tokens are as the server counted them, None if it did not."""

    model: str
    choices: tuple[Choice, ...]
    tokens_in: int | None
    tokens_out: int | None


def parse_reply(body: object) -> Reply:
    """Parses a chat completion. Choices without a message are left out.

    Raises:
      ValueError: the body is no chat completion, or has no choice with a message.
    """
    if not isinstance(body, dict) or not isinstance(listed := body.get("choices"), list) or not listed:
        error = body.get("error") if isinstance(body, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        raise ValueError(f"no choices: {message:.200}" if isinstance(message, str) else "no choices")
    choices = tuple(choice for choice in map(_choice, listed) if choice is not None)
    if not choices:
        raise ValueError("no choice has a message with text")
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (count if _is_count(count) else None for count in counts)
    return Reply(_optional(body.get("model")) or "unnamed", choices, tokens_in, tokens_out)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _choice(choice: object) -> Choice | None:
    """A completion; None where the item of `choices` is none. A message without text, such as a refusal, is one."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    content = message.get("content")
    thinking = next((text for name in _THINKING_FIELDS if (text := _optional(message.get(name)))), None)
    if isinstance(content, list):
        thinking = thinking or _joined(content, "thinking")
        content = _joined(content, "text") or ""
    if not isinstance(content, str | None):
        return None
    return Choice(content or "", _optional(choice.get("finish_reason")), thinking)


def _optional(value: object) -> str | None:
    """A text; None for any other value, which a server has no reason to send."""
    return value if isinstance(value, str) else None


def _joined(parts: object, kind: str) -> str | None:
    """The text of the parts of one kind, for servers that send the content as a list: text, and thinking with parts."""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return None
    typed = [part for part in parts if isinstance(part, dict) and part.get("type") == kind]
    texts = [part.get(kind) if kind == "text" else _joined(part.get(kind), "text") for part in typed]
    return "".join(text for text in texts if isinstance(text, str)) or None
