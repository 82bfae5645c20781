"""
What regeneration does to a dataset: item frequencies, shares and lengths (figure 5), and the mapping (figure 4).

Four views are described: the original rows; the regenerated rows alone; the composite, which the paper plots; and the
duplicated control, because the composite holds the target items of nearly every user twice and so lies above the
original at every rank for that reason alone.

Shapes: I = items of the target domain, R = rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from models.composite.regenerated_rows import SHORTEST_ROW
from models.data.dataset import Dataset, Sequences
from models.data.period import period_of
from models.evaluation.arms import Composite, duplicate_rows, keep_domain
from models.evaluation.projection import principal_components, t_sne
from models.vocabulary import Vocabulary

# Segments of items by falling frequency: top tenth, next four tenths, last half.
SEGMENT_ENDS = (0.1, 0.5, 1.0)
SEGMENTS = ("top 10 %", "mid 40 %", "tail 50 %")
LONGEST_PLOTTED = 50
RANKS_PLOTTED = 1000
TIME_SPANS = 24
# Source items compared with all target items at once.
CORRESPONDENCE_ROWS = 1024


@dataclass(frozen=True)
class RowStatistics:
    """
    Frequencies, shares and lengths of one set of rows.

    Args:
        name: which rows.
        rows: R.
        interactions: items over all rows, the last included.
        frequencies: occurrences of the most frequent items, falling, at most 1,000.
        segment_shares: share of the interactions that falls on the top 10 %, mid 40 % and tail 50 % of all I items,
            ranked by these rows' own frequencies; items that never occur are counted in the tail.
        fixed_segment_shares: the same with the segments of the original rows.
        length_shares: share of rows of each length 0..50; longer ones count as 50.
        gini: of the frequencies over all I items, 0 (even) to 1.
        entropy: of the frequencies, in nats.
        coverage: share of the I items that occur.
    """

    name: str
    rows: int
    interactions: int
    frequencies: tuple[int, ...]
    segment_shares: tuple[float, ...]
    fixed_segment_shares: tuple[float, ...]
    length_shares: tuple[float, ...]
    gini: float
    entropy: float
    coverage: float


@dataclass(frozen=True)
class DomainReach:
    """
    When and by whom a domain was used, in the training rows: sequences can tell of one domain to another only where
    people and times meet.

    Args:
        domain: its name.
        users: with an item of it.
        interactions: items of it.
        first_date, last_date: of its items, ISO 8601; None where the log has no times.
        shared_users: of each domain, in the vocabulary's order, how many of *users* are there, too.
        by_time: its items in 24 equal spans of the time that all domains cover; none where the log has no times.
    """

    domain: str
    users: int
    interactions: int
    first_date: str | None
    last_date: str | None
    shared_users: tuple[int, ...]
    by_time: tuple[int, ...]


@dataclass(frozen=True)
class Correspondence:
    """
    The mapping of one source domain, judged in the base's item table by cosine.

    Args:
        source_domain: where the replaced items come from.
        mapped_items: source items that were replaced at least once.
        replacements: how often, in all.
        distinct_targets: different most-frequent targets.
        top_target_share: share of the mapped items whose most frequent target is the commonest one (a hub check).
        mean_cosine: of each mapped item with its most frequent target.
        mean_cosine_random: of random pairs of the two domains.
        median_percentile: of the target's cosine among all target items for its source; 50 is chance.
    """

    source_domain: str
    mapped_items: int
    replacements: int
    distinct_targets: int
    top_target_share: float
    mean_cosine: float
    mean_cosine_random: float
    median_percentile: float


@dataclass(frozen=True)
class ProjectedItems:
    """
    Figure 4: items of one source domain and of the target in two dimensions.

    Args:
        method: "pca" or "t-sne".
        source_domain: the source.
        source_points, target_points: (x, y) of sampled items.
        links: index pairs (source point, target point) of the most frequent mappings.
    """

    method: str
    source_domain: str
    source_points: tuple[tuple[float, float], ...]
    target_points: tuple[tuple[float, float], ...]
    links: tuple[tuple[int, int], ...]


def describe_composite(dataset: Dataset, target: str, composite: Composite) -> tuple[RowStatistics, ...]:
    """The four views described at the top, original first."""
    domain = dataset.vocabulary.token_range(target)
    rows = keep_domain(composite.rows, domain)
    original = rows.at(np.flatnonzero(~composite.regenerated))
    regenerated = rows.at(np.flatnonzero(composite.regenerated))
    views = {
        "original": original,
        "regenerated rows": regenerated,
        "composite": rows,
        "duplicated": keep_domain(duplicate_rows(composite), domain),
    }
    fixed_order = np.argsort(-_counts(original, len(domain)), kind="stable")
    return tuple(describe_rows(name, view, len(domain), fixed_order) for name, view in views.items())


def describe_rows(name: str, rows: Sequences, num_items: int, fixed_order_I: npt.NDArray[np.int64]) -> RowStatistics:
    """
    Describe *rows* over items 1..num_items.

    Args:
        fixed_order_I: item positions by falling frequency elsewhere, for ``fixed_segment_shares``.
    """
    counts_I = _counts(rows, num_items)
    falling_I = np.sort(counts_I)[::-1]
    total = max(1, int(counts_I.sum()))
    present = counts_I[counts_I > 0] / total
    lengths = np.bincount(np.minimum(rows.lengths, LONGEST_PLOTTED), minlength=LONGEST_PLOTTED + 1)
    return RowStatistics(
        name=name,
        rows=len(rows),
        interactions=int(counts_I.sum()),
        frequencies=tuple(falling_I[:RANKS_PLOTTED].tolist()),
        segment_shares=_segment_shares(falling_I),
        fixed_segment_shares=_segment_shares(counts_I[fixed_order_I]),
        length_shares=tuple((lengths / max(1, len(rows))).tolist()),
        gini=gini(counts_I),
        entropy=float(-(present * np.log(present)).sum()),
        coverage=len(present) / num_items,
    )


def describe_reach(dataset: Dataset) -> tuple[DomainReach, ...]:
    """People and times of every domain in the training rows, in the vocabulary's order."""
    train, names = dataset.train, dataset.vocabulary.domains
    domains_N = dataset.vocabulary.domain_of_tokens(train.token_ids)
    present_RD = np.zeros((len(train), len(names)), dtype=np.int64)
    present_RD[np.repeat(np.arange(len(train)), train.lengths), domains_N] = 1
    shared_DD = present_RD.T @ present_RD
    times_N = dataset.times.of_first(train.lengths) if dataset.has_times else np.zeros(0)
    found = []
    for index, name in enumerate(names):
        own_N = times_N[domains_N == index] if len(times_N) else times_N
        span = (times_N.min(), times_N.max()) if len(times_N) else (0.0, 0.0)
        period = period_of(own_N)
        found.append(
            DomainReach(
                domain=name,
                users=int(shared_DD[index, index]),
                interactions=int(np.count_nonzero(domains_N == index)),
                first_date=period["first_date"],
                last_date=period["last_date"],
                shared_users=tuple(shared_DD[index].tolist()),
                by_time=tuple(np.histogram(own_N, TIME_SPANS, span)[0].tolist()) if len(times_N) else (),
            )
        )
    return tuple(found)


