"""
How the rows of an input are laid out: columns, header, separator, filter; and what is found without being told.

A column is found by the name that it was given, else by the usual names in ``KNOWN_NAMES``, written in any case and
with or without underscores: of several the first in the list counts.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from models.data.reading.times import TimeUnit, iso_seconds, time_format_problem
from models.errors import ConfigurationError, InputFormatError

Role = Literal["user", "item", "domain", "timestamp"]
ROLES: tuple[Role, ...] = ("user", "item", "domain", "timestamp")
KNOWN_NAMES: dict[Role, tuple[str, ...]] = {
    "user": ("user", "user_id", "reviewerID", "uid", "customer_id", "visitor_id"),
    "item": (
        *("item", "item_id", "parent_asin", "asin", "movieId", "business_id", "product_id", "isbn", "iid", "gmap_id"),
        *("video_id", "book_id", "article_id", "track_id", "song_id", "artist_id", "game_id", "goods_id", "sku"),
    ),
    "domain": ("domain",),
    "timestamp": (
        *("timestamp", "time", "unixReviewTime", "time_ms", "event_time", "date", "datetime", "ts", "created_at"),
        *("event_timestamp", "review_date", "date_added", "t_dat"),
    ),
}
ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1250", "cp1251", "cp1252", "gb18030", "big5", "shift_jis", "euc_kr")
"""What text may be in; others than UTF-8 and marked UTF-16 must be stated."""
# Without a header, tables of these widths are what everybody writes.
POSITIONS: dict[int, tuple[str, ...]] = {
    3: ("user", "item", "timestamp"),
    4: ("user", "item", "rating", "timestamp"),
}
SHOWN_NAMES = 200


@dataclass(frozen=True)
class Columns:
    """
    Names of the four columns, or, in a file without a header, their places from 1. None: one of the usual names.

    The type after the colon of RecBole's ``.inter`` (``domain:token``) is not part of a name.
    """

    user: str | None = None
    item: str | None = None
    domain: str | None = None
    timestamp: str | None = None

    def of(self, role: Role) -> str | None:
        """The name given for *role*."""
        name: str | None = getattr(self, role)
        return name


@dataclass(frozen=True)
class Condition:
    """A filter by one column: only rows whose value compares so are read."""

    column: str
    comparison: str
    value: str

    def holds(self, value: str | None) -> bool:
        """As numbers if both are (true is 1, 4,5 is 4.5), else as texts; nothing compares to a missing value."""
        if value is None:
            return False
        compare = _COMPARISONS[self.comparison]
        wanted, found = _number(self.value), _number(value)
        return bool(compare(value, self.value) if math.isnan(wanted + found) else compare(found, wanted))

    def unlike(self, values: Sequence[str]) -> str | None:
        """The first of *values* that is put in order as a text though a number is asked for; None if none is."""
        if self.comparison not in _ORDERS or math.isnan(_number(self.value)):
            return None
        return next((value for value in values if value and math.isnan(_number(value))), None)

    def __str__(self) -> str:
        return f"{self.column}{self.comparison}{self.value}"


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


_ORDERS = (">=", "<=", ">", "<")


def parse_condition(text: str) -> Condition:
    """
    ``rating>=4`` as a condition.

    >>> parse_condition("rating >= 4")
    Condition(column='rating', comparison='>=', value='4')

    Raises:
        ConfigurationError: it is none.
    """
    text = text.strip()
    found = _COMPARISON.search(text, 1)  # a column has a name
    column, value = (text[: found.start()].strip(), text[found.end() :].strip()) if found else ("", "")
    if found is None or not column or not value:
        raise ConfigurationError(f"{text[:SHOWN_NAMES]!r} is no condition such as 'rating>=4' or 'is_click=1'")
    return Condition(column, found[0], value.strip("'\""))


_COMPARISON = re.compile(">=|<=|!=|==|=|>|<")
_ORDERS = (">=", "<=", ">", "<")


def parse_separator(text: str) -> str:
    r"""
    A separator as a shell can say it.

    >>> parse_separator(r"\t"), parse_separator("::"), parse_separator("tab")
    ('\t', '::', '\t')
    """
    if text.startswith("\\"):
        try:
            return text.encode("ascii").decode("unicode_escape")
        except UnicodeError:
            return text
    return {"tab": "\t", "space": " "}.get(text, text)


def _number(text: str) -> float:
    """4.5 and, as half of Europe writes it, 4,5; three digits after the comma might be thousands: no number."""
    try:
        return float(_TRUTH.get(text.lower(), text))
    except ValueError:
        return float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text.strip()) else math.nan


_TRUTH = {"true": "1", "false": "0"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,(\d{1,2}|\d{4,})")


@dataclass(frozen=True)
class Layout:
    """
    How a file is read; what is None is found by looking at its name and beginning.

    Args:
        columns: their names.
        input_format: a key of ``INPUT_FORMATS``.
        header: whether the first line of delimited text names the columns.
        separator: of delimited text; ``::`` is one, too.
        positions: names of the columns of a file without a header, in order.
        where: rows that fail one of these are not read.
        prefix_items: put the domain and a colon before every item id, for domains that number their items alike.
        time_unit: of times that are numbers.
        time_format: of times, in the words of ``strptime``, as ``%d/%m/%Y``.
        encoding: of text, one of ``ENCODINGS``.
        carried: columns that come along to the results, as texts.
    """

    columns: Columns = field(default_factory=Columns)
    input_format: str | None = None
    header: bool | None = None
    separator: str | None = None
    positions: tuple[str, ...] | None = None
    where: tuple[Condition, ...] = ()
    prefix_items: bool = False
    time_unit: TimeUnit | None = None
    time_format: str | None = None
    encoding: str | None = None
    carried: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.encoding is not None and self.encoding not in ENCODINGS:
            raise ConfigurationError(f"no encoding {self.encoding!r}; there are {', '.join(ENCODINGS)}")
        if self.time_format is not None and (problem := time_format_problem(self.time_format)):
            raise ConfigurationError(f"the time format {self.time_format!r} {problem}")


PRESETS: dict[str, Layout] = {
    # Ratings: user,item,rating,time without a header; reviews and k-cores: JSON lines. Seconds.
    "amazon-2014": Layout(positions=("user", "item", "rating", "timestamp"), time_unit="seconds"),
    # The same, but the ratings put the item first.
    "amazon-2018": Layout(positions=("item", "user", "rating", "timestamp"), time_unit="seconds"),
    # user_id,parent_asin,rating,timestamp with a header, or JSON lines. Milliseconds.
    "amazon-2023": Layout(time_unit="milliseconds"),
    # ratings.csv with a header, ratings.dat with ::, u.data with tabs. Seconds.
    "movielens": Layout(positions=("user", "item", "rating", "timestamp"), time_unit="seconds"),
    # yelp_academic_dataset_review.json: JSON lines with dates.
    "yelp": Layout(input_format="ndjson"),
}


def preset(name: str) -> Layout:
    """
    The layout of a log that everybody has.

    Raises:
        ConfigurationError: none has this name.
    """
    if name not in PRESETS:
        raise ConfigurationError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def with_columns(layout: Layout, pairs: str) -> Layout:
    """
    *layout* with columns as ``user=reviewerID,item=asin,time=unixReviewTime`` names them.

    Raises:
        ConfigurationError: a part is no such pair.
    """
    named: dict[str, str] = {}
    for pair in pairs.split(","):
        role, equals, name = (part.strip() for part in pair.partition("="))
        role = "timestamp" if role == "time" else role
        if not equals or not name or role not in ROLES:
            raise ConfigurationError(f"{pair.strip()!r}: columns are user=NAME,item=NAME,domain=NAME,time=NAME")
        named[role] = name
    return replace(layout, columns=replace(layout.columns, **named))


def layout_fields(layout: Layout) -> dict[str, Any]:
    """*layout* as JSON can hold it."""
    return asdict(layout)


def layout_of(fields: dict[str, Any]) -> Layout:
    """The layout that ``layout_fields`` wrote."""
    columns, positions = Columns(**fields["columns"]), fields["positions"]
    where = tuple(Condition(**condition) for condition in fields["where"])
    known = {"columns": columns, "where": where, "carried": tuple(fields["carried"])}
    return Layout(**{**fields, **known, "positions": None if positions is None else tuple(positions)})


@dataclass(frozen=True)
class ChosenColumns:
    """Names of the columns to read, None where the table has none: the domain and the time may come from elsewhere."""

    user: str
    item: str
    domain: str | None
    timestamp: str | None
    others: tuple[str, ...] = ()

    def to_read(self) -> list[str]:
        """Every name once."""
        names = (self.user, self.item, self.domain, self.timestamp, *self.others)
        return list(dict.fromkeys(name for name in names if name is not None))


def choose_columns(layout: Layout, names: Sequence[str], *, usual: Columns | None = None) -> ChosenColumns:
    """
    Which of the columns *names* are read.

    Args:
        usual: the format's own names, which come before the well-known ones.

    Raises:
        InputFormatError: a column that was named, the user, or the item is not there, or is there twice.
    """
    found: dict[Role, str | None] = {}
    for role in ROLES:
        wanted = layout.columns.of(role)
        found[role] = wanted if wanted is not None else find_column(role, names, usual=usual)
        if wanted is None and found[role] is None and role in ("user", "item"):
            raise InputFormatError(
                f"no column for the {role}; columns found: {shown(names)}; name it with --columns {role}=NAME"
            )
    others = (*(condition.column for condition in layout.where), *layout.carried)
    for name in (*found.values(), *others):
        if name is not None and names.count(name) != 1:
            problem = "no column" if name not in names else "more than one column"
            raise InputFormatError(f"{problem} named {name!r}; columns found: {shown(names)}")
    return ChosenColumns(str(found["user"]), str(found["item"]), found["domain"], found["timestamp"], others)


def find_column(role: Role, names: Sequence[str], *, usual: Columns | None = None) -> str | None:
    """The first of the usual names of *role* that is among *names*, spelt as there."""
    own = None if usual is None else usual.of(role)
    spelt = {_plain(name): name for name in reversed(names)}
    for name in (own, *KNOWN_NAMES[role]):
        if name is None:
            continue
        if name in names:
            return name
        if _plain(name) in spelt:
            return spelt[_plain(name)]
    return None


def looks_like_header(cells: Sequence[str], layout: Layout) -> bool:
    """Whether a first line names columns: it has what was asked for, or a usual name, or nothing like a time."""
    if all(_is_place(name) for name in map(layout.columns.of, ROLES) if name) and any(map(layout.columns.of, ROLES)):
        return False  # places instead of names
    if any(find_column(role, cells) for role in ROLES) or any(layout.columns.of(role) in cells for role in ROLES):
        return True
    return not any(_is_time(cell) for cell in cells)


def names_of_positions(width: int, layout: Layout) -> list[str]:
    """
    Names for the columns of a table of *width* columns that has no header.

    Raises:
        InputFormatError: nobody said what they are.
    """
    if any(map(layout.columns.of, ROLES)):
        return [str(place) for place in range(1, width + 1)]
    names = layout.positions if layout.positions and len(layout.positions) == width else POSITIONS.get(width)
    if names is None:
        raise InputFormatError(
            f"no header, and {width} columns; say which they are by their places, as in --columns user=1,item=2,time=4"
        )
    return list(names)


def shown(names: Sequence[str]) -> str:
    """Names for a message, not endlessly many."""
    return ", ".join(names)[:SHOWN_NAMES]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _is_time(cell: str) -> bool:
    return not math.isnan(_number(cell)) or not math.isnan(iso_seconds(cell))
