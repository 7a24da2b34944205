"""Where memory runs out: how many worlds there is room for, in one line."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sinew.errors import InputError, NoRoom

if TYPE_CHECKING:
    from sinew.protocols import VecEnv

TOLD = ("can't allocate memory", "Failed to allocate", "out of memory")
"""How torch and Warp say it where they have no error of its own for it."""
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
        InputError: not so many fit; the largest number tried that does is named.
    """
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
