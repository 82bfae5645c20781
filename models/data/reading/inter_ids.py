r"""
Identifiers in RecBole's ``.inter``: one dialect, wherever Taesar reads or writes it.

Tabs and spaces separate fields and items there, and RecBole's reader takes quotes for quotes and words such as NA for
missing values, so in identifiers white space, quotes, % and the first letter of such a word are percent-encoded. What
is read is decoded only where it is exactly what would be written: in a file that others wrote, ``50% cotton`` and
``"lamp"`` stay themselves.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

# What pandas, with which RecBole reads, takes for a missing value.
MISSING_WORDS = frozenset(
    "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null".split()  # noqa: SIM905
)


def inter_id(identifier: str) -> str:
    """
    An identifier as a field of a ``.inter`` file.

    >>> [inter_id(text) for text in ("B01", "a b", "NA", '"z', "50%")]
    ['B01', 'a%20b', '%4EA', '%22z', '50%25']
    """
    if identifier in MISSING_WORDS:
        return f"%{ord(identifier[0]):02X}{identifier[1:]}"
    return re.sub(r'[\s%"]', lambda match: quote(match.group()), identifier)


def read_inter_id(field: str) -> str:
    """
    The identifier that a field of a ``.inter`` file holds.

    >>> [read_inter_id(text) for text in ("B01", "a%20b", "%4EA", '"z"', "50%", "a%2Fb")]
    ['B01', 'a b', 'NA', '"z"', '50%', 'a%2Fb']
    """
    identifier = unquote(field)
    return identifier if inter_id(identifier) == field else field
