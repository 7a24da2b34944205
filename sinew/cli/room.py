"""Where memory runs out: how many worlds there is room for, in one line."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sinew.errors import InputError, NoRoom

if TYPE_CHECKING:
    from sinew.protocols import VecEnv

TOLD = ("can't allocate memory", "Failed to allocate", "out of memory")
"""How torch and Warp say it where they have no error of its own for it."""
MANY, FEW = 4_096, 64
"""From so many worlds on it is reckoned first whether the host has room for them, from so many and three times that."""
Env = TypeVar("Env", bound="VecEnv")


def is_no_room(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, NoRoom | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


def fitting(make: Callable[[int], Env], wanted: int, device: str) -> Env:
    """`make(wanted)`; where there is no room for so many worlds, how many of a half, a quarter, … fit is found out and told.

    Args:
        make: number of worlds → worlds.
        wanted: how many.
        device: where they are to be, for the message.

    Raises:
        InputError: not so many fit; the largest number tried that does is named. On the host, which gives memory away before it has it,
            what so many would take is reckoned from a few before any is taken.
    """
    if device == "cpu" and wanted > MANY:
        _refuse_more_than_the_host_has(make, wanted)
    try:
        return make(wanted)
    except Exception as error:
        if not is_no_room(error):
            raise
    fits = wanted // 2
    while fits and not _fits(make, fits):
        fits //= 2
    raise NoRoom(
        f"{wanted} worlds do not fit on {device}{_free(device)}: "
        + (f"{fits} do, give --num-envs {fits}" if fits else "not even one does; free memory there, or use another device")
    ) from None


def _refuse_more_than_the_host_has(make: Callable[[int], Env], wanted: int) -> None:
    each, free = _bytes_a_world(make), available_bytes()
    if each * wanted > free:
        fits = int(free / each)
        raise NoRoom(
            f"{wanted} worlds do not fit on cpu: one takes {each / 1024:,.1f} KiB and {free / 2**30:.1f} GiB are free, "
            f"enough for {fits}; give fewer with --num-envs"
        )


def _bytes_a_world(make: Callable[[int], Env]) -> float:
    """What a world takes of the host's memory, less what the first ones take anyway: what NumPy says that it allocates, or what the process
    grows by, which counts Warp's arrays too.
    """
    held: list[Env] = []
    tracemalloc.start()
    try:
        marks = []
        for number in (1, FEW, 3 * FEW):  # what is loaded once is loaded with the first
            held.append(make(number))
            marks.append((tracemalloc.get_traced_memory()[0], _resident_bytes()))
    finally:
        tracemalloc.stop()
        for env in held:
            env.close()
    first, few, more = marks
    grown = [(more[i] - few[i]) - (few[i] - first[i]) for i in range(2)]  # less what every set of worlds has once
    return max(*grown, 1) / (2 * FEW)


def _resident_bytes() -> int:
    """Memory of this process, 0 where that is not told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available_bytes() -> int:
    """What the host has left, files that it keeps in memory for speed included; no end of it where the host does not tell."""
    try:
        told = Path("/proc/meminfo").read_text()
    except OSError:
        return sys.maxsize
    return 1024 * int(told.partition("MemAvailable:")[2].split()[0])


def _fits(make: Callable[[int], VecEnv], number: int) -> bool:
    try:
        make(number).close()
    except Exception as error:
        if not is_no_room(error):
            raise
        return False
    finally:
        _let_go()
    return True


def _let_go() -> None:
    """Give memory that nobody holds any more back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free(device: str) -> str:
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f" ({free / 2**30:.1f} of {total / 2**30:.1f} GiB are free)"


@contextmanager
def out_of_memory(num_envs: int, device: str) -> Iterator[None]:
    """Turns running out of memory while learning into one line.

    Raises:
        InputError: memory ran out; says what makes learning smaller.
    """
    try:
        yield
    except Exception as error:
        if not is_no_room(error) or isinstance(error, InputError):
            raise
        raise NoRoom(
            f"memory ran out on {device}{_free(device)} while learning in {num_envs} worlds: give --num-envs {max(1, num_envs // 2)}, or "
            "smaller --set batch_size and --set replay_steps; the last checkpoint is kept"
        ) from None
