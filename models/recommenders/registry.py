"""Which recommenders there are, by the name that the command line and the reports use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.recommenders.abxi import ABXI, ABXIConfig
from models.recommenders.cgrec import CGRec, CGRecConfig
from models.recommenders.cl4srec import CL4SRec, CL4SRecConfig
from models.recommenders.gcegnn import GCEGNN, GCEGNNConfig
from models.recommenders.gru4rec import GRU4Rec, GRU4RecConfig
from models.recommenders.markov import MarkovChain
from models.recommenders.multidomain import MultiDomainRecommender
from models.recommenders.popularity import Popularity
from models.recommenders.recommender import SessionRecommender
from models.recommenders.sasrec import SASRec, SASRecConfig
from models.recommenders.syncrec import SyNCRec, SyNCRecConfig

# Trained by ``models.training.loop.fit``, on any arm; each with the class of its hyper-parameters.
_TRAINED: tuple[tuple[type[SessionRecommender[Any]], type[Any]], ...] = (
    (SASRec, SASRecConfig),
    (GRU4Rec, GRU4RecConfig),
    (GCEGNN, GCEGNNConfig),
    (CL4SRec, CL4SRecConfig),
)
# Trained likewise, on mixed rows only, and told which items belong to which domain.
_MULTI_DOMAIN: tuple[tuple[type[MultiDomainRecommender], type[Any]], ...] = (
    (ABXI, ABXIConfig),
    (CGRec, CGRecConfig),
    (SyNCRec, SyNCRecConfig),
)
# Counted from the rows; no seed, no steps, no hyper-parameters.
_COUNTED: tuple[type[Popularity] | type[MarkovChain], ...] = (Popularity, MarkovChain)

TRAINED = MappingProxyType({model.name: model for model, _ in _TRAINED})
MULTI_DOMAIN = MappingProxyType({model.name: model for model, _ in _MULTI_DOMAIN})
COUNTED = MappingProxyType({model.name: model for model in _COUNTED})
CONFIGURATIONS: Mapping[str, type[Any]] = MappingProxyType(
    {model.name: config for model, config in (*_TRAINED, *_MULTI_DOMAIN)}
)
NAMES = (*TRAINED, *MULTI_DOMAIN, *COUNTED)
