"""Who makes the parts of a composite: this process, or actors of a cluster (``ray_engine``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from models.bundle import Bundle
from models.composite.part_results import Part, PartMaker, PartRecipe


class Engine(Protocol):
    """Makes parts into the recipe's work folder; which engine it was cannot be seen in what they hold."""

    def make(self, recipe: PartRecipe, parts: Sequence[Part]) -> Iterator[int]:
        """
        Make *parts*; yields how many of their users are done by now, often enough for a reader to see it move.

        Raises:
            EngineError: the engine cannot start, or a part fails wherever it is made.
        """


class LocalEngine:
    """Nobody but this process, part by part."""

    def make(self, recipe: PartRecipe, parts: Sequence[Part]) -> Iterator[int]:
        """See ``Engine``; the recipe's bundle holds its networks."""
        assert isinstance(recipe.bundle, Bundle)
        maker, before = PartMaker(recipe, recipe.bundle), 0
        for part in parts:
            for done in maker.make(part):
                yield before + done
            before += len(part.users)