def gini(counts_I: npt.NDArray[np.int64]) -> float:
    """
    Gini coefficient of non-negative counts: 0 when all are equal, (I - 1) / I when one item has everything.

    >>> gini(np.array([2, 2])), gini(np.array([0, 4]))
    (0.0, 0.5)
    """
    total = counts_I.sum()
    if not total:
        return 0.0
    places = np.arange(1, len(counts_I) + 1)
    return float((2 * (places * np.sort(counts_I)).sum() / total - len(counts_I) - 1) / len(counts_I))


def find_top_mappings(mapping: pl.DataFrame, vocabulary: Vocabulary, source: str, target: str) -> pl.DataFrame:
    """
    Each replaced source item's most frequent target (the smaller item id between equals).

    Args:
        mapping: as ``mapping.parquet`` of a composite.

    Returns:
        Columns source_token, target_token, count, by falling count.
    """
    best = (
        mapping.filter((pl.col("source_domain") == source) & pl.col("target_item").is_not_null())
        .sort(["count", "source_item", "target_item"], descending=[True, False, False])
        .unique("source_item", keep="first", maintain_order=True)
    )
    return pl.DataFrame(
        {
            "source_token": [vocabulary.token_id(source, item) for item in best["source_item"]],
            "target_token": [vocabulary.token_id(target, item) for item in best["target_item"]],
            "count": best["count"],
        },
        schema={"source_token": pl.Int64, "target_token": pl.Int64, "count": pl.Int64},
    )


