"""The processes of one run work together by these functions. In a run of one process, nothing here waits or communicates.

Commands import this before they know whether they are only asked for ``--help``: torch and accelerate are imported by the
functions that need them.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from llava_pose.errors import InputError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Place:
    """The place of this process among those that run together.

    Attributes:
        node, nodes: number of its machine, and of how many.
        index, count: its number among the processes of its machine, and how many they are.
    """

    node: int = 0
    nodes: int = 1
    index: int = 0
    count: int = 1


def several_processes() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_processes() -> None:
    """Join the other processes where torchrun or accelerate started several; TrainingArguments do so by themselves."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())
        leave_at_exit()


def leave_at_exit() -> None:
    """Leave the process group, where there is one, as the program ends. Whoever joins one must ask for it: a thread of the
    group that still runs then aborts the process now and then, and the launcher takes a run that has ended for a failed one.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    _free_shared_memory()


def _free_shared_memory() -> None:
    """Take the name off the memory in which DeepSpeed's processes of one machine without GPUs exchange gradients: it would
    stay until the machine is started anew, 66 MiB for each process of each run (shm_initialize in DeepSpeed's shm.cpp).
    """
    if "deepspeed" in sys.modules and os.path.isdir("/dev/shm"):
        run = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK")]
        with suppress(FileNotFoundError):
            os.unlink("_".join(["/dev/shm/deepspeed_allreduce_buffer", str(os.getuid()), *run]))


def is_first_process() -> bool:
    """Say whether this process is the one that writes what all have done."""
    return _rank() == 0


def process_count() -> int:
    if not several_processes():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def _rank() -> int:
    if not several_processes():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def map_over_processes(
    work: Callable[[T], ResultT], items: Sequence[T], *, description: str | None = None
) -> list[ResultT]:
    """The results of ``work`` for all items, in their order, on every process; the processes take turns at the items.

    An item is done whole by one process, so that the results are the same however many there are. Waits for all.

    Args:
        description: of a progress bar; none is shown without it.
    """
    rank, count = _rank(), process_count()
    mine = range(rank, len(items), count)
    shown = tqdm(mine, desc=description, unit="batch", disable=description is None or rank > 0)
    results = [(index, work(items[index])) for index in shown]
    everything = [pair for pairs in gathered(results) for pair in pairs]
    return [result for _, result in sorted(everything, key=lambda pair: pair[0])]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, on every process. Waits for all."""
    if not several_processes():
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def join_deepspeed() -> None:
    """Tell DeepSpeed of the process group that is there already.

    On CPUs accelerate starts it by torch alone; ZeRO-3 would then load a model as if there were one process.
    """
    if several_processes():
        import deepspeed
        import torch.distributed as dist

        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def broadcast(value: T) -> T:
    """Process 0's value, on every process. Waits for all."""
    if not several_processes():
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


@contextmanager
def first_process_holds(held: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context, such as the ownership of a folder, on process 0 alone.

    Raises:
        InputError: entering it raised one; it is raised on every process, so that none waits for another.
    """
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(held)

        from_first_process(enter)
        yield


def from_first_process(work: Callable[[], ResultT]) -> ResultT:
    """Return on every process what ``work`` gives on process 0, which alone does it. Waits for all.

    Raises:
        InputError: ``work`` raised one; it is raised on every process, so that none waits for another.
    """
    result, refusal = None, None
    if is_first_process():
        try:
            result = work()
        except InputError as error:
            refusal = error
    result, refusal = broadcast((result, refusal))
    if refusal is not None:
        raise refusal
    return result  # type: ignore[return-value]


def this_place() -> Place:
    """Machines are told apart by host name. Waits for all."""
    hosts = gathered(socket.gethostname())
    rank = _rank()
    machines = sorted(set(hosts), key=hosts.index)
    here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    return Place(machines.index(hosts[rank]), len(machines), here.index(rank), len(here))


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all processes, in place. Waits for all."""
    if several_processes():
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def gathered_parameters(weights: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """While it lasts, every process can read these weights whole, also where ZeRO-3 has sharded them."""
    sharded = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=None)
