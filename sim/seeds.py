"""Seeds of the episodes that follow each other in one world."""


def next_seed(seed: int) -> int:
    """The seed of the episode that follows the episode of `seed` in the same world, whichever world that is."""
    return (seed * 6364136223846793005 + 1442695040888963407) % 2**63
