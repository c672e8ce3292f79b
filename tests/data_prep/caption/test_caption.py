"""``llava-pose caption``: the grammar, and models behind a server that misbehaves in every way."""

from __future__ import annotations

import base64
import email.utils
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data_prep.caption.command import CaptionConfig, caption, main
from data_prep.caption.lines import read_captions
from llava_pose.errors import InputError
from llava_pose.utils.openai_client import map_threads
from tests.data_prep.made_scenes import make_prepared, make_records
from tests.misbehaving import GOOD, Script, kill_at_line, serving


@pytest.fixture
def prepared(tmp_path) -> Path:
    return make_prepared(tmp_path / "prepared", make_records(6))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The grammar


def test_the_grammar_writes_a_line_for_each_picture(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "captions.jsonl"
    assert main(["--data", str(prepared), "--out", str(out)]) == 0
    lines = lines_of(out)
    records = {record.id: record for record in make_records(6)}
    assert [line["image"] for line in lines] == sorted({f"train/{r.file_name}" for r in records.values()})
    for line in lines:
        assert (line["status"], line["writer"]) == ("ok", "grammar")
        assert line["caption"].count("<pose6D>") == len(line["objects"]) >= 1
        assert {f"train/{records[name].file_name}" for name in line["objects"]} == {line["image"]}
    assert f"6 captions are in {out}, 0 pictures failed" in caplog.messages[-2]
    assert "next: llava-pose instruct" in caplog.messages[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "captions.jsonl",
        "captions.jsonl.settings.yaml",
        "captions_summary.json",
        "prepared",
    ]


def test_a_caption_depends_on_the_seed_and_the_picture_alone(prepared, tmp_path):
    texts = {}
    for seed in (0, 1):
        out = tmp_path / f"{seed}.jsonl"
        caption(CaptionConfig(data=str(prepared), out=str(out), seed=seed))
        texts[seed] = out.read_bytes()
    assert texts[0] != texts[1]
    few = make_prepared(tmp_path / "few", make_records(6)[:3])
    caption(CaptionConfig(data=str(few), out=str(tmp_path / "few.jsonl")))
    assert (tmp_path / "few.jsonl").read_bytes() in texts[0]


def test_two_splits_share_a_file_and_other_settings_do_not(prepared, tmp_path):
    out = tmp_path / "captions.jsonl"
    make_prepared(prepared, make_records(2, seed=9), "val")
    for split in ("train", "val"):
        caption(CaptionConfig(data=str(prepared), out=str(out), split=split))
    assert Counter(line["image"].split("/")[0] for line in lines_of(out)) == {"train": 6, "val": 2}
    with pytest.raises(InputError, match="was begun with seed 0, not 3; choose another --out"):
        caption(CaptionConfig(data=str(prepared), out=str(out), seed=3))


def test_a_recipe_beside_the_captions_and_captions_of_another_ending_are_left_alone(prepared, tmp_path):
    recipe = tmp_path / "captions.yaml"
    recipe.write_text("seed: 7\n")
    for seed, name in enumerate(("captions.jsonl", "captions.txt", "captions")):
        for _ in range(2):
            caption(CaptionConfig(data=str(prepared), out=str(tmp_path / name), seed=seed))
    assert recipe.read_text() == "seed: 7\n"


def test_a_torn_line_is_written_again(prepared, tmp_path):
    out = tmp_path / "captions.jsonl"
    caption(CaptionConfig(data=str(prepared), out=str(out)))
    whole = out.read_bytes()
    out.write_bytes(whole[:-40])
    caption(CaptionConfig(data=str(prepared), out=str(out)))
    assert out.read_bytes() == whole


# A model behind a server


def good_answer(body: dict) -> str:
    """Names every object of the list."""
    text = next(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")
    names = re.findall(r"^(\d+)\. (an? .*), to be called", text, re.MULTILINE)
    seen: Counter[str] = Counter()
    parts = []
    for _, name in names:
        parts.append(f"{name if not seen[name] else 'another ' + name.split(' ', 1)[1]} <pose6D>")
        seen[name] += 1
    return json.dumps(
        {"objects": [int(number) for number, _ in names], "caption": f"Here stand {' and '.join(parts)}."}
    )


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Script(good_answer)) as script:
        yield script


def ask(prepared: Path, script: Script, out: Path | None = None, **options) -> list[dict]:
    out = out or prepared.parent / "captions.jsonl"
    values = {"concurrency": 1, "timeout": 30.0, "api_base": script.url, "model": "tester"}
    caption(CaptionConfig(data=str(prepared), out=str(out), **{**values, **options}))
    return lines_of(out)


def test_a_model_is_sent_picture_and_annotations(prepared, server):
    lines = ask(prepared, server)
    assert len(server.requests) == 6
    _, _headers, body = server.requests[0]
    assert body["model"] == "tester"
    text, image = body["messages"][1]["content"]
    assert "box [" in text["text"]
    assert "azimuth" in text["text"]
    kind, data = image["image_url"]["url"].split(";base64,")
    assert kind == "data:image/jpeg"
    assert base64.b64decode(data)[:2] == b"\xff\xd8"
    assert all(line["status"] == "ok" and line["attempts"] == 1 for line in lines)
    summary = json.loads((prepared.parent / "captions_summary.json").read_text())
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (600, 120)


def test_costs_are_counted(prepared, server, caplog):
    caplog.set_level("INFO")
    ask(prepared, server, price_in=5.0, price_out=15.0)
    assert "600 tokens sent and 120 received, cost 0.0048" in caplog.messages[-2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("A car <pose6D>.", "not one JSON object"),
        ("", "the answer is empty"),
        (None, "the answer is empty"),
        ('{"objects": [1], "caption": "A car <pose6D> and a car <pose6D>."}', "has 2 <pose6D>, but declares 1"),
        (
            '{"objects": [1], "caption": "A car <pose6D> beside a zebra and a piano."}',
            "'piano' is not among the objects",
        ),
        ('{"objects": [1], "caption": "A car <pose6D>, turned by 40°."}', "an angle of its own"),
        ('{"objects": [7], "caption": "A car <pose6D>."}', "there is no object 7"),
        ("[" * 100_000, "not one JSON object"),
        (r'{"objects": [1], "caption": "A \ud83d car <pose6D>."}', "holds '\\ud83d', which is no text"),
        (r'{"objects": [1], "caption": "A car <pose6D>.\u0000"}', "holds '\\x00', which is no text"),
    ],
)
def test_a_bad_answer_is_asked_again_with_the_reason(tmp_path, server, bad, reason):
    records = [r for r in make_records(1) if r.category == "car"]
    prepared = make_prepared(tmp_path / "prepared", records)
    server.steps = [bad, GOOD]
    (line,) = ask(prepared, server)
    assert (line["status"], line["attempts"], line["prompt_tokens"]) == ("ok", 2, 200)
    again = server.requests[1][2]["messages"]
    assert reason in again[-1]["content"]
    assert again[-2]["content"] == (bad or "(nothing)")


