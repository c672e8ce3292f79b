"""Questions to a model behind an OpenAI-compatible server: asked, checked, and asked again with what was wrong.

What asks (captions, poses) brings the messages and the reading of an answer. A server that is busy, slow or away is waited for
by the openai package, which takes up what Retry-After says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, PositiveInt

from llava_pose.errors import InputError
from llava_pose.utils.config import check_fields

Item = TypeVar("Item")
Result = TypeVar("Result")
Message = dict[str, Any]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

KEY_VARIABLE = "OPENAI_API_KEY"
_THOUGHTS = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)  # of models that think aloud
_REFUSALS_OF_ALL = 5  # requests refused, and none answered, before it is the settings and not the pictures


def require_client() -> ModuleType:
    """Return the package openai.

    Raises:
        InputError: it is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError("--api-base needs openai: pip install 'llava-pose[caption]'") from error
    return openai


@dataclass(kw_only=True)
class ServerOptions:
    """The options of every command that asks a server."""

    api_base: str | None = field(
        default=None,
        metadata={
            "help": "An OpenAI-compatible server, such as http://localhost:8000/v1; its key is taken from OPENAI_API_KEY."
        },
    )
    model: str | None = field(default=None, metadata={"help": "The server's name of the model."})
    concurrency: PositiveInt = field(default=8, metadata={"help": "The number of requests at a time."})
    attempts: PositiveInt = field(
        default=3,
        metadata={"help": "The answers to ask for, each with what was wrong, before one counts as failed."},
    )
    tries: PositiveInt = field(
        default=6, metadata={"help": "The requests for one answer, while the server is busy or silent."}
    )
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = field(
        default=120.0, metadata={"help": "The seconds to wait for one answer."}
    )
    max_tokens: PositiveInt = field(
        default=400, metadata={"help": "The most tokens of one answer; models that think need more."}
    )
    token_limit: Literal["max_tokens", "max_completion_tokens"] = field(
        default="max_tokens", metadata={"help": "The server's name of that limit; newer models want the second."}
    )
    temperature: NotNegative | None = field(
        default=None,
        metadata={"help": "The temperature of the model's sampling; by default the server's own (0 repeats best)."},
    )
    price_in: NotNegative = field(
        default=0.0, metadata={"help": "The price of a million tokens sent, for the account of costs."}
    )
    price_out: NotNegative = field(default=0.0, metadata={"help": "The price of a million tokens received."})
    retry_failed: bool = field(default=False, metadata={"help": "Ask again for what failed before."})
    dry_run: bool = field(default=False, metadata={"help": "Print the prompts, send nothing and write nothing."})

    def __post_init__(self) -> None:
        check_fields(self)


class BadAnswer(Exception):
    """An answer that cannot be used; the message says what is wrong, in words that the model may be sent."""


@dataclass(frozen=True)
class Reply(Generic[Result]):
    """The outcome of one question.

    Attributes:
        value: the answer as it was read; None if none could be used.
        reason: why none could be used, else "".
        attempts: the answers that were asked for.
        prompt_tokens, completion_tokens: those of all of them, as the server counts them.
    """

    value: Result | None
    reason: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int


