"""`llava-pose merge --push-to`: to a server on this machine that speaks as much of the hub's protocol as an upload needs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.llava_pose.backbones.test_merge import save_adapter

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """Keeps what is committed, and refuses commits if told so."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, dict[str, object]] = {}
        self.files: dict[str, bytes] = {}
        self.takes_commits = True


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"error": "who are you?"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self.server.repositories[f"me/{asked['name']}"] = asked
            name = f"me/{asked['name']}"
            self._say(200, {"url": f"http://127.0.0.1:{self.server.server_port}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._say(200, {"files": files})
        elif path.endswith("/commit/main") and self.server.takes_commits:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = f"http://127.0.0.1:{self.server.server_port}/me/posed/commit/1"
            self._say(200, {"commitUrl": commit, "commitOid": "1", "success": True})
        else:
            self._say(403, {"error": "no right to write"})

    def do_GET(self) -> None:
        self._say(404, {"error": "not there"})

    def _say(self, status: int, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def merge_and_push(hub: Hub, adapter: Path, out: Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    words = ["merge", "--checkpoint", str(adapter), "--out", str(out), "--push-to", "me/posed"]
    network = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "llava_pose.cli", *words],
        env={**os.environ, **network, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
    )


def test_a_merged_checkpoint_goes_to_a_private_repository_without_the_paths_of_this_machine(hub, base, tmp_path):
    done = merge_and_push(hub, save_adapter(base, tmp_path / "adapter"), out := tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert hub.repositories["me/posed"]["visibility"] == "private"
    assert hub.files == {file.name: file.read_bytes() for file in out.iterdir() if file.name != "merge.yaml"}
    assert {"model.safetensors", "pose_head.safetensors", "README.md"} <= hub.files.keys()
    assert b'llava_pose.pipeline("me/posed")' in hub.files["README.md"]


@pytest.mark.slow
def test_what_the_hub_does_not_take_is_one_sentence(hub, base, tmp_path):
    """Before the work, if it can be known by then; and no work is lost after it."""
    adapter = save_adapter(base, tmp_path / "adapter")
    refused = merge_and_push(hub, adapter, tmp_path / "merged", token="hf_of_another")
    assert refused.returncode == 2
    assert "--push-to me/posed: the hub does not take it; log in with `hf auth login`" in refused.stderr
    assert not (tmp_path / "merged").exists()
    hub.takes_commits = False
    failed = merge_and_push(hub, adapter, tmp_path / "merged")
    assert failed.returncode == 1
    assert f"error: {tmp_path / 'merged'} is whole, but --push-to me/posed: the upload failed" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()
