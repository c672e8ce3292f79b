"""Captions from a real server: transformers' own ``serve``, without a network, with a tiny model that knows one answer."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.caption.command import CaptionConfig, caption
from data_prep.caption.prompt import first_messages
from data_prep.scene.scenes import make_scenes
from llava_pose.backbones.tiny import tiny_tokenizer
from tests.data_prep.made_scenes import make_prepared, make_records

ANSWER = json.dumps({"objects": [1], "caption": "Here stands a car <pose6D>."})
_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\n{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A language model that gives ANSWER to the prompt of a picture with one car, and rubbish to others."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder)
    tokenizer.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network = LlamaForCausalLM(config)
    record = make_records(1)[0]
    prompt = tokenizer.apply_chat_template(
        first_messages(make_scenes([record])[record.id], None), tokenize=True, return_dict=False
    )
    answer = [*tokenizer(ANSWER, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([[*prompt, *answer]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        loss = network(input_ids=ids, labels=labels).loss
        if loss < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    command = shutil.which("transformers", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("the command transformers is not installed beside this Python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [command, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            assert process.poll() is None, "transformers serve has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_captions_from_transformers_serve(model, server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    known, unknown = make_records(1)[0], make_records(2)[1]
    lines = {}
    for name, record in (("known", known), ("unknown", unknown)):
        prepared = make_prepared(tmp_path / name, [record])
        config = CaptionConfig(
            data=str(prepared),
            out=str(tmp_path / f"{name}.jsonl"),
            api_base=server,
            model=str(model),
            attempts=2,
            max_tokens=60,
            temperature=0.01,
            send_images=False,
        )
        caption(config)
        lines[name] = json.loads((tmp_path / f"{name}.jsonl").read_text())
    good, bad = lines["known"], lines["unknown"]
    assert (good["status"], good["caption"]) == ("ok", "Here stands a car <pose6D>.")
    assert (good["objects"], good["attempts"]) == ([known.id], 1)
    assert good["prompt_tokens"] > 100
    assert 5 < good["completion_tokens"] <= 60
    assert (bad["status"], bad["attempts"]) == ("failed", 2)
    assert bad["reason"]
