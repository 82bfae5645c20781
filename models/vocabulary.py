"""
The vocabulary: (domain, item id) <-> token id.

Token 0 is padding. The items of one domain own one contiguous range of token ids; domains follow one another in the
order of ``Vocabulary.domains``. V = num_items + 1 counts the padding row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from models.errors import DatasetFormatError, UnknownDomainError, UnknownItemError

if TYPE_CHECKING:
    from torch import Tensor

PADDING = 0


def counted_text(text: str) -> bytes:
    """A text for a digest: with its length before it, no two lists of texts are alike."""
    return f"{len(text)}:{text}".encode()


def fingerprint_of_items(domains: Iterable[tuple[str, int, Iterable[str]]]) -> str:
    """SHA-256 over domains, each with the number of its items and the items themselves in token order."""
    digest = hashlib.sha256()
    for domain, num_items, items in domains:
        digest.update(counted_text(domain) + f":{num_items}:".encode())
        for item in items:
            digest.update(counted_text(item))
    return digest.hexdigest()


@dataclass(frozen=True)
class TokenRange:
    """The tokens of one domain: ``first`` to ``last``, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, token_id: object) -> bool:
        return isinstance(token_id, int | np.integer) and self.first <= int(token_id) <= self.last

    @overload
    def mask(self, token_ids: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]: ...
    @overload
    def mask(self, token_ids: Tensor) -> Tensor: ...
    def mask(self, token_ids: Any) -> Any:
        """Which of *token_ids*, an array or a tensor of any shape, are of this domain: bool, in the same shape."""
        return (token_ids >= self.first) & (token_ids <= self.last)

    @property
    def columns(self) -> slice:
        """The range as a slice of a table with V rows."""
        return slice(self.first, self.last + 1)


@dataclass(frozen=True)
class Vocabulary:
    """
    All items of all domains, numbered.

    Args:
        domains: domain names, in the order of their token ranges; at least one, no repeats.
        item_ids: per domain, its external item ids in token order; no repeats inside a domain.

    >>> vocabulary = Vocabulary(("books", "food"), (("b1", "b2"), ("f1",)))
    >>> vocabulary.token_id("food", "f1"), vocabulary.external_id(2)
    (3, ('books', 'b2'))
    >>> vocabulary.token_range("books")
    TokenRange(first=1, last=2)
    """

    domains: tuple[str, ...]
    item_ids: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert len(self.domains) == len(self.item_ids) == len(set(self.domains)) > 0

    @property
    def num_items(self) -> int:
        """Items over all domains, padding not counted."""
        return sum(len(items) for items in self.item_ids)

    @property
    def num_tokens(self) -> int:
        """V: the items and the padding row."""
        return self.num_items + 1

    @cached_property
    def token_ranges(self) -> tuple[TokenRange, ...]:
        """One range per domain, in domain order."""
        ranges, first = [], 1
        for items in self.item_ids:
            ranges.append(TokenRange(first, first + len(items) - 1))
            first += len(items)
        return tuple(ranges)

    def build_lookups(self) -> None:
        """Build the tables behind ``token_id`` and ``item_ids_of`` now, not when they are first asked."""
        _ = self._token_of, self._item_of

    def domain_index(self, domain: str) -> int:
        """
        Position of *domain* in ``domains``.

        Raises:
            UnknownDomainError: it is not there.
        """
        try:
            return self.domains.index(domain)
        except ValueError:
            raise UnknownDomainError(domain, self.domains) from None

    def token_range(self, domain: str) -> TokenRange:
        """The token range of *domain*; raises UnknownDomainError."""
        return self.token_ranges[self.domain_index(domain)]

    def token_id(self, domain: str, item_id: str) -> int:
        """
        The token of one item.

        Raises:
            UnknownDomainError: no such domain.
            UnknownItemError: the domain has no such item.
        """
        index = self.domain_index(domain)
        try:
            return self._token_of[index][item_id]
        except KeyError:
            raise UnknownItemError(item_id, domain) from None

    def external_id(self, token_id: int) -> tuple[str, str]:
        """(domain, item id) of a token in 1..num_items."""
        assert 1 <= token_id <= self.num_items
        index = int(self.domain_of_tokens(np.asarray([token_id]))[0])
        return self.domains[index], self.item_ids[index][token_id - self.token_ranges[index].first]

    def item_ids_of(self, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """External item ids of tokens in 1..num_items, in order; an empty text for padding."""
        return [self._item_of[int(token)] for token in token_ids]

    def domain_of_tokens(self, token_ids: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Domain index of every token; -1 for padding. Shape as given."""
        lasts = np.asarray([r.last for r in self.token_ranges])
        return np.where(token_ids == PADDING, -1, np.searchsorted(lasts, token_ids)).astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over domains and items in token order."""
        domains = zip(self.domains, self.item_ids, strict=True)
        return fingerprint_of_items((domain, len(items), items) for domain, items in domains)

    def save(self, path: Path) -> None:
        """Write columns token_id, domain, item_id as Parquet, one row per item in token order."""
        pl.DataFrame(
            {
                "token_id": np.arange(1, self.num_tokens),
                "domain": [d for d, items in zip(self.domains, self.item_ids, strict=True) for _ in items],
                "item_id": [item for items in self.item_ids for item in items],
            },
            schema={"token_id": pl.Int64, "domain": pl.String, "item_id": pl.String},
        ).write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """
        Read what ``save`` wrote.

        Raises:
            DatasetFormatError: the file is missing, damaged or not numbered as described at the top.
        """
        try:
            table = pl.read_parquet(path)
            domains = tuple(table["domain"].unique(maintain_order=True).to_list())
            item_ids = tuple(tuple(table.filter(pl.col("domain") == d)["item_id"].to_list()) for d in domains)
            expected = [d for d, items in zip(domains, item_ids, strict=True) for _ in items]
            sound = (
                len(domains) > 0
                and table["token_id"].to_list() == list(range(1, table.height + 1))
                and table["domain"].to_list() == expected
                and all(len(set(items)) == len(items) for items in item_ids)
            )
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetFormatError(f"{path}: not a readable vocabulary: {error}") from error
        if not sound:
            raise DatasetFormatError(f"{path}: token ids are not contiguous per domain, or an item repeats")
        return cls(domains, item_ids)

    @cached_property
    def _token_of(self) -> tuple[dict[str, int], ...]:
        return tuple(
            {item: r.first + i for i, item in enumerate(items)}
            for items, r in zip(self.item_ids, self.token_ranges, strict=True)
        )

    @cached_property
    def _item_of(self) -> list[str]:
        return ["", *(item for items in self.item_ids for item in items)]
