"""Questions to a vision-language model behind an OpenAI-compatible server: asked, checked, asked again with the reason, and
waited for where the server is busy. What asks (captions, poses) brings the messages and the reading of an answer.
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timezone
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

from llava_pose.errors import InputError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
Message = dict[str, Any]
TokenLimit = Literal["max_tokens", "max_completion_tokens"]

KEY_VARIABLE = "OPENAI_API_KEY"
_LONGEST_WAIT = 120.0  # seconds, whatever a server asks for
_IN_FLIGHT = 2  # tasks a thread, so that none waits for work and nothing piles up
_REFUSALS_OF_ALL = 5  # requests refused, and none answered, before it is the settings and not the pictures


def require_client() -> ModuleType:
    """The package openai.

    Raises:
        InputError: it is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError("--api-base needs openai: pip install 'llava-pose[caption]'") from error
    return openai


class Stopped(Exception):
    """Another request has failed for good; this one was given up."""


class BadAnswer(Exception):
    """An answer that cannot be used; the message says what is wrong, in words that the model may be sent."""


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is dealt with.

    Attributes:
        base_url: such as http://localhost:8000/v1.
        timeout: seconds for one answer.
        tries: requests for one answer, before the server counts as not there.
        first_wait: seconds before the second try, doubled for each further one unless the server says how long.
        max_tokens: of an answer.
        temperature: None leaves it to the server.
        token_limit: the name that the server has for ``max_tokens``.
    """

    base_url: str
    model: str
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    max_tokens: int = 400
    temperature: float | None = 0.7
    token_limit: TokenLimit = "max_tokens"


@dataclass(frozen=True)
class Reply(Generic[Result]):
    """What came of one question.

    Attributes:
        value: the answer as it was read; None if none could be used.
        reason: why none could be used, else "".
        attempts: answers that were asked for.
        prompt_tokens, completion_tokens: of all of them, as the server counts them.
    """

    value: Result | None
    reason: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int


class ServedModel:
    """Asks one server. Safe to use from several threads.

    Raises:
        InputError: the client is not installed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._openai = openai = require_client()
        self._endpoint = endpoint
        self._key = os.environ.get(KEY_VARIABLE, "")
        # a server of one's own wants no key, but the client wants one; retries are this class's own
        self._client = openai.OpenAI(
            base_url=endpoint.base_url, api_key=self._key or "none", timeout=endpoint.timeout, max_retries=0
        )
        self._stopped = threading.Event()
        self._failure: InputError | None = None
        self._answered = False
        self._refused = 0

    def stop(self) -> None:
        """Give up what is being waited for, in all threads."""
        self._stopped.set()

    def close(self) -> None:
        self.stop()
        self._client.close()

    def ask(self, first: Sequence[Message], read: Callable[[str | None], Result], *, attempts: int) -> Reply[Result]:
        """One question, with as many attempts at an answer that can be used.

        Args:
            first: the messages of the first attempt; the later ones add the last answer and what was wrong with it.
            read: the answer's text to what it says; raises :class:`BadAnswer`.

        Raises:
            InputError: the server cannot be used: it refuses the key, the model or every request, or does not answer after
                all tries.
            Stopped: :meth:`stop` was called.
        """
        messages, reason = first, ""
        prompt_tokens = completion_tokens = attempt = 0
        for attempt in range(1, attempts + 1):
            try:
                answer, usage, cut_off = self._request(messages)
            except self._openai.BadRequestError as error:  # of this picture: the next may be welcome
                reason = f"the server refused the request: {self._clean(error)}"
                self._count_refusal(error)
                break
            prompt_tokens += _count(usage, "prompt_tokens")
            completion_tokens += _count(usage, "completion_tokens")
            try:
                return Reply(read(answer), "", attempt, prompt_tokens, completion_tokens)
            except BadAnswer as error:
                reason = str(error)
                messages = next_messages(first, answer or "", reason)
                if cut_off:
                    reason += f" (it was cut off after {self._endpoint.max_tokens} tokens; raise --max-tokens)"
        return Reply(None, reason, attempt, prompt_tokens, completion_tokens)

    def _request(self, messages: Sequence[Message]) -> tuple[str | None, Any, bool]:
        """One answer, its token counts and whether it was cut off, waited for as long as the endpoint's settings say."""
        api, endpoint = self._openai, self._endpoint
        options: dict[str, Any] = {endpoint.token_limit: endpoint.max_tokens}
        if endpoint.temperature is not None:
            options["temperature"] = endpoint.temperature
        for attempt in range(endpoint.tries):
            if self._stopped.is_set():
                raise self._failure or Stopped
            try:
                reply = self._client.chat.completions.create(
                    model=endpoint.model,
                    messages=list(messages),  # type: ignore[arg-type]
                    **options,
                )
                content, cut_off = _content(reply)
                self._answered = True
                return content, getattr(reply, "usage", None), cut_off
            except api.APIStatusError as error:
                if error.status_code == 400:
                    raise
                if error.status_code != 429 and error.status_code not in (408, 409) and error.status_code < 500:
                    raise self._unusable(error) from error
                trouble, delay = error, _retry_after(error.response.headers)
            except (api.APIConnectionError, ValueError) as error:  # timeouts are among them; a body that is no answer
                trouble, delay = error, None
            if attempt + 1 < endpoint.tries:
                self._wait(attempt, delay, trouble)
        raise self._unusable(trouble) from trouble

    def _count_refusal(self, error: Exception) -> None:
        """Nobody wants a whole file of failures because of one option that the server does not know."""
        self._refused += 1
        if self._refused >= _REFUSALS_OF_ALL and not self._answered:
            raise self._unusable(error) from error

    def _wait(self, attempt: int, delay: float | None, trouble: Exception) -> None:
        if delay is None:
            delay = self._endpoint.first_wait * 2**attempt * random.uniform(0.75, 1.25)
        delay = min(delay, _LONGEST_WAIT)
        logger.debug("waiting %.1f s: %s", delay, self._clean(trouble))
        if self._stopped.wait(delay):
            raise self._failure or Stopped

    def _unusable(self, error: Exception) -> InputError:
        """What ends the run; no thread sends anything after it."""
        self._failure = InputError(
            f"--api-base {self._endpoint.base_url}: the server gave no answer ({self._clean(error)}); nothing is lost: "
            "mend it and run the same command again to go on"
        )
        self._stopped.set()
        return self._failure

    def _clean(self, error: Exception) -> str:
        """What went wrong, in one short line without the key, which some servers send back."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return (text.replace(self._key, "***") if self._key else text)[:300]


def next_messages(first: Sequence[Message], answer: str, reason: str) -> list[Message]:
    """The messages after an answer that could not be used; only the latest one is sent again."""
    return [
        *first,
        {"role": "assistant", "content": answer or "(nothing)"},
        {"role": "user", "content": f"This answer cannot be used: {reason}. Write it anew, as one JSON object only."},
    ]


def _content(reply: Any) -> tuple[str | None, bool]:
    """The text of a reply, None where the model said nothing, and whether it was cut off at the limit of tokens.

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
    return text, getattr(choices[0], "finish_reason", None) == "length"


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0 where the server does not count."""
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value > 0 else 0


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait: a number or a date; None if it does not say."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def map_threads(
    function: Callable[[Item], Result], items: Iterator[Item], *, threads: int, stop: Callable[[], None]
) -> Iterator[Result]:
    """``function`` of every item over a few threads, results as they come; few items are taken ahead.

    Args:
        stop: called after an error, or where the caller wants no more: it ends what is in flight, which is then
            waited for. What has not begun is dropped.

    Raises:
        Whatever the function raises.
    """
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[Result]] = set()
        try:
            more = True
            while more or running:
                while more and len(running) < _IN_FLIGHT * threads:
                    item = next(items, None)
                    more = item is not None
                    if more:
                        running.add(pool.submit(function, item))  # type: ignore[arg-type]
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def token_account(sent: int, received: int, price_in: float, price_out: float) -> dict[str, float]:
    """Tokens and their cost, as summaries hold them.

    Args:
        price_in, price_out: of a million tokens sent and received.
    """
    return {
        "prompt_tokens": sent,
        "completion_tokens": received,
        "cost": round((sent * price_in + received * price_out) / 1e6, 6),
    }
