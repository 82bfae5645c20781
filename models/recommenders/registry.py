"""Which recommenders there are, by the name that the command line and the reports use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.recommenders.abxi import ABXI
from models.recommenders.cgrec import CGRec
from models.recommenders.cl4srec import CL4SRec
from models.recommenders.gcegnn import GCEGNN
from models.recommenders.gru4rec import GRU4Rec
from models.recommenders.markov import MarkovChain
from models.recommenders.multidomain import MultiDomainRecommender
from models.recommenders.popularity import Popularity
from models.recommenders.recommender import SessionRecommender
from models.recommenders.sasrec import SASRec
from models.recommenders.syncrec import SyNCRec

# Trained by ``models.training.loop.fit``, on any arm.
TRAINED: Mapping[str, type[SessionRecommender[Any]]] = MappingProxyType(
    {model.name: model for model in (SASRec, GRU4Rec, GCEGNN, CL4SRec)}
)
# Trained likewise, on mixed rows only, and told which items belong to which domain.
MULTI_DOMAIN: Mapping[str, type[MultiDomainRecommender]] = MappingProxyType(
    {model.name: model for model in (ABXI, CGRec, SyNCRec)}
)
# Counted from the rows; no seed, no steps.
COUNTED: Mapping[str, type[Popularity] | type[MarkovChain]] = MappingProxyType(
    {Popularity.name: Popularity, MarkovChain.name: MarkovChain}
)
NAMES = (*TRAINED, *MULTI_DOMAIN, *COUNTED)
