"""
The registry of recommenders, by the name that the command line and the reports use; loads no torch by itself.

A new recommender is a file in this folder and a line in ``RECOMMENDERS``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# trained: by ``models.training.loop.fit``, on any arm. multi-domain: likewise, on mixed rows only, and told which items
# belong to which domain. counted: from the rows; no seed, no steps, no hyper-parameters.
Kind = Literal["trained", "multi-domain", "counted"]


@dataclass(frozen=True)
class RecommenderEntry:
    """
    What is known of a recommender before it is loaded.

    Args:
        kind: how it comes to its scores.
        model: where its class is, as module:name.
        config: where the class of its hyper-parameters is; None for counted ones.
    """

    kind: Kind
    model: str
    config: str | None = None


RECOMMENDERS: Mapping[str, RecommenderEntry] = {
    "sasrec": RecommenderEntry(
        "trained", "models.recommenders.sasrec:SASRec", "models.recommenders.sasrec:SASRecConfig"
    ),
    "gru4rec": RecommenderEntry(
        "trained", "models.recommenders.gru4rec:GRU4Rec", "models.recommenders.gru4rec:GRU4RecConfig"
    ),
    "gcegnn": RecommenderEntry(
        "trained", "models.recommenders.gcegnn:GCEGNN", "models.recommenders.gcegnn:GCEGNNConfig"
    ),
    "cl4srec": RecommenderEntry(
        "trained", "models.recommenders.cl4srec:CL4SRec", "models.recommenders.cl4srec:CL4SRecConfig"
    ),
    "abxi": RecommenderEntry("multi-domain", "models.recommenders.abxi:ABXI", "models.recommenders.abxi:ABXIConfig"),
    "cgrec": RecommenderEntry(
        "multi-domain", "models.recommenders.cgrec:CGRec", "models.recommenders.cgrec:CGRecConfig"
    ),
    "syncrec": RecommenderEntry(
        "multi-domain", "models.recommenders.syncrec:SyNCRec", "models.recommenders.syncrec:SyNCRecConfig"
    ),
    "popularity": RecommenderEntry("counted", "models.recommenders.popularity:Popularity"),
    "markov": RecommenderEntry("counted", "models.recommenders.markov:MarkovChain"),
}


class RegisteredClasses(Mapping[str, Any]):
    """
    Classes of the registered recommenders of some kinds, by name; a class is imported when it is asked for.

    Args:
        part: the models, or their configurations.
        kinds: of which recommenders.
    """

    def __init__(self, part: Literal["model", "config"], *kinds: Kind) -> None:
        self._part = part
        self._kinds = kinds

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return pkgutil.resolve_name(getattr(RECOMMENDERS[name], self._part))

    def __contains__(self, name: object) -> bool:
        return name in RECOMMENDERS and RECOMMENDERS[str(name)].kind in self._kinds

    def __iter__(self) -> Iterator[str]:
        return (name for name in RECOMMENDERS if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


TRAINED = RegisteredClasses("model", "trained")
MULTI_DOMAIN = RegisteredClasses("model", "multi-domain")
COUNTED = RegisteredClasses("model", "counted")
CONFIGURATIONS = RegisteredClasses("config", "trained", "multi-domain")