def judge_correspondence(
    top: pl.DataFrame, item_table_VD: Tensor, vocabulary: Vocabulary, source: str, target: str, *, seed: int
) -> Correspondence | None:
    """Numbers behind figure 4; None where nothing of *source* was replaced."""
    if not top.height:
        return None
    unit_VD = torch.nn.functional.normalize(item_table_VD.float(), dim=1)
    sources, targets = _tokens(top, "source_token"), _tokens(top, "target_token")
    target_range, source_range = vocabulary.token_range(target), vocabulary.token_range(source)
    cosines, percentiles = [], []
    for start in range(0, len(sources), CORRESPONDENCE_ROWS):
        rows = slice(start, start + CORRESPONDENCE_ROWS)
        against_all = unit_VD[sources[rows]] @ unit_VD[target_range.columns].T
        own = against_all.gather(1, (targets[rows] - target_range.first)[:, None])
        cosines.append(own[:, 0])
        percentiles.append(100 * (against_all < own).float().mean(dim=1))
    generator = np.random.default_rng(seed)
    random_sources = torch.from_numpy(generator.integers(source_range.first, source_range.last + 1, 1000))
    random_targets = torch.from_numpy(generator.integers(target_range.first, target_range.last + 1, 1000))
    target_counts = top["target_token"].value_counts()["count"]
    return Correspondence(
        source_domain=source,
        mapped_items=top.height,
        replacements=int(top["count"].sum()),
        distinct_targets=len(target_counts),
        top_target_share=float(np.max(target_counts.to_numpy())) / top.height,
        mean_cosine=float(torch.cat(cosines).mean()),
        mean_cosine_random=float((unit_VD[random_sources] * unit_VD[random_targets]).sum(dim=1).mean()),
        median_percentile=float(torch.cat(percentiles).median()),
    )


def project_items(
    top: pl.DataFrame,
    item_table_VD: Tensor,
    vocabulary: Vocabulary,
    source: str,
    target: str,
    *,
    seed: int,
    sampled: int = 300,
    links: int = 200,
) -> tuple[ProjectedItems, ...]:
    """
    Figure 4 by plain PCA, and by t-SNE of the first 50 principal components where scikit-learn is installed.

    Args:
        top: as ``find_top_mappings``.
        item_table_VD: the base's item table, the only space that both domains share.
        seed: of the sample.
        sampled: random items per domain; the endpoints of the links come on top.
        links: most frequent mappings drawn.
    """
    linked = top.head(links)
    generator = np.random.default_rng(seed)
    sources = _sample(generator, vocabulary, source, sampled, linked["source_token"].to_list())
    targets = _sample(generator, vocabulary, target, sampled, linked["target_token"].to_list())
    vectors_ND = item_table_VD[torch.tensor([*sources, *targets])].float()
    place = {token: index for index, token in enumerate(sources)}
    target_place = {token: index for index, token in enumerate(targets)}
    pairs = tuple(
        (place[a], target_place[b]) for a, b in zip(linked["source_token"], linked["target_token"], strict=True)
    )
    planes = {
        "pca": principal_components(vectors_ND, 2),
        "t-sne": t_sne(principal_components(vectors_ND, min(50, *vectors_ND.shape))),
    }
    return tuple(
        ProjectedItems(method, source, _points(plane_N2[: len(sources)]), _points(plane_N2[len(sources) :]), pairs)
        for method, plane_N2 in planes.items()
        if plane_N2 is not None
    )


def _counts(rows: Sequences, num_items: int) -> npt.NDArray[np.int64]:
    assert (rows.lengths >= SHORTEST_ROW).all()
    return np.bincount(rows.token_ids, minlength=num_items + 1)[1:]


def _segment_shares(ordered_I: npt.NDArray[np.int64]) -> tuple[float, ...]:
    ends = [round(share * len(ordered_I)) for share in SEGMENT_ENDS]
    total = max(1, int(ordered_I.sum()))
    return tuple(float(ordered_I[start:end].sum()) / total for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _tokens(top: pl.DataFrame, column: str) -> Tensor:
    return torch.tensor(top[column].to_list(), dtype=torch.int64)


def _sample(
    generator: np.random.Generator, vocabulary: Vocabulary, domain: str, size: int, always: Sequence[int]
) -> list[int]:
    tokens = vocabulary.token_range(domain)
    drawn = generator.choice(np.arange(tokens.first, tokens.last + 1), size=min(size, len(tokens)), replace=False)
    return sorted({*drawn.tolist(), *always})


def _points(plane_N2: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple((round(x, 4), round(y, 4)) for x, y in plane_N2.tolist())
