"""A chat as the messages of Gradio's Chatbot, in which errors and notes look like none of the model's answers."""

from __future__ import annotations

import html
from typing import Any

from llava_pose.errors import InputError
from llava_pose.serve.session import ChatSession, Turn


def transcript(chat: ChatSession) -> list[dict[str, Any]]:
    """Return all that was asked and answered."""
    return [
        message(role, text)
        for turn in chat.turns
        for role, text in (("user", turn.question), ("assistant", _read_out(turn)))
    ]


def message(role: str, text: str, *, title: str = "") -> dict[str, Any]:
    """Return a message as the page shows it.

    Chatbot takes text for HTML, also where it is told to render no Markdown, so that a picture from elsewhere could stand
    in it: the text is escaped.
    """
    content: dict[str, Any] = {"role": role, "content": html.escape(text, quote=False)}
    return {**content, "metadata": {"title": title}} if title else content


def refusal(error: InputError) -> dict[str, Any]:
    """Return the message that a question was not answered, and why."""
    return message("assistant", str(error), title="Not answered")


def note(text: str) -> dict[str, Any]:
    """Return what is to be said of an answer."""
    return message("assistant", text, title="Note")


def _read_out(turn: Turn) -> str:
    text = turn.answer.readable or "(no answer)"
    if turn.answer.complete:
        return text
    return f"{text} … (cut off: the answer {'took' if turn.answer.took_too_long else 'grew'} too long)"
