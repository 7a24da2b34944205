"""Where memory runs out, the largest number of worlds that fits is found and told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinew.cli import room
from sinew.cli.room import fitting, out_of_memory
from sinew.errors import InputError, NoRoom


class Room:
    """Worlds up to a limit."""

    def __init__(self, limit: int, error: BaseException) -> None:
        self.limit, self.error = limit, error
        self.tried: list[int] = []
        self.closed = 0

    def make(self, number: int) -> Room:
        self.tried.append(number)
        if number > self.limit:
            raise self.error
        return self

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    "error",
    [
        NoRoom("800 worlds do not fit"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Failed to allocate 9 bytes"),
    ],
)
def test_the_largest_that_fits_is_found_by_halving(error: BaseException) -> None:
    limited = Room(120, error)
    assert fitting(limited.make, 100, "cuda") is limited  # type: ignore[type-var,comparison-overlap]
    with pytest.raises(NoRoom, match=r"^800 worlds do not fit on cuda: 100 do, give --num-envs 100$"):
        fitting(limited.make, 800, "cuda")  # type: ignore[type-var]
    assert limited.tried == [100, 800, 400, 200, 100] and limited.closed == 1
    with pytest.raises(NoRoom, match="not even one does"):
        fitting(Room(0, error).make, 8, "cuda")  # type: ignore[type-var]


def test_memory_that_really_runs_out() -> None:
    class Held:
        def __init__(self, number: int) -> None:
            self.held = torch.empty(number**8, dtype=torch.uint8)  # 64 ask for 2**48 bytes, more than any machine gives

        def close(self) -> None:
            del self.held

    with pytest.raises(NoRoom, match=r"64 worlds do not fit on cpu: (8|16|32) do"):
        fitting(Held, 64, "cpu")  # type: ignore[type-var]
    with (
        pytest.raises(InputError, match=r"memory ran out on cpu while learning in 64 worlds: give --num-envs 32"),
        out_of_memory(64, "cpu"),
    ):
        Held(64)


def test_other_errors_are_told_as_they_are() -> None:
    room = Room(1, ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        fitting(room.make, 2, "cpu")  # type: ignore[type-var]
    assert room.tried == [2]
    with pytest.raises(ValueError, match="mine"), out_of_memory(2, "cpu"):
        raise ValueError("mine")
    with pytest.raises(InputError, match=r"^a reward is not finite$"), out_of_memory(2, "cpu"):
        raise InputError("a reward is not finite")


def test_the_host_is_reckoned_with_before_it_gives_away_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """800 KiB a world: 5,000 are 3.8 GiB."""

    class Held:
        def __init__(self, number: int) -> None:
            made.append(number)
            self.held = np.zeros((number, 100 * 1024))

        def close(self) -> None:
            del self.held

    made: list[int] = []
    monkeypatch.setattr(room, "available_bytes", lambda: 2**30)
    with pytest.raises(
        NoRoom, match=r"^5000 worlds do not fit on cpu: one takes 800\.\d KiB and 1\.0 GiB are free, enough for 13\d\d; give fewer"
    ):
        fitting(Held, 5_000, "cpu")  # type: ignore[type-var]
    assert max(made) == 192
