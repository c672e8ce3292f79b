"""Captions from an OpenAI-compatible server: asked, checked, asked again with the reason, and waited for when it is busy."""

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
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from data_prep.caption_check import read_answer
from data_prep.caption_lines import FAILED, OK, CaptionLine
from data_prep.caption_prompt import first_messages, next_messages
from data_prep.questions.base import Mismatch
from data_prep.scenes import Scene
from llava_pose.errors import InputError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

KEY_VARIABLE = "OPENAI_API_KEY"
_LONGEST_WAIT = 120.0  # seconds, whatever a server asks for
_IN_FLIGHT = 2  # tasks a thread, so that none waits for work and nothing piles up


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
    """Another picture's request has failed for good; this one was given up."""


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is dealt with.

    Attributes:
        base_url: such as http://localhost:8000/v1.
        timeout: seconds for one answer.
        tries: requests for one answer, before the server counts as not there.
        first_wait: seconds before the second try, doubled for each further one unless the server says how long.
        max_tokens, temperature: of an answer.
        send_images: whether pictures go with the text.
    """

    base_url: str
    model: str
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    max_tokens: int = 400
    temperature: float = 0.7
    send_images: bool = True


class Captioner:
    """Asks one server. Safe to use from several threads.

    Args:
        attempts: answers to one picture, before it is recorded as failed.

    Raises:
        InputError: the client is not installed.
    """

    def __init__(self, endpoint: Endpoint, *, attempts: int = 3) -> None:
        self._openai = openai = require_client()
        self._endpoint = endpoint
        self._attempts = attempts
        self._key = os.environ.get(KEY_VARIABLE, "")
        # a server of one's own wants no key, but the client wants one; retries are this class's own
        self._client = openai.OpenAI(
            base_url=endpoint.base_url, api_key=self._key or "none", timeout=endpoint.timeout, max_retries=0
        )
        self._stopped = threading.Event()
        self._failure: InputError | None = None

    def stop(self) -> None:
        """Give up what is being waited for, in all threads."""
        self._stopped.set()

    def close(self) -> None:
        self.stop()
        self._client.close()

    def caption(self, image: str, scene: Scene, picture: Path) -> CaptionLine:
        """The line of one picture, ok or failed.

        Raises:
            InputError: the server cannot be used: it refuses the key or the model, or does not answer after all tries.
            Stopped: :meth:`stop` was called.
        """
        first = first_messages(scene, picture if self._endpoint.send_images else None)
        messages, reason = first, ""
        prompt_tokens = completion_tokens = attempt = 0
        for attempt in range(1, self._attempts + 1):
            try:
                answer, usage = self._ask(messages)
            except self._openai.BadRequestError as error:  # of this picture: the next may be welcome
                reason = f"the server refused the request: {self._clean(error)}"
                break
            prompt_tokens += _count(usage, "prompt_tokens")
            completion_tokens += _count(usage, "completion_tokens")
            try:
                found = read_answer(answer, scene.objects)
            except Mismatch as error:
                reason = str(error)
                messages = next_messages(first, answer or "", reason)
                continue
            ids = tuple(record.id for record in found.objects)
            return CaptionLine(
                image, OK, found.caption, ids, self._endpoint.model, attempt, prompt_tokens, completion_tokens
            )
        return CaptionLine(
            image, FAILED, "", (), self._endpoint.model, attempt, prompt_tokens, completion_tokens, reason
        )

    def _ask(self, messages: Sequence[dict[str, Any]]) -> tuple[str | None, Any]:
        """One answer and its token counts, waited for as long as the endpoint's settings say."""
        api = self._openai
        for attempt in range(self._endpoint.tries):
            if self._stopped.is_set():
                raise self._failure or Stopped
            try:
                reply = self._client.chat.completions.create(
                    model=self._endpoint.model,
                    messages=list(messages),  # type: ignore[arg-type]
                    max_tokens=self._endpoint.max_tokens,
                    temperature=self._endpoint.temperature,
                )
                return _content(reply), getattr(reply, "usage", None)
            except api.APIStatusError as error:
                if error.status_code == 400:
                    raise
                if error.status_code != 429 and error.status_code not in (408, 409) and error.status_code < 500:
                    raise self._unusable(error) from error
                trouble, delay = error, _retry_after(error.response.headers)
            except (api.APIConnectionError, ValueError) as error:  # timeouts are among them; a body that is no answer
                trouble, delay = error, None
            if attempt + 1 < self._endpoint.tries:
                self._wait(attempt, delay, trouble)
        raise self._unusable(trouble) from trouble

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


def _content(reply: Any) -> str | None:
    """The text of a reply; None where the model said nothing. The client passes on whatever a server sends.

    Raises:
        ValueError: it is no chat completion: a web page, an error with status 200, an answer of another kind.
    """
    choices = getattr(reply, "choices", ...)
    if choices == []:
        return None
    try:
        content = choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError("the reply is no chat completion") from error
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):  # some servers send it in parts
        content = "".join(str(part.get("text", "")) for part in content)
    if content is not None and not isinstance(content, str):
        raise ValueError("the reply is no chat completion: its content is no text")
    return None if content is None else content.encode("utf-8", "replace").decode("utf-8")  # half a letter is none


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
