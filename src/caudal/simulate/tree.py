"""One seeded random tree: every part of a simulation draws from a branch of its own.

A branch's values depend on the seed and the branch's path only, never on who drew first elsewhere. So a
change in one part (one more fault, one more draw) leaves the luck of all other parts as it was.
"""

from __future__ import annotations

import hashlib
import random


class Tree:
    """A node of the tree: a source of chance, and branches by name."""

    def __init__(self, seed: int, path: str = "") -> None:
        self.seed = seed
        self.path = path

    def branch(self, name: str) -> Tree:
        """The branch of that name: the same one however often, and in whatever order, it is asked for."""
        return Tree(self.seed, f"{self.path}/{name}")

    def chance(self) -> random.Random:
        """A fresh source for this branch, at its beginning."""
        digest = hashlib.sha256(f"{self.seed}{self.path}".encode()).digest()
        return random.Random(int.from_bytes(digest, "big"))
