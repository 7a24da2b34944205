"""Instructions to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sinew.errors import InputError, MissingDependency
from sinew.specs import TASK


class Tokenizer:
    """Instructions to token numbers, from the text of a tokenizer.json.

    Args:
        text: what `Tokenizer.text` gave, or the tokenizer.json of a backbone.

    Raises:
        MissingDependency: the tokenizers package is not installed.
        InputError: the text is not that of a tokenizer.
    """

    def __init__(self, text: str) -> None:
        try:
            self._tokenizer = _library().Tokenizer.from_str(text)
        except MissingDependency:
            raise
        except Exception as e:  # the library raises bare exceptions
            raise InputError(f"the text is not a tokenizer.json: {str(e).splitlines()[0]}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.text = text
        self._known: dict[str, list[int]] = {}

    @property
    def size(self) -> int:
        """Number of tokens that exist."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, tasks: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Instructions → token numbers (B, L) int64, padded at the end with 0, and which of them are there, (B, L) bool."""
        rows = [self._encode(task) for task in tasks]
        length = max(1, max(len(row) for row in rows))
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        there = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], device=device)
        return tokens, there

    def _encode(self, task: str) -> list[int]:
        if task not in self._known:
            self._known[task] = self._tokenizer.encode(task + "\n").ids
        return self._known[task]


def byte_pair_tokenizer(instructions: Sequence[str], size: int = 512) -> str:
    """The text of a tokenizer made on the spot: every byte is a token, and so are frequent parts of the instructions.

    Any text can be told with it, in one token per word where the words are those of `instructions`.

    Args:
        instructions: sentences it is fitted to; may be empty.
        size: largest number of tokens.
    """
    library = _library()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, special_tokens=["<pad>"])
    made.train_from_iterator([f"{text}\n" for text in instructions], trainer)
    return made.to_str()


def instructions_of(obs: Any, rows: int, known: Sequence[str]) -> list[str]:
    """The instructions obs["task"]; a policy that knows exactly one follows it without being told.

    Args:
        obs: an observation or a training batch.
        rows: how many there must be, B.
        known: the instructions that the policy was made for.

    Raises:
        InputError: there are none, or not one string per observation.
    """
    tasks = obs.get(TASK)
    if tasks is None:
        if len(known) == 1:
            return [known[0]] * rows
        raise InputError(f'a language policy needs the instruction: the observation has no "{TASK}", a list of {rows} strings '
                         "(ChunkExecutor(policy, n, instruction=...), sinew eval --instruction)")
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    if len(tasks) != rows or not all(isinstance(task, str) for task in tasks):
        raise InputError(f'"{TASK}" holds {len(tasks)} entries of {type(tasks[0]).__name__ if tasks else "nothing"}, '
                         f"expected a list of {rows} strings, one per observation")
    return tasks


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise MissingDependency("a vision-language-action policy needs tokenizers: pip install 'sinew[vla]'") from None
    return tokenizers
