"""Which recommenders there are, by the name that the command line and the reports use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.recommenders.base import Recommender
from models.recommenders.cl4srec import CL4SRec
from models.recommenders.gcegnn import GCEGNN
from models.recommenders.gru4rec import GRU4Rec
from models.recommenders.markov import MarkovChain
from models.recommenders.popularity import Popularity
from models.recommenders.sasrec import SASRec

# Trained by ``models.training.fit``.
TRAINED: Mapping[str, type[Recommender[Any]]] = MappingProxyType(
    {model.name: model for model in (SASRec, GRU4Rec, GCEGNN, CL4SRec)}
)
# Counted from the rows; no seed, no steps.
COUNTED: Mapping[str, type[Popularity] | type[MarkovChain]] = MappingProxyType(
    {Popularity.name: Popularity, MarkovChain.name: MarkovChain}
)
NAMES = (*TRAINED, *COUNTED)
