"""Inputs as they lie: layouts, presets, places, filters; each read as what it is."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.preparation import PreparationConfig, prepare
from models.data.reading.identifiers import id_problem, id_text
from models.data.reading.interactions import Interactions, read_interactions
from models.data.reading.layouts import Columns, Layout, parse_condition, preset, with_columns
from models.errors import ConfigurationError, ImplausibleInputError, InputFormatError

LAYOUTS = Path(__file__).parents[3] / "layouts"
KEEP_ALL = {"min_user_interactions": 1, "min_item_interactions": 1, "overlap": "any"}


def read(*inputs, layout: Layout | None = None, share: float = 0.0) -> Interactions:
    return read_interactions([str(place) for place in inputs], layout, max_bad_row_share=share)


def rows_of(interactions: Interactions) -> list[tuple[str, str, str, float]]:
    """(user, item, domain, time) of every row, in order."""
    ids = interactions.ids
    return [
        (ids.users[int(u)], ids.items[int(i)], ids.domains[int(d)], float(t))
        for u, i, d, t in zip(
            interactions.users_N, interactions.items_N, interactions.domains_N, interactions.times_N, strict=True
        )
    ]


def fingerprint(tmp_path: Path, name: str, inputs: list[str], layout: Layout | None = None) -> str:
    return prepare(inputs, tmp_path / name, PreparationConfig(**KEEP_ALL, layout=layout or Layout())).fingerprint


FIVE = {
    "headerless": ["food={}/headerless/ratings_Food.csv", "kitchen={}/headerless/ratings_Kitchen.csv"],
    "milliseconds": ["food={}/milliseconds/Food.csv", "kitchen={}/milliseconds/Kitchen.csv"],
    "jsonlines": ["food={}/jsonlines/reviews_Food_5.json.gz", "kitchen={}/jsonlines/reviews_Kitchen_5.json.gz"],
    "recbole": ["{}/recbole"],
    "hive": ["{}/hive/domain=*/*.parquet"],
}


@pytest.mark.parametrize("name", FIVE)
def test_five_layouts_of_the_same_rows_give_the_same_dataset(tmp_path, name):
    truth = fingerprint(tmp_path, "truth", [str(LAYOUTS / "truth.csv.gz")])

    assert fingerprint(tmp_path, name, [place.format(LAYOUTS) for place in FIVE[name]]) == truth


def test_domains_are_found_in_the_names_of_files_that_differ():
    assert read(LAYOUTS / "jsonlines").ids.domains.to_list() == ["Food", "Kitchen"]
    with pytest.raises(InputFormatError, match=r"no column for the domain; .*; name it with .*, or write DOMAIN=FILE"):
        read(LAYOUTS / "jsonlines" / "reviews_Food_5.json.gz")


PRESETS = {
    "amazon-2014": {
        "ratings_Books.csv": "A1,0001,5.0,1377561600\nA2,0002,4.0,1377561601\n",
        "reviews_Toys_5.json": '{"reviewerID": "A1", "asin": "0003", "overall": 5.0, "unixReviewTime": 1377561602}\n',
    },
    "amazon-2018": {
        "Books.csv": "0001,A1,5.0,1377561600\n0002,A2,4.0,1377561601\n",
        "Toys_5.json": '{"overall": 5.0, "reviewerID": "A1", "asin": "0003", "unixReviewTime": 1377561602}\n',
    },
    "amazon-2023": {
        "Books.csv": "user_id,parent_asin,rating,timestamp\nA1,0001,5.0,1377561600000\nA2,0002,4.0,1377561601000\n",
        "Toys.jsonl": json.dumps(
            {"rating": 5.0, "asin": "0009", "parent_asin": "0003", "user_id": "A1", "timestamp": 1377561602000}
        ),
    },
    "movielens": {
        "Books.dat": "A1::0001::5::1377561600\nA2::0002::4::1377561601\n",
        "Toys.csv": "userId,movieId,rating,timestamp\nA1,0003,4.0,1377561602\n",
    },
    "yelp": {
        "Books.json": '{"user_id": "A1", "business_id": "0001", "stars": 5.0, "date": "2013-08-27 00:00:00"}\n'
        '{"user_id": "A2", "business_id": "0002", "stars": 4.0, "date": "2013-08-27 00:00:01"}\n',
        "Toys.json": '{"user_id": "A1", "business_id": "0003", "stars": 5.0, "date": "2013-08-27 00:00:02"}\n',
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_the_log_that_it_is_called_after(tmp_path, name):
    places = []
    for file, text in PRESETS[name].items():
        (tmp_path / file).write_text(text)
        places.append(f"{'books' if 'Books' in file else 'toys'}={tmp_path / file}")
    found = rows_of(read(*places, layout=preset(name)))
    scale = 1000 if name == "amazon-2023" else 1

    assert [(u, i, d, t / scale) for u, i, d, t in found] == [
        ("A1", "0001", "books", 1377561600),
        ("A2", "0002", "books", 1377561601),
        ("A1", "0003", "toys", 1377561602),
    ]


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ConfigurationError, match="amazon-2014, amazon-2018, amazon-2023, movielens, yelp"):
        preset("netflix")


ROW = ("u", "x", "a", 5.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "user;item;domain;timestamp\nu;x;a;5\n"),
        ("t.tsv", "user_id\titem_id\tdomain\ttime\nu\tx\ta\t5\n"),
        ("t.txt", "UserId|ItemId|Domain|Timestamp\nu|x|a|5\n"),
        ("t.dat", "user::item::domain::timestamp\nu::x::a::5\n"),
        ("t.csv", "\ufeffuser , item, domain,timestamp\r\nu,x,a, 5 \r\n"),
        ("t.inter", "user_id:token\titem_id:token\tdomain:token\ttimestamp:float\nu\tx\ta\t5\n"),
        ("t.jsonl", '{"user": "u", "item": "x", "domain": "a", "timestamp": 5}\n'),
        ("t.ndjson", '{"timestamp": "1970-01-01T00:00:05Z", "user": "u", "item": "x", "domain": "a", "more": [1]}'),
        ("part-00000", '{"user": "u", "item": "x", "domain": "a", "timestamp": 5}\n'),
        ("part-00001", "user,item,domain,timestamp\nu,x,a,5\n"),
    ],
)
def test_the_same_row_is_read_from_any_kind_of_text(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    assert rows_of(read(tmp_path / name)) == [ROW]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compression_is_seen_by_content(tmp_path, codec):
    content = b"user,item,domain,timestamp\nu,x,a,5\n"
    packed = gzip.compress(content) if codec == "gzip" else pa.Codec("zstd").compress(content, asbytes=True)
    (tmp_path / "t.csv").write_bytes(packed)

    assert rows_of(read(tmp_path / "t.csv")) == [ROW]


def test_a_file_without_a_header_has_its_columns_by_place(tmp_path):
    (tmp_path / "t.csv").write_text("a,u,x,extra,5\n")
    layout = with_columns(Layout(), "domain=1,user=2,item=3,time=5")

    assert rows_of(read(tmp_path / "t.csv", layout=layout)) == [ROW]
    with pytest.raises(InputFormatError, match="no header, and 5 columns; say which they are by their places"):
        read(tmp_path / "t.csv")


def test_columns_are_named_by_pairs(tmp_path):
    (tmp_path / "t.csv").write_text("who,what,when,shop\nu,x,5,a\n")
    layout = with_columns(Layout(), "user=who, item=what,time=when,domain=shop")

    assert layout.columns == Columns("who", "what", "shop", "when")
    assert rows_of(read(tmp_path / "t.csv", layout=layout)) == [ROW]
    with pytest.raises(ConfigurationError, match="'what': columns are user=NAME"):
        with_columns(Layout(), "user=who,what")


@pytest.mark.parametrize(
    ("condition", "kept"),
    [("rating>=4", "yz"), ("rating < 4", "x"), ("rating=4", "y"), ("kind==view", "xz"), ("kind!=view", "y")],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_only_rows_for_which_a_condition_holds_are_read(tmp_path, condition, kept, kind):
    table = pl.DataFrame(
        {
            "user": ["u"] * 4,
            "item": list("xyzw"),
            "domain": ["a"] * 4,
            "timestamp": [1, 2, 3, 4],
            "rating": [3.5, 4.0, 10.0, None],
            "kind": ["view", "buy", "view", None],
        }
    )
    path = tmp_path / f"t.{kind}"
    {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[kind](path)
    found = read(path, layout=Layout(where=(parse_condition(condition),)))

    assert [item for _, item, _, _ in rows_of(found)] == list(kept)
    assert (found.num_rows, found.num_filtered) == (4, 4 - len(kept))


def test_a_condition_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="'rating' is no condition"):
        parse_condition("rating")


def test_items_that_two_domains_number_alike_are_told_apart_by_a_prefix(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp\nu,1,a,1\nu,1,b,2\nu,2,a,3\n")
    found = rows_of(read(tmp_path / "t.csv", layout=Layout(prefix_items=True)))

    assert [item for _, item, _, _ in found] == ["a:1", "b:1", "a:2"]
    assert len(read(tmp_path / "t.csv", share=1.0).bad_rows) == 1


def write_parts(folder: Path) -> None:
    folder.mkdir()
    for number, item in enumerate("xy"):
        table = pa.table({"user": ["u"], "item": [item], "domain": ["a"], "timestamp": [number]})
        pq.write_table(table, folder / f"part-{number:05}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.snappy.parquet.crc").write_bytes(b"crc")


def test_a_folder_of_parts_is_one_input(tmp_path):
    write_parts(tmp_path / "log.parquet")

    assert [row[1] for row in rows_of(read(tmp_path / "log.parquet"))] == ["x", "y"]


def test_a_place_that_holds_nothing_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    for place, what in (("empty", "a folder without files"), ("*.csv", "no file matches"), ("x.csv", "no such file")):
        with pytest.raises(InputFormatError, match=what):
            read(tmp_path / place)


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp\nu,x,a,5\n")
    with pytest.raises(InputFormatError, match="is named twice"):
        read(tmp_path / "t.csv", f"{tmp_path}/*.csv")


def test_object_stores_are_read_by_fsspec_partitions_and_all():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/inputs/log/domain=a/day=1/part-0.csv", b"user,item,timestamp\nu,x,5\n")
    memory.pipe_file("/inputs/log/domain=b%20c/day=2/part-0.csv", b"user,item,timestamp\nu,y,6\n")
    expected = [ROW, ("u", "y", "b c", 6.0)]

    assert rows_of(read("memory://inputs/log/domain=*/*/*.csv")) == expected
    assert rows_of(read("memory://inputs/log")) == expected
    with pytest.raises(InputFormatError, match="cannot read nosuch://"):
        read("nosuch://bucket/x.csv")


def test_bad_rows_of_several_files_name_their_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("user,item,timestamp\nu,x,never\n")
    found = read(tmp_path / "a.csv", tmp_path / "b.csv", share=1.0)

    assert [(Path(row.file).name, row.line) for row in found.bad_rows] == [("a.csv", 2), ("b.csv", 2)]


# -- Ids

NUMBERS = [
    (pa.array([1.0, 4006381333901.0, 0.5, None]), ["1", "4006381333901", "0.5"]),
    (pa.array([1, 2**63 - 1, -3, None], pa.int64()), ["1", str(2**63 - 1), "-3"]),
    (pa.array([1.0, 16777216.0, 0.5, None], pa.float32()), ["1", "16777216", "0.5"]),
    (pa.array([Decimal("1.00"), Decimal("12345678901234567890.0"), Decimal("2.50"), None]), None),
    (pa.array(["é", "a b", "\u200cx", None]).dictionary_encode(), ["é", "a b", "\u200cx"]),
    (pa.array([7, 8, 7, None]).dictionary_encode(), ["7", "8", "7"]),
    (pa.array(["1", "1.0", "01", None], pa.large_string()), ["1", "1.0", "01"]),
]


@pytest.mark.parametrize(("column", "expected"), NUMBERS)
def test_ids_of_any_type_are_their_plain_text(tmp_path, column, expected):
    users = pa.array(list("uvwz"))
    table = pa.table({"user": users, "item": column, "domain": ["a"] * 4, "timestamp": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet", share=1.0)

    assert [item for _, item, _, _ in rows_of(found)] == (expected or ["1", "12345678901234567890", "2.5"])
    assert [(row.line, row.reason) for row in found.bad_rows] == [(4, "missing item")]


@pytest.mark.parametrize("value", [1.0, 4006381333901.0, 0.1, 1e300, 7, -3, 2.0**70])
def test_a_number_is_the_same_id_from_json_and_from_parquet(tmp_path, value):
    pq.write_table(
        pa.table({"user": ["u"], "item": [value], "domain": ["a"], "timestamp": [1]}), tmp_path / "t.parquet"
    )
    (tmp_path / "t.jsonl").write_text(json.dumps({"user": "u", "item": value, "domain": "a", "timestamp": 1}))

    assert rows_of(read(tmp_path / "t.parquet")) == rows_of(read(tmp_path / "t.jsonl"))
    assert id_text(value) == rows_of(read(tmp_path / "t.jsonl"))[0][1]


@pytest.mark.parametrize(
    "text",
    [
        "crème brûlée",
        "a\u00a0b",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        '"lamp"',
        "NA",
        "null",
        " x ",
        "x" * 512,
    ],
)
def test_blanks_joiners_and_quotes_are_characters_like_others(tmp_path, text):
    (tmp_path / "t.jsonl").write_text(json.dumps({"user": "u", "item": text, "domain": "a", "timestamp": 1}))
    (tmp_path / "t.inter").write_text(f"user_id:token\titem_id:token\tdomain:token\ttimestamp:float\nu\t{text}\ta\t1\n")

    assert id_problem(text) is None
    assert rows_of(read(tmp_path / "t.jsonl")) == rows_of(read(tmp_path / "t.inter")) == [("u", text, "a", 1.0)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 513, "is longer than 512 characters"),
        ("a\x00b", "holds a control character"),
        ("a\tb", "holds a control character"),
        ("a\u0085b", "holds a control character"),
        ("a\u2028b", "holds a control character"),
        ("a\x7fb", "holds a control character"),
    ],
)
def test_an_id_that_no_request_may_carry_is_a_bad_row(tmp_path, text, problem):
    (tmp_path / "t.jsonl").write_text(json.dumps({"user": "u", "item": text, "domain": "a", "timestamp": 1}) + "\n")
    pq.write_table(pa.table({"user": ["u"], "item": [text], "domain": ["a"], "timestamp": [1]}), tmp_path / "t.parquet")

    assert id_problem(text) == problem
    for name in ("t.jsonl", "t.parquet"):
        assert [row.reason for row in read(tmp_path / name, share=1.0).bad_rows] == [f"item {problem}"]


# -- Times

MOMENT = 1_300_000_000


@pytest.mark.parametrize(
    "column",
    [
        pa.array([MOMENT, MOMENT + 1]),
        pa.array([MOMENT * 1.0, MOMENT + 1.0]),
        pa.array([MOMENT, MOMENT + 1], pa.timestamp("s")),
        pa.array([MOMENT * 1000, MOMENT * 1000 + 1000], pa.timestamp("ms", tz="Europe/Berlin")),
        pa.array([MOMENT * 10**6, MOMENT * 10**6 + 10**6], pa.timestamp("us", tz="UTC")),
        pa.array([MOMENT * 10**9 + 7, MOMENT * 10**9 + 10**9], pa.timestamp("ns")),
        pa.array([str(MOMENT), str(MOMENT + 1)]),
        pa.array(["2011-03-13T07:06:40Z", "2011-03-13T08:06:41+01:00"]),
        pa.array([Decimal(MOMENT), Decimal(MOMENT + 1)]),
    ],
)
def test_times_of_any_type_are_seconds_since_1970(tmp_path, column):
    table = pa.table({"user": ["u", "u"], "item": ["x", "y"], "domain": ["a", "a"], "timestamp": column})
    pq.write_table(table, tmp_path / "t.parquet")

    assert read(tmp_path / "t.parquet").times_N.tolist() == [MOMENT, MOMENT + 1]


@pytest.mark.parametrize(("factor", "unit"), [(1000, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")])
def test_files_whose_units_differ_are_brought_to_seconds_and_it_is_said(tmp_path, factor, unit):
    (tmp_path / "a.csv").write_text(f"user,item,timestamp\nu,x,{MOMENT}\n")
    (tmp_path / "b.csv").write_text(f"user,item,timestamp\nu,y,{(MOMENT + 1) * factor}\n")
    found = read(tmp_path / "a.csv", tmp_path / "b.csv")

    assert found.times_N.tolist() == [MOMENT, MOMENT + 1]
    assert any(f"times are read as {unit}" in note for note in found.notes)


def test_times_of_one_unit_stay_the_logs_own_numbers(tmp_path):
    (tmp_path / "t.csv").write_text(f"user,item,domain,timestamp\nu,x,a,{MOMENT * 1000 + 1}\n")
    found = read(tmp_path / "t.csv")

    assert (found.times_N.tolist(), found.time_unit) == ([MOMENT * 1000 + 1], "milliseconds")


@pytest.mark.parametrize("text", ["inf", "-Infinity", "nan"])
def test_an_infinite_time_is_a_bad_row(tmp_path, text):
    (tmp_path / "t.csv").write_text(f"user,item,domain,timestamp\nu,x,a,{text}\n")
    [bad] = read(tmp_path / "t.csv", share=1.0).bad_rows

    assert bad.reason == f"timestamp is not finite: {text!r}"


# -- Nothing silent


def previewed(tmp_path: Path, text: str, **config) -> list[str]:
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp\n" + text)
    shown: list = []
    prepare(tmp_path / "t.csv", tmp_path / "out", PreparationConfig(**KEEP_ALL, **config), show=shown.append)
    return list(shown[0].warnings)


def test_the_preview_counts_what_was_read(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp\nu,x,a,5\nu,y,b,6\nv,x,a,7\nw,z,a,9\n")
    shown: list = []
    prepare(tmp_path / "t.csv", tmp_path / "out", PreparationConfig(**KEEP_ALL), show=shown.append)
    [looks] = shown

    assert (looks.rows, looks.users, looks.items, looks.shared_users) == (4, 3, 3, 1)
    assert [(d.domain, d.rows, d.users, d.items, d.first, d.last) for d in looks.domains] == [
        ("a", 3, 3, 2, 5.0, 9.0),
        ("b", 1, 1, 1, 6.0, 6.0),
    ]
    assert looks.domains[1].user_share == pytest.approx(1 / 3)


def test_one_domain_only_is_warned_of(tmp_path):
    [warning] = previewed(tmp_path, "u,x,a,5\nu,y,a,6\n")

    assert "one domain only (a)" in warning


def test_domains_without_a_shared_user_are_warned_of(tmp_path):
    [warning] = previewed(tmp_path, "u,x,a,5\nu,z,a,7\nv,y,b,5\nv,w,b,8\n")

    assert "no user has rows in every domain" in warning


@pytest.mark.parametrize(
    ("factor", "cause"), [(1, "look at the time column"), (1000, "b is probably in milliseconds, a in seconds")]
)
def test_domains_whose_times_do_not_overlap_are_warned_of_with_the_likely_cause(tmp_path, factor, cause):
    later = "".join(f"u,y{n},b,{factor * (MOMENT + 100 + n)}\n" for n in range(9))
    earlier = "".join(f"u,x{n},a,{MOMENT + n}\n" for n in range(9))
    [warning] = previewed(tmp_path, earlier + later)

    assert "do not overlap: all of a user's a would come before every b" in warning
    assert cause in warning


@pytest.mark.parametrize(
    ("domains", "what"),
    [
        ([f"brand{n}" for n in range(200)], "the domain column has 200 values"),
        (["1.0", "2.0", "3.5", "5.0"] * 5, "the domain column holds numbers as ratings are"),
    ],
)
def test_a_domain_column_that_is_none_stops_the_preparation_before_it_writes(tmp_path, domains, what):
    text = "".join(f"u{n % 7},x{n},{domain},{n}\n" for n, domain in enumerate(domains))
    with pytest.raises(ImplausibleInputError, match=what):
        previewed(tmp_path, text)

    assert not (tmp_path / "out").exists()
    assert any(what in warning for warning in previewed(tmp_path, text, anyway=True))


def test_an_item_column_taken_for_the_domain_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,timestamp\n" + "".join(f"u{n % 3},x{n % 9},{n}\n" for n in range(40)))
    with pytest.raises(ImplausibleInputError, match="every item is a domain of its own"):
        prepare(
            tmp_path / "t.csv",
            tmp_path / "out",
            PreparationConfig(**KEEP_ALL, layout=Layout(columns=Columns(domain="item"))),
        )


def test_a_log_without_times_is_refused_with_advice(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain\nu,x,a\n")
    with pytest.raises(InputFormatError, match="no column for the time; name it with --columns time=NAME"):
        read(tmp_path / "t.csv")


def test_a_text_of_several_lines_is_one_row_and_its_blank_lines_are_no_bad_rows(tmp_path):
    (tmp_path / "t.csv").write_text('user,item,domain,timestamp,text\nu,x,a,5,"one\n\ntwo ""quoted"""\nu,y,a,6,\n')
    found = read(tmp_path / "t.csv")

    assert (len(found.times_N), found.bad_rows) == (2, ())


@pytest.mark.parametrize("block", [64, 100, 1 << 20])
def test_rows_and_bad_rows_do_not_depend_on_where_blocks_end(tmp_path, monkeypatch, block):
    body = "".join(
        f'u{n},x{n},a,{n},"text\nof {n}"\n' if n % 3 else f'u{n},"x{n},a,{n},open\nu{n},y,a,{n},\n' for n in range(60)
    )
    (tmp_path / "t.csv").write_text(f"user,item,domain,timestamp,text\n{body}")
    whole = read(tmp_path / "t.csv", share=1.0)
    monkeypatch.setattr("models.data.reading.text_blocks.BLOCK_BYTES", block)
    parts = read(tmp_path / "t.csv", share=1.0)

    assert rows_of(parts) == rows_of(whole)
    assert parts.bad_rows == whole.bad_rows
    assert len(whole.times_N) == 60
    assert np.isfinite(whole.times_N).all()