class ServedModel:
    """Asks one server. Safe to use from several threads.

    Args:
        options: with a server and a model.

    Raises:
        InputError: the client is not installed, or no server or model is named.
    """

    def __init__(self, options: ServerOptions) -> None:
        for name in ("api_base", "model"):
            if not getattr(options, name):
                raise InputError(f"the option --{name.replace('_', '-')} is needed; see --help")
        self._openai = require_client()
        self._options = options
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._client = self._openai.OpenAI(
            base_url=options.api_base,
            api_key=self._key or "none",  # a server of one's own wants no key, but the client wants one
            timeout=options.timeout,
            max_retries=options.tries - 1,
        )
        self._ended: Exception | None = None  # why nothing more is sent
        self._answered = False
        self._refused = 0

    def stop(self) -> None:
        """Send nothing more, from any thread."""
        self._ended = self._ended or CancelledError("stopped")

    def close(self) -> None:
        """Stop, and close the connections."""
        self.stop()
        self._client.close()

    def ask(self, first: Sequence[Message], read: Callable[[str | None], Result]) -> Reply[Result]:
        """Ask one question, with as many attempts at an answer that can be used as the options allow.

        Args:
            first: the messages of the first attempt; the later ones add the last answer and what was wrong with it.
            read: reads the answer's text, and raises :class:`BadAnswer`.

        Raises:
            InputError: the server cannot be used: it refuses the key, the model or every request, or does not answer.
            CancelledError: :meth:`stop` was called.
        """
        messages, reason = first, ""
        sent = received = attempt = 0
        for attempt in range(1, self._options.attempts + 1):
            try:
                text, usage, cut_off = self._request(messages)
            except self._openai.BadRequestError as error:  # of this picture: the next may be welcome
                self._refused += 1
                if self._refused >= _REFUSALS_OF_ALL and not self._answered:
                    raise self._unusable(error) from error  # nobody wants a file of failures because of one option
                return Reply(None, f"the server refused the request: {self._clean(error)}", attempt, sent, received)
            sent, received = sent + _count(usage, "prompt_tokens"), received + _count(usage, "completion_tokens")
            try:
                return Reply(read(text), "", attempt, sent, received)
            except BadAnswer as error:
                reason = str(error)
                messages = next_messages(first, text or "", reason)
                if cut_off:
                    reason += f" (it was cut off after {self._options.max_tokens} tokens; raise --max-tokens)"
        return Reply(None, reason, attempt, sent, received)

    def _request(self, messages: Sequence[Message]) -> tuple[str | None, Any, bool]:
        """Return the text of one answer, its token counts, and whether it was cut off."""
        options = self._options
        settings: dict[str, Any] = {options.token_limit: options.max_tokens}
        if options.temperature is not None:
            settings["temperature"] = options.temperature
        trouble: Exception | None = None
        for _ in range(options.tries):  # replies that are no answer; what HTTP says is wrong, the package tries again
            if self._ended is not None:
                raise self._ended
            try:
                reply = self._client.chat.completions.create(model=options.model, messages=list(messages), **settings)
                content, cut_off = _content(reply)
                self._answered = True
                return content, getattr(reply, "usage", None), cut_off
            except ValueError as error:
                trouble = error
            except self._openai.BadRequestError:
                raise
            except self._openai.APIError as error:
                raise self._unusable(error) from error
        raise self._unusable(trouble) from trouble

    def _unusable(self, error: Exception | None) -> InputError:
        """Return what ends the run; no thread sends anything after it."""
        self._ended = failure = InputError(
            f"--api-base {self._options.api_base}: the server gave no answer ({self._clean(error)}); nothing is lost: "
            "mend it and run the same command again to go on"
        )
        return failure

    def _clean(self, error: Exception | None) -> str:
        """Return what went wrong, in one short line without the key, which some servers send back."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return (text.replace(self._key, "***") if self._key else text)[:300]


def next_messages(first: Sequence[Message], answer: str, reason: str) -> list[Message]:
    """Return the messages after an answer that could not be used; only the latest one is sent again."""
    return [
        *first,
        {"role": "assistant", "content": answer or "(nothing)"},
        {"role": "user", "content": f"This answer cannot be used: {reason}. Write it anew, as one JSON object only."},
    ]


def _content(reply: Any) -> tuple[str | None, bool]:
    """Return the text of a reply, None where the model said nothing, and whether it was cut off at the limit of tokens.

    Raises:
        ValueError: it is no chat completion: a web page, an error with status 200, an answer of another kind. The client
            passes on whatever a server sends.
    """
    choices: Any = getattr(reply, "choices", ...)
    if choices == []:
        return None, False
    try:
        content = choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError("the reply is no chat completion") from error
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):  # some servers send it in parts
        content = "".join(str(part.get("text", "")) for part in content)
    if content is not None and not isinstance(content, str):
        raise ValueError("the reply is no chat completion: its content is no text")
    text = None if content is None else content.encode("utf-8", "replace").decode("utf-8")  # half a letter is none
    return text and _THOUGHTS.sub("", text), getattr(choices[0], "finish_reason", None) == "length"


def _count(usage: Any, name: str) -> int:
    """Return a number of tokens; 0 where the server does not count."""
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value > 0 else 0


def map_threads(
    function: Callable[[Item], Result], items: Iterator[Item], *, threads: int, stop: Callable[[], None]
) -> Iterator[Result]:
    """Yield ``function`` of every item, worked out over a few threads, as results come; few items are taken ahead.

    Args:
        stop: called after an error, or where the caller wants no more. What has not begun is dropped.

    Raises:
        Exception: whatever the function raises.
    """
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[Result]] = set()
        try:
            more = True
            while more or running:
                while more and len(running) < 2 * threads:
                    item = next(items, None)
                    more = item is not None
                    if item is not None:
                        running.add(pool.submit(function, item))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def token_account(sent: int, received: int, options: ServerOptions) -> dict[str, float]:
    """Return tokens and their cost, as summaries hold them."""
    return {
        "prompt_tokens": sent,
        "completion_tokens": received,
        "cost": round((sent * options.price_in + received * options.price_out) / 1e6, 6),
    }
