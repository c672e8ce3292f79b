"""Measure how fast llava-pose serve answers: requests a second and latencies at several numbers of clients and at one.

llava-pose serve --checkpoint runs/quickstart/checkpoint &
python scripts/benchmarks/serve.py --picture car.jpg --category car --out serve.json
"""

from __future__ import annotations

import base64
import json
import logging
import os
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_pose.utils.command import command
from llava_pose.utils.config import require
from llava_pose.utils.files import write_json

logger = logging.getLogger(__name__)


@dataclass
class ServeBenchmarkConfig:
    """Options of the benchmark."""

    picture: str | None = field(default=None, metadata={"help": "The picture that every request holds."})
    category: str = field(default="car", metadata={"help": "What it shows."})
    url: str = field(default="http://127.0.0.1:8000", metadata={"help": "Where the server is."})
    clients: list[int] = field(default_factory=lambda: [1, 4, 16], metadata={"help": "The numbers of clients."})
    requests: int = field(default=200, metadata={"help": "The requests of each number of clients."})
    out: str | None = field(default=None, metadata={"help": "The JSON file to write."})


def measure(config: ServeBenchmarkConfig) -> dict[str, Any]:
    """Return requests a second, and the 50th and 95th percentile of the seconds of one, by the number of clients."""
    picture = Path(require(config.picture, "--picture"))
    kind = "jpeg" if picture.suffix.lower() in (".jpg", ".jpeg") else picture.suffix[1:].lower()
    uri = f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    body = json.dumps({"images": [uri], "category": config.category}).encode()
    headers = {"Authorization": f"Bearer {os.environ.get('LLAVA_POSE_API_KEY', '')}"}

    def ask(_: int) -> float:
        began = time.perf_counter()
        with urllib.request.urlopen(
            urllib.request.Request(f"{config.url}/v1/pose", body, headers), timeout=600
        ) as answer:
            json.load(answer)
        return time.perf_counter() - began

    for number in range(5):  # the first are slow
        ask(number)
    results: dict[str, Any] = {}
    for clients in config.clients:
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = list(pool.map(ask, range(config.requests)))
        rate = config.requests / (time.perf_counter() - began)
        results[str(clients)] = {
            "requests_per_second": rate,
            "p50_seconds": float(np.percentile(seconds, 50)),
            "p95_seconds": float(np.percentile(seconds, 95)),
        }
        logger.info(
            "%d clients: %.1f requests a second, p50 %.3f s, p95 %.3f s",
            clients,
            rate,
            *np.percentile(seconds, [50, 95]),
        )
    if config.out is not None:
        write_json(config.out, results)
    return results


main = command(
    ServeBenchmarkConfig,
    measure,
    prog="serve.py",
    description="Measure a running llava-pose serve.",
    example="python scripts/benchmarks/serve.py --picture car.jpg --category car --out serve.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