def test_endless_bad_answers_are_recorded_as_failed(prepared, server):
    server.steps = ["no"] * 3
    lines = ask(prepared, server, attempts=3)
    failed = [line for line in lines if line["status"] == "failed"]
    assert len(failed) == 1
    assert len(lines) == 6
    assert (failed[0]["attempts"], failed[0]["caption"], failed[0]["objects"]) == (3, "", [])
    assert failed[0]["reason"] == "the answer is not one JSON object and nothing else"
    summary = json.loads((prepared.parent / "captions_summary.json").read_text())
    assert summary["failed_because"] == {failed[0]["reason"]: 1}
    # what failed stays so, until it is asked for again
    before = len(server.requests)
    ask(prepared, server)
    assert len(server.requests) == before
    assert all(line["status"] == "ok" for line in ask(prepared, server, retry_failed=True))
    assert len(server.requests) == before + 1


def a_reply(content, **changes) -> dict:
    """What a server sends whose programmer knew the API by hearsay."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, **changes}


@pytest.mark.parametrize("trouble", [500, 503, 429, 408, "cut", "no json"])
def test_trouble_passes(prepared, server, trouble):
    server.steps = [trouble, trouble]
    lines = ask(prepared, server)
    assert all(line["status"] == "ok" and line["attempts"] == 1 for line in lines)
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    "reply",
    [
        "html",
        {},
        {"error": {"message": "overloaded"}},
        a_reply("x", choices=None),
        a_reply("x", choices="none"),
        a_reply("x", choices=[{}]),
        a_reply("x", choices=[{"message": None}]),
        a_reply(7),
    ],
)
def test_a_reply_that_is_no_chat_completion_is_no_pictures_fault(prepared, server, reply):
    server.steps = [reply, reply]
    assert all(line["status"] == "ok" and line["attempts"] == 1 for line in ask(prepared, server))
    server.steps = [reply] * 3
    with pytest.raises(InputError, match=r"gave no answer .*the reply is no chat completion"):
        ask(prepared, server, prepared.parent / "b.jsonl", tries=3)


def test_odd_replies_that_can_be_read_are_read(tmp_path, server):
    prepared = make_prepared(tmp_path / "prepared", [r for r in make_records(1) if r.category == "car"])
    parts = [{"type": "thinking"}, {"type": "text", "text": '{"objects": [1], '}]
    parts.append({"type": "text", "text": '"caption": "A car <pose6D>."}'})
    half_a_letter = "\ud83d"
    server.steps = [
        a_reply("x", choices=[], usage="many"),
        a_reply(half_a_letter, usage={"prompt_tokens": "7"}),
        a_reply(parts, usage={"prompt_tokens": 3, "completion_tokens": None}),
    ]
    (line,) = ask(prepared, server)
    assert (line["status"], line["caption"], line["attempts"]) == ("ok", "A car <pose6D>.", 3)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 0)


def test_a_slow_answer_is_given_up_and_asked_for_again(prepared, server):
    server.steps = ["slow"]
    lines = ask(prepared, server, timeout=1.0)
    assert len(server.requests) >= 7
    assert all(line["status"] == "ok" for line in lines)


@pytest.mark.parametrize("as_date", [False, True])
def test_the_server_says_how_long_to_wait(prepared, server, as_date):
    value = email.utils.formatdate(time.time() + 3, usegmt=True) if as_date else "1.2"
    server.steps = [(429, {"Retry-After": value})]
    ask(prepared, server)
    waited = server.requests[1][0] - server.requests[0][0]
    assert waited >= (0.9 if as_date else 1.2), "without the header it is half a second at most"


def test_a_server_that_is_gone_stops_the_run_and_nothing_is_lost(prepared, server):
    out = prepared.parent / "captions.jsonl"
    server.steps = [GOOD, GOOD, *[500] * 3]
    with pytest.raises(
        InputError, match=r"gave no answer \(InternalServerError.*nothing is lost: .*same command again"
    ):
        ask(prepared, server, tries=3)
    assert len(lines_of(out)) == 2
    assert len(ask(prepared, server)) == 6
    assert len(server.requests) == 2 + 3 + 4, "what was there is not asked for again"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_at_once(prepared, server, status):
    server.steps = [status] * 20
    with pytest.raises(InputError, match="gave no answer"):
        ask(prepared, server)
    assert len(server.requests) == 1


def test_a_request_that_is_refused_is_one_pictures_matter(prepared, server):
    server.steps = [400]
    lines = ask(prepared, server)
    assert Counter(line["status"] for line in lines) == {"ok": 5, "failed": 1}
    assert "the server refused the request" in next(line["reason"] for line in lines if line["status"] == "failed")


def test_the_key_comes_from_the_environment_and_is_written_nowhere(prepared, server, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    caplog.set_level("DEBUG", logger="llava_pose")
    server.steps = [400, 500]  # their bodies hold the key
    ask(prepared, server)
    assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer sk-secret"}
    server.steps = [401]
    argv = ["--data", str(prepared), "--out", str(prepared.parent / "b.jsonl"), "--api-base", server.url]
    assert main([*argv, "--model", "tester"]) == 2
    written = "".join(path.read_text() for path in prepared.parent.glob("*.*") if path.is_file())
    said = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("data_prep", "llava_pose"))
    )
    captured = capsys.readouterr()
    assert "***" in written + captured.err
    assert "sk-secret" not in written + said + captured.out + captured.err


def test_no_more_requests_at_a_time_than_allowed(tmp_path, server):
    prepared = make_prepared(tmp_path / "prepared", make_records(24, most=1))
    server.delay = 0.05
    assert len(ask(prepared, server, concurrency=4)) == 24
    assert 2 <= server.most_at_once <= 4


def test_a_second_writer_is_refused(prepared, tmp_path):
    out = tmp_path / "captions.jsonl"
    seen = []

    def good(body: dict) -> str:
        with pytest.raises(InputError, match="another caption is writing there"):
            caption(CaptionConfig(data=str(prepared), out=str(out)))
        seen.append(1)
        return good_answer(body)

    with serving(Script(good)) as script:
        ask(prepared, script, out)
    assert len(seen) == 6


def test_a_killed_run_loses_and_doubles_nothing(tmp_path, server):
    prepared = make_prepared(tmp_path / "prepared", make_records(20, most=1))
    out = tmp_path / "captions.jsonl"
    server.delay = 0.1
    argv = ["--data", str(prepared), "--out", str(out), "--api-base", server.url, "--model", "tester"]
    command = [sys.executable, "-m", "data_prep.caption.command", *argv, "--concurrency", "2"]
    kill_at_line(command, out, 4)
    done = out.read_bytes().count(b"\n")
    assert 4 <= done < 20
    before = len(server.requests)
    server.delay = 0.0
    assert main([*argv, "--concurrency", "2"]) == 0
    assert len(server.requests) - before == 20 - done
    lines = lines_of(out)
    assert len({line["image"] for line in lines}) == len(lines) == 20
    assert len(read_captions(out)) == 20


def test_a_dry_run_prints_the_prompts_and_sends_nothing(prepared, tmp_path, server, capsys):
    argv = ["--data", str(prepared), "--api-base", server.url, "--model", "tester", "--dry-run", "--most", "2"]
    assert main(argv) == 0
    prompts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(prompts) == 2
    assert prompts[0]["image"].startswith("train/")
    assert "to be called" in prompts[0]["messages"][1]["content"][0]["text"]
    assert server.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"api_base": "http://x"}, "give both, or neither"),
        ({"model": "m"}, "give both, or neither"),
        ({"concurrency": 0}, "--concurrency: must be over 0"),
        ({"attempts": 0}, "--attempts: must be over 0"),
        ({"price_in": -1.0}, "--price-in: must be at least 0"),
        ({"price_out": float("inf")}, "--price-out: must be a finite number"),
        ({"timeout": 0.0}, "--timeout: must be over 0"),
        ({"most": -1}, "--most: must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_named(options, match):
    with pytest.raises(InputError, match=match):
        CaptionConfig(data="prepared", **options)


def test_an_error_ends_what_is_in_flight():
    stopped = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_threads(work, iter(range(100)), threads=2, stop=lambda: stopped.append(1)))
    assert stopped == [1]
    assert sorted(map_threads(work, iter([0, 1, 2]), threads=2, stop=lambda: None)) == [0, 1, 2]
