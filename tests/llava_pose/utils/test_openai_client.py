"""The client that captions and API models share: its options in both commands, and answers that models have thought about."""

from __future__ import annotations

import dataclasses
import json

import pytest

from data_prep.caption.command import CaptionConfig
from data_prep.caption.command import main as caption_main
from eval.systems.vlm_api import VlmApiConfig
from eval.systems.vlm_api import main as vlm_main
from llava_pose.utils.config import fill_config
from llava_pose.utils.openai_client import BadAnswer, ServedModel, ServerOptions
from tests.misbehaving import Script, serving

OPTIONS = (
    *("--api-base", "--model", "--concurrency", "--attempts", "--tries", "--timeout", "--max-tokens", "--token-limit"),
    *("--temperature", "--price-in", "--price-out", "--retry-failed", "--dry-run"),
)


def test_both_commands_have_the_same_options_of_a_server(capsys) -> None:
    assert tuple(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ServerOptions)) == OPTIONS
    for main in (caption_main, vlm_main):
        with pytest.raises(SystemExit):
            main(["--help"])
        shown = capsys.readouterr().out
        assert all(f"\n  {option} " in shown for option in OPTIONS)


@pytest.mark.parametrize("kind", [CaptionConfig, VlmApiConfig])
def test_an_option_is_named_alike_in_yaml_and_on_the_command_line(kind: type, tmp_path, capsys) -> None:
    values = {"data": "prepared", "price_in": 5, "price_out": 15.0, "timeout": 3}
    config = fill_config(kind, values, source="test")
    assert (config.price_in, config.price_out, config.timeout) == (5.0, 15.0, 3.0)
    main = caption_main if kind is CaptionConfig else vlm_main
    for option in ("--price_in", "--price-in"):
        assert main(["--data", str(tmp_path), option, "-1"]) == 2
        assert "error: --price-in: must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    ['<think>It is {"a": 2}, or not.\n\nWait.</think>\n\n{"a": 1}', '<thinking>hm</thinking>{"a": 1}', '{"a": 1}'],
)
def test_what_a_model_has_thought_is_not_its_answer(answer: str) -> None:
    def read(text: str | None) -> int:
        try:
            return json.loads(text or "")["a"]
        except ValueError as error:
            raise BadAnswer("no JSON") from error

    with serving(Script(lambda body: answer)) as script:
        model = ServedModel(ServerOptions(api_base=script.url, model="m"))
        reply = model.ask([{"role": "user", "content": "?"}], read)
        model.close()
    assert (reply.value, reply.attempts) == (1, 1)
