"""A conversion that is interrupted."""

import pytest

from demos.formats import transfer


@pytest.fixture
def interrupted(monkeypatch):
    """Convert as `transfer` does, and press Ctrl-C when one episode is there and the next is read."""

    def run(source, out, **options):
        read = source.episode

        def broken(index):
            if index == 1 and (out / "meta/info.json").exists():
                raise KeyboardInterrupt
            return read(index)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(source, "episode", broken)
            transfer(source, out, **options)

    return run
