"""Preparation: every format of input, and every kind of bad input its own error."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import polars as pl
import pytest

from models.data.preparation import PreparationConfig, prepare
from models.data.reading.interactions import read_interactions
from models.data.reading.layouts import Columns, Layout, parse_condition
from models.errors import BadRowsError, EmptyDatasetError, InputFormatError
from tests.prepared_tables import KEEP_ALL, TINY, Row, write_csv

# The clock's time would give the test that it names another id in every process.
TORN = gzip.compress(b"user,item,domain,timestamp\n" + b"u,x,a,1\n" * 99, mtime=0)[:-9]


# -- Input formats


def fingerprint_of(source: Path, **config) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dataset"
        kept = {"min_user_interactions": 1, "min_item_interactions": 1, "overlap": "any"}
        return prepare(source, out, PreparationConfig(**kept, **config)).fingerprint


def test_every_format_of_the_same_rows_gives_the_same_dataset(tmp_path):
    expected = fingerprint_of(write_csv(tmp_path / "plain.csv", TINY))
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((tmp_path / "plain.csv").read_bytes()))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "plain.csv").read_bytes())
    (tmp_path / "quoted.csv").write_text(
        '"user","item","domain","timestamp"\r\n' + "".join(f'"{u}","{i}","{d}",{t}\r\n' for u, i, d, t in TINY)
    )
    lines = ["user_id:token\titem_id:token\tdomain:token\ttimestamp:float", *("\t".join(map(str, r)) for r in TINY)]
    (tmp_path / "recbole.inter").write_text("\n".join(lines) + "\n")
    (tmp_path / "packed.inter.gz").write_bytes(gzip.compress((tmp_path / "recbole.inter").read_bytes()))
    columns = {
        "extra": [0] * 4,
        **dict(zip(("user", "item", "domain", "timestamp"), zip(*TINY, strict=True), strict=True)),
    }
    table = pl.DataFrame({name: list(values) for name, values in columns.items()})
    table.write_parquet(tmp_path / "integers.parquet")
    table.with_columns(pl.from_epoch("timestamp"), pl.col("domain").cast(pl.Categorical)).write_parquet(
        tmp_path / "datetimes.parquet"
    )
    table.with_columns(pl.col("timestamp").cast(pl.String)).write_parquet(tmp_path / "texts.parquet")

    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 9
    for name in names:
        assert (name, fingerprint_of(tmp_path / name)) == (name, expected)


def test_a_line_break_in_a_quoted_field_of_another_column_is_no_harm(tmp_path):
    (tmp_path / "t.csv").write_text('text,user,item,domain,timestamp\n"two\nlines",u,x,a,1\n"one",u,y,a,2\n')
    rows = read_interactions(tmp_path / "t.csv", max_bad_row_share=0)

    assert (rows.num_rows, rows.ids.items.to_list()) == (2, ["x", "y"])


def test_columns_are_found_by_the_configured_names_in_any_order(tmp_path):
    (tmp_path / "plain.csv").write_text(
        "when,shop,who,rating,what\n" + "".join(f"{t},{d},{u},5,{i}\n" for u, i, d, t in TINY)
    )
    columns = Columns(user="who", item="what", domain="shop", timestamp="when")

    assert fingerprint_of(tmp_path / "plain.csv", layout=Layout(columns=columns)) == fingerprint_of(
        write_csv(tmp_path / "t.csv", TINY)
    )


def test_integer_identifiers_of_parquet_read_as_their_digits(tmp_path):
    pl.DataFrame({"user": [7], "item": [8], "domain": ["a"], "timestamp": [1.5]}).write_parquet(tmp_path / "t.parquet")
    rows = read_interactions(tmp_path / "t.parquet", max_bad_row_share=0)

    assert (rows.ids.users.to_list(), rows.ids.items.to_list(), rows.times_N.tolist()) == (["7"], ["8"], [1.5])


def test_identifiers_are_exact_strings(tmp_path):
    """No number, case, blank or accent is touched; tabs divide .inter and quotes there are text."""
    (tmp_path / "t.inter").write_text(
        'user_id:token\titem_id:token\tdomain:token\ttimestamp:float\n007\t"x, é\tA b\t1e3\n'
    )
    rows = read_interactions(tmp_path / "t.inter", max_bad_row_share=0)

    assert (rows.ids.users.to_list(), rows.ids.items.to_list()) == (["007"], ['"x, é'])
    assert (rows.ids.domains.to_list(), rows.times_N.tolist()) == (["A b"], [1000.0])


# -- Bad input, each kind its own error


def bad_rows_of(tmp_path: Path, body: bytes, *, num_good: int = 4) -> list[tuple[int, str]]:
    """(line, reason) of bad_rows.csv for a header, *num_good* good rows and then *body*."""
    good = "".join(f"u{n},x,a,{n}\n" for n in range(num_good)).encode()
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\n" + good + body)
    config = PreparationConfig(
        min_user_interactions=1, min_item_interactions=1, overlap="all", max_bad_row_share=1, max_length=3
    )
    report = prepare(tmp_path / "input.csv", tmp_path / "dataset", config)
    table = pl.read_csv(tmp_path / "dataset" / "bad_rows.csv", schema={"line": pl.Int64, "reason": pl.String})

    assert report.rows_bad == table.height == len(report.bad_rows)
    assert report.rows_read == num_good + table.height
    assert report.result.interactions == num_good
    return table.rows()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b",x,a,1\n", "missing user"),
        (b"u,,a,1\n", "missing item"),
        (b"u,x,,1\n", "missing domain"),
        (b"u,x,a,\n", "missing timestamp"),
        (b",,a,\n", "missing user, item, timestamp"),
        (b"\n", "empty line"),
        (b"u,x,a\n", "3 fields instead of 4"),
        (b"u,x,a,1,2\n", "5 fields instead of 4"),
        (b"u,x,a,yesterday\n", "timestamp is neither a number nor a date of ISO 8601: 'yesterday'"),
        (b"u,x,a,nan\n", "timestamp is not finite: 'nan'"),
        (b"u,x,a,-inf\n", "timestamp is not finite: '-inf'"),
        (b"\xff\xfe,x,a,1\n", "not UTF-8: user"),
        (b"u,caf\xe9,\xe9,1\n", "not UTF-8: item, domain"),
        (
            b"u,x,b,1\n",
            "item 'x' is claimed for domain 'b', but most of its rows name another; where "
            "domains number their items alike, put the domain before the item (--prefix-items)",
        ),
    ],
)
def test_a_bad_row_is_named_by_line_and_reason(tmp_path, line, reason):
    assert bad_rows_of(tmp_path, line) == [(6, reason)]


def test_a_small_file_may_end_in_a_blank_line(tmp_path):
    """One line of four is far above the share, but nothing is lost with it."""
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\nu,x,a,1\nu,y,a,2\nv,x,a,3\n\n")
    read = read_interactions(tmp_path / "input.csv", max_bad_row_share=0.0)

    assert [(row.line, row.reason) for row in read.bad_rows] == [(5, "empty line")]
    assert len(read.users_N) == 3


def test_blank_lines_do_not_dilute_the_share_of_bad_rows(tmp_path):
    """One bad row of four is 25 %, however many lines between them are empty."""
    body = b"u,x,a,1\nu,y,a,2\nv,x,a,3\nv,y,a,never\n" + 10 * b"\n"
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\n" + body)

    with pytest.raises(BadRowsError, match="1 of 4 rows are bad"):
        read_interactions(tmp_path / "input.csv", max_bad_row_share=0.2)


def test_line_numbers_hold_when_bad_rows_of_all_kinds_mix(tmp_path):
    """Rows that the parser skips, rows that it returns and good rows each count one line."""
    body = b"u,x\nu,x,a,9,9\nu,x,a,never\n\nv,x,a\nv,,a,1\n"
    lines = [line for line, _ in bad_rows_of(tmp_path, body)]

    assert lines == [6, 7, 8, 9, 10, 11]


def test_bad_rows_with_windows_line_ends_are_named_like_any_other(tmp_path):
    assert bad_rows_of(tmp_path, b"u,x\r\n,x,a,1\r\n") == [(6, "2 fields instead of 4"), (7, "missing user")]


def test_line_numbers_hold_across_the_blocks_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("models.data.reading.text_blocks.BLOCK_BYTES", 1024)
    lines = [f"user{n % 50},item{n % 70},a,{n}" for n in range(2_000)]
    for n in range(100, 2_000, 100):
        lines[n] = "short,row" if n % 200 else f"user1,item1,a,x{n}"
    (tmp_path / "input.csv").write_text("user,item,domain,timestamp\n" + "\n".join(lines))
    rows = read_interactions(tmp_path / "input.csv", max_bad_row_share=0.01)

    assert [row.line for row in rows.bad_rows] == [n + 2 for n in range(100, 2_000, 100)]
    assert len(rows.times_N) == 2_000 - 19
    assert rows.ids.users.to_list() == sorted(f"user{n}" for n in range(50))


def test_bad_rows_of_parquet_are_named_by_row(tmp_path):
    table = pl.DataFrame(
        {
            "user": ["u", None, "u", "u", "u"],
            "item": ["x", "x", "", "x", "x"],
            "domain": ["a"] * 5,
            "timestamp": [1.0, 2.0, 3.0, float("nan"), None],
        }
    )
    table.write_parquet(tmp_path / "input.parquet")
    rows = read_interactions(tmp_path / "input.parquet", max_bad_row_share=1)

    assert [(row.line, row.reason) for row in rows.bad_rows] == [
        (2, "missing user"),
        (3, "missing item"),
        (4, "timestamp is not finite: 'nan'"),
        (5, "missing timestamp"),
    ]


def claimed(tmp_path: Path, rows: list[Row]) -> tuple[tuple[str, ...], list[int]]:
    """Domains that keep item x, and the bad lines."""
    interactions = read_interactions(write_csv(tmp_path / "input.csv", rows), max_bad_row_share=1)
    domains = tuple(interactions.ids.domains.gather(interactions.domains_N).unique().sort())
    return domains, [row.line for row in interactions.bad_rows]


def test_an_item_of_two_domains_belongs_to_the_one_that_most_distinct_rows_claim(tmp_path):
    """b is written three times but once in substance."""
    rows = [("u", "x", "b", 1)] * 3 + [("u", "x", "a", 1), ("v", "x", "a", 1)]

    assert claimed(tmp_path, rows) == (("a",), [2, 3, 4])


def test_an_item_claimed_equally_often_belongs_to_the_domain_first_by_name(tmp_path):
    rows = [("u", "x", "b", 1), ("v", "x", "a", 1)]

    assert claimed(tmp_path, rows) == (("a",), [2])
    assert claimed(tmp_path, rows[::-1]) == (("a",), [3])


def test_too_many_bad_rows_are_refused_with_the_first_lines(tmp_path):
    rows = [("u", "x", "a", t) for t in (1, 2, 3)]
    source = write_csv(tmp_path / "input.csv", [*rows, ("u", "x", "a", "soon"), ("", "x", "a", 4)])

    with pytest.raises(
        BadRowsError,
        match=r"2 of 5 rows.*0\.01.*line 5: timestamp is neither a number nor a date of ISO 8601: 'soon'; line 6: mis",
    ):
        prepare(source, tmp_path / "dataset", KEEP_ALL)
    assert not (tmp_path / "dataset").exists()


def test_a_share_of_bad_rows_at_the_limit_passes(tmp_path):
    source = write_csv(tmp_path / "input.csv", [("u", "x", "a", t) for t in (1, 2, 3, "soon")])

    assert len(read_interactions(source, max_bad_row_share=0.25).bad_rows) == 1
    with pytest.raises(BadRowsError, match="line 5"):
        read_interactions(source, max_bad_row_share=0.24)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("input.xlsx", b"user,item,domain,timestamp\nu,x,a,1\n", "unknown suffix"),
        ("input.csv", b"", "expected a header"),
        ("input.csv", b"user,item,time\nu,x,1\n", "no column for the domain; columns found: user, item, time"),
        ("input.csv", b"user,item,item,domain,timestamp\n", "more than one column named 'item'"),
        ("input.csv", b"user,item,domain,timestamp,caf\xe9\n", "not UTF-8"),
        ("input.csv", b"PK\x03\x04", "a zip archive"),
        ("input.csv.gz", TORN, "damaged gzip data"),
        ("input.inter", b"user:token\tthing:token\n", "no column for the item; columns found: user, thing"),
        ("input.csv", b"user,item,domain,timestamp\ru,x,a,1\r", "a carriage return without a line feed"),
        ("input.parquet", b"PAR1 but no more", "not a readable Parquet file"),
    ],
)
def test_an_unreadable_input_names_the_file_and_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputFormatError, match=message) as raised:
        prepare(tmp_path / name, tmp_path / "dataset")
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("body", "bad"),
    [
        (b'u,"x,a,1\nu,y,a,2\nu,z,a,3', [(2, "not a valid row: a quote is opened and not closed")]),
        (b'u,"x,a,1\nu,y",a,2\nu,z,a,3\n', [(2, "item runs over a line break: is a quote left open?")]),
        (b'u,"x"y,a,1\nu,y,a,2\nu,z,a,3\n', [(2, "not a valid row: ',' expected after '\"'")]),
        (b'u,x,a,1,"\nu,y,a,2\nu,z,a,3\n', [(2, "not a valid row: a quote is opened and not closed")]),
    ],
)
def test_a_quote_left_open_costs_its_line_and_swallows_no_other(tmp_path, body, bad):
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\n" + body)
    rows = read_interactions(tmp_path / "input.csv", max_bad_row_share=1)

    assert [(row.line, row.reason) for row in rows.bad_rows] == bad
    assert rows.num_rows == 3
    assert len(rows.times_N) == 2


def test_a_parquet_file_without_a_column_names_those_it_has(tmp_path):
    pl.DataFrame({"user": ["u"], "item": ["x"]}).write_parquet(tmp_path / "input.parquet")

    with pytest.raises(InputFormatError, match="no column for the domain; columns found: user, item"):
        prepare(tmp_path / "input.parquet", tmp_path / "dataset")


def test_a_parquet_column_that_holds_no_identifiers_is_refused(tmp_path):
    pl.DataFrame({"user": [["u"]], "item": ["x"], "domain": ["a"], "timestamp": [1]}).write_parquet(
        tmp_path / "t.parquet"
    )

    with pytest.raises(InputFormatError, match=r"t\.parquet"):
        prepare(tmp_path / "t.parquet", tmp_path / "dataset")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputFormatError, match=r"absent\.csv: no such file"):
        prepare(tmp_path / "absent.csv", tmp_path / "dataset")


def test_a_file_without_rows_is_an_empty_dataset(tmp_path):
    for name in ("input.csv", "input.parquet"):
        table = pl.DataFrame(schema=dict.fromkeys(("user", "item", "domain", "timestamp"), pl.String))
        getattr(table, f"write_{name.split('.')[1]}")(tmp_path / name)

        with pytest.raises(EmptyDatasetError, match="no row to begin with"):
            prepare(tmp_path / name, tmp_path / "dataset")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"min_item_interactions": 3},
            "of 2 users, 3 items, 4 inter.*'at least 3 interactions per item' removed the last 4",
        ),
        ({"min_user_interactions": 2}, "'at least 2 interactions per user in a domain' removed the last"),
        (
            {"min_user_interactions": 5, "user_threshold": "total"},
            "'at least 5 interactions per user' removed the last",
        ),
        (
            {"min_item_interactions": 2, "overlap": "all"},
            r"'users present in every domain \(a, b\)' removed the last 2",
        ),
    ],
)
def test_an_emptied_dataset_names_the_threshold_that_emptied_it(tmp_path, config, message):
    permissive = {"min_user_interactions": 1, "min_item_interactions": 1, "overlap": "any"}

    with pytest.raises(EmptyDatasetError, match=message):
        prepare(
            write_csv(tmp_path / "t.csv", TINY), tmp_path / "dataset", PreparationConfig(**{**permissive, **config})
        )
    assert not (tmp_path / "dataset").exists()


def test_a_condition_that_no_row_meets_is_named(tmp_path):
    source = write_csv(tmp_path / "log.csv", TINY)
    nobody = PreparationConfig(layout=Layout(where=(parse_condition("user = nobody"),)))

    with pytest.raises(EmptyDatasetError, match=r"no row is left by user ?= ?nobody"):
        prepare(source, tmp_path / "out", nobody)


def test_a_row_that_a_condition_leaves_out_is_no_duplicate(tmp_path):
    rows = [("u", "i1", "a", 1), *(("u", f"i{n}", "a", n) for n in (1, 2, 3, 4)), ("v", "i1", "a", 1)]
    source = write_csv(tmp_path / "log.csv", rows)
    only_u = Layout(where=(parse_condition("user = u"),))
    config = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any", layout=only_u)
    report = prepare(source, tmp_path / "out", config)

    assert (report.rows_read, report.rows_filtered, report.rows_duplicate) == (6, 1, 1)
