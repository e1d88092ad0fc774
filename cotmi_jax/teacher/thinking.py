"""Separates the thinking of a reasoning model from its completion, where the server leaves both in one text."""

import re

# As models write them: DeepSeek, Qwen and others <think>; Magistral [THINK]; Kimi ◁think▷; Command <|START_THINKING|>;
# OpenThinker <|begin_of_thought|>; gpt-oss the channels of the harmony format; Gemma <|channel>.
_NAMES = "think|thinking|thought|seed:think"
_OPEN = rf"<(?:{_NAMES})>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>"
_OPEN += r"|<\|channel\|>analysis<\|message\|>|<\|channel>thought"
_CLOSE = rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>"
_CLOSE += r"|(?:<\|end\|><\|start\|>assistant)?<\|channel\|>final<\|message\|>|<channel\|>"
_OPEN_MARK = re.compile(_OPEN, re.IGNORECASE)
_CLOSE_MARK = re.compile(_CLOSE, re.IGNORECASE)
# What remains around the answer of the same formats.
_FRAME = re.compile(
    r"<\|(?:START|END)_RESPONSE\|>|<\|(?:begin|end)_of_solution\|>|<\|(?:return|end)\|>\s*\Z", re.IGNORECASE
)


def split_thinking(completion: str) -> tuple[str, str]:
    """(thinking, the rest) of a completion; without a mark the thinking is empty and the rest is the completion.

    The text before a closing mark is thinking from the opening mark on, or all of it without one, as chat templates may
    hold the opening mark. After an opening mark without a closing one, all text is thinking: the completion was cut.
    """
    *closed, last = _CLOSE_MARK.split(completion)
    thinking, rest = [], []
    for segment in closed:
        before, opened, inside = _cut(segment)
        rest.append(before if opened else "")
        thinking.append(inside if opened else before)
    before, opened, inside = _cut(last)
    if not closed and not opened:
        return "", completion
    rest.append(_FRAME.sub("", before))
    thinking.append(inside)
    return _join(thinking), _join(rest)


def _cut(text: str) -> tuple[str, bool, str]:
    """The text before the first opening mark, whether there is one, and the text after it without further marks."""
    before, *inside = _OPEN_MARK.split(text)
    return before, bool(inside), " ".join(inside)


def _join(texts: list[str]) -> str:
    return "\n\n".join(filter(None, map(str.strip, texts)))
