"""What the processes of one training run do together. In a run of one process, nothing here waits or communicates."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        node, nodes: number of its machine, and of how many.
        index, count: its number among the processes of its machine, and how many they are.
    """

    node: int = 0
    nodes: int = 1
    index: int = 0
    count: int = 1


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_deepspeed() -> None:
    """Tell DeepSpeed of the process group that is there already.

    On CPUs accelerate starts it by torch alone; ZeRO-3 would then load a model as if there were one process.
    """
    if several_processes():
        import deepspeed

        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def agreed(value: T) -> T:
    """Process 0's value, on every process. Waits for all."""
    return broadcast_object_list([value])[0] if several_processes() else value


def this_place() -> Place:
    """Machines are told apart by host name. Waits for all."""
    if not several_processes():
        return Place()
    hosts = gather_object([socket.gethostname()])
    rank = dist.get_rank()
    machines = sorted(set(hosts), key=hosts.index)
    here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    return Place(machines.index(hosts[rank]), len(machines), here.index(rank), len(here))


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all processes, in place. Waits for all."""
    if several_processes():
        dist.all_reduce(values)
    return values


def whole_weights(weights: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """While it lasts, every process can read these weights whole, also where ZeRO-3 has sharded them."""
    sharded = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=None)
