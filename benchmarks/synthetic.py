"""
Synthetic interactions of the paper's shape: 40,165 users, 184,860 items, four domains, 1.7 million interactions.

    python -m benchmarks.synthetic interactions.parquet                # the paper's shape
    python -m benchmarks.synthetic big.parquet --users 10 --items 5    # ten times the users, five times the items

For memory and scaling curves, and for a world whose truth is known; never for a claim about real data, so every
identifier and every domain name says that it is synthetic. What is planted:
    interests        items belong to one of K interests, which all domains share; a user has a few of them
    popularity       inside an interest of a domain, Zipf
    correspondence   item i of a domain of n items stands for item floor(i m / n) of a domain of m items; with
                     probability `follow` an interaction is what the user's last one stands for in the domain at hand

Shapes: U = users, N = interactions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

Int64Array = npt.NDArray[np.int64]

START = 1_300_000_000
MEAN_GAP_SECONDS = 86_400


@dataclass(frozen=True)
class SyntheticConfig:
    """
    Size and structure of a synthetic world.

    Args:
        num_users: users, each with at least ``fewest_per_domain`` interactions in every domain.
        num_items: catalogue over all domains; the rarest items may stay without interaction.
        num_interactions: exact total, at least users x domains x fewest_per_domain.
        domain_shares: share of the catalogue per domain, sum 1.
        num_interests: K.
        interests_per_user: how many of them a user has.
        zipf_exponent: popularity of the r-th item of an interest is r to the minus this.
        follow: probability that an interaction follows the correspondence, in [0, 1].
        length_spread: sigma of the log-normal lengths.
        fewest_per_domain: what the paper's threshold asks.
        seed: of everything.
    """

    num_users: int = 40_165
    num_items: int = 184_860
    num_interactions: int = 1_700_000
    domain_shares: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    num_interests: int = 200
    interests_per_user: int = 3
    zipf_exponent: float = 1.0
    follow: float = 0.4
    length_spread: float = 0.6
    fewest_per_domain: int = 3
    seed: int = 2025

    def scaled(self, *, users: float = 1, items: float = 1) -> SyntheticConfig:
        """The same world with *users* times the users and their interactions, and *items* times the catalogue."""
        return dataclasses.replace(
            self,
            num_users=round(self.num_users * users),
            num_interactions=round(self.num_interactions * users),
            num_items=round(self.num_items * items),
        )

    @property
    def num_domains(self) -> int:
        """Domains."""
        return len(self.domain_shares)

    @cached_property
    def domain_sizes(self) -> Int64Array:
        """Items of every domain; their sum is ``num_items``."""
        bounds = np.round(np.cumsum([0.0, *self.domain_shares]) * self.num_items).astype(np.int64)
        return np.diff(bounds)


def correspondence(items_N: Int64Array, sizes_N: Int64Array, target_sizes_N: Int64Array) -> Int64Array:
    """
    What items of domains of some sizes stand for in domains of other sizes, numbers inside the domains.

    >>> correspondence(np.array([0, 5, 9]), np.array([10, 10, 10]), np.array([4, 4, 4])).tolist()
    [0, 2, 3]
    """
    return items_N * target_sizes_N // sizes_N


def generate(config: SyntheticConfig) -> pl.DataFrame:
    """
    Columns user, item, domain, timestamp; user by user in time order, the same for the same configuration.

    1. Draw lengths, then the domain of every interaction: the required ones first, shuffled among the rest.
    2. Draw an interest of the user and an item of it for every interaction.
    3. Position by position, let some interactions follow the correspondence of the one before.
    """
    generator = np.random.default_rng(config.seed)
    lengths_U = _lengths(config, generator)
    users_N = np.repeat(np.arange(config.num_users), lengths_U)
    starts_U = np.cumsum(lengths_U) - lengths_U
    positions_N = np.arange(len(users_N)) - starts_U[users_N]
    domains_N = _domains(config, generator, users_N, positions_N)
    items_N = _items(config, generator, users_N, domains_N)
    follows_N = (generator.random(len(users_N)) < config.follow) & (positions_N > 0)
    sizes = config.domain_sizes
    for position in range(1, int(lengths_U.max())):
        here = (starts_U + position)[lengths_U > position]
        here = here[follows_N[here]]
        before = here - 1
        items_N[here] = correspondence(items_N[before], sizes[domains_N[before]], sizes[domains_N[here]])
    gaps_N = generator.exponential(MEAN_GAP_SECONDS, len(users_N)).astype(np.int64) + 1
    elapsed_N = np.cumsum(gaps_N)
    return pl.DataFrame(
        {
            "user": users_N,
            "item": items_N,
            "domain": domains_N,
            "timestamp": START + elapsed_N - elapsed_N[starts_U][users_N],
        }
    ).with_columns(
        pl.format("synthetic-user-{}", "user").alias("user"),
        pl.format("synthetic-{}-{}", "domain", "item").alias("item"),
        pl.format("synthetic-{}", "domain").alias("domain"),
    )


def _lengths(config: SyntheticConfig, generator: np.random.Generator) -> Int64Array:
    fewest = config.fewest_per_domain * config.num_domains
    spare = config.num_interactions - fewest * config.num_users
    assert spare >= 0, "fewer interactions than the users need"
    weights_U = generator.lognormal(0, config.length_spread, config.num_users)
    bounds = np.floor(np.cumsum(weights_U) / weights_U.sum() * spare).astype(np.int64)
    bounds[-1] = spare
    return fewest + np.diff(bounds, prepend=0)


def _domains(
    config: SyntheticConfig, generator: np.random.Generator, users_N: Int64Array, positions_N: Int64Array
) -> Int64Array:
    required = config.fewest_per_domain * config.num_domains
    drawn_N = generator.choice(config.num_domains, len(users_N), p=config.domain_shares)
    domains_N = np.where(positions_N < required, positions_N % config.num_domains, drawn_N)
    # Sorting by a random key inside each user shuffles the required ones among the rest.
    shuffled_N: Int64Array = domains_N[np.lexsort((generator.random(len(users_N)), users_N))].astype(np.int64)
    return shuffled_N


def _items(
    config: SyntheticConfig, generator: np.random.Generator, users_N: Int64Array, domains_N: Int64Array
) -> Int64Array:
    """Interest k of a domain of n items owns the items floor(k n / K) .. floor((k+1) n / K) - 1, by popularity."""
    interests_UI = generator.integers(0, config.num_interests, (config.num_users, config.interests_per_user))
    which_N = generator.integers(0, config.interests_per_user, len(users_N))
    interest_N = interests_UI[users_N, which_N]
    sizes_N = config.domain_sizes[domains_N]
    first_N = interest_N * sizes_N // config.num_interests
    count_N = np.maximum(1, (interest_N + 1) * sizes_N // config.num_interests - first_N)
    # The inverse of the cumulated density x^-s on [1, count + 1].
    uniform_N = generator.random(len(users_N))
    exponent = 1 - config.zipf_exponent
    if exponent == 0:
        rank_N = (count_N + 1.0) ** uniform_N
    else:
        rank_N = (1 + uniform_N * ((count_N + 1.0) ** exponent - 1)) ** (1 / exponent)
    return np.minimum(first_N + np.minimum(rank_N.astype(np.int64), count_N) - 1, sizes_N - 1)


def main() -> None:
    """Write a synthetic log; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="file to write: .parquet or .csv")
    parser.add_argument("--users", type=float, default=1, help="factor on users and interactions")
    parser.add_argument("--items", type=float, default=1, help="factor on the catalogue")
    parser.add_argument("--seed", type=int, default=SyntheticConfig.seed)
    arguments = parser.parse_args()
    config = dataclasses.replace(SyntheticConfig(), seed=arguments.seed)
    config = config.scaled(users=arguments.users, items=arguments.items)
    table = generate(config)
    if arguments.path.suffix == ".csv":
        table.write_csv(arguments.path)
    else:
        table.write_parquet(arguments.path)
    counts = table.select(pl.col("user", "item", "domain").n_unique(), pl.len().alias("interactions")).row(
        0, named=True
    )
    print(json.dumps({"synthetic": True, "path": str(arguments.path), **counts, "config": dataclasses.asdict(config)}))


if __name__ == "__main__":
    main()
