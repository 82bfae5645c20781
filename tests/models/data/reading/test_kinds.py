"""Kinds of files that people have: each is read as it lies by `taesar prepare` and by jobs, or refused in words."""

import gzip
import json
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.jobs.formats import SequenceRow, SourceLimits, read_rows
from models.data.reading.inter_ids import inter_id
from models.data.reading.interactions import read_interactions
from models.data.reading.layouts import Layout, parse_condition, parse_separator, with_columns
from models.data.reading.places import files_of
from models.data.reading.preview import preview
from models.errors import BadRowsError, ConfigurationError, InputFormatError

HEADER = "user,item,domain,timestamp\n"
CSV = HEADER + "007,x,a,1300000000\n008,y,b,1300086400\n"
ROWS = [("007", "x", "a", 1300000000.0), ("008", "y", "b", 1300086400.0)]
MIDNIGHT = 1393891200.0
LIMITS = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=1 << 30, max_items=100)


def rows_of(place: Path | str, layout: Layout | None = None) -> list[tuple[str, str, str, float]]:
    """What both callers read, sorted; they must agree."""
    layout = layout or Layout()
    found = read_interactions([place], layout, max_bad_row_share=0.5)
    ids = found.ids
    columns = zip(found.users_N, found.items_N, found.domains_N, found.times_N, strict=True)
    prepared = sorted((ids.users[int(u)], ids.items[int(i)], ids.domains[int(d)], float(t)) for u, i, d, t in columns)
    read = [row for row in read_rows(files_of([place]), layout, LIMITS) if isinstance(row, SequenceRow)]
    of_job = [
        (row.user_id, item, domain, time)
        for row in read
        for item, domain, time in zip(row.item_ids, row.domains, row.times, strict=True)
    ]
    assert sorted(of_job) == prepared
    return prepared


def lines_of(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("carriage.csv", CSV.replace("\n", "\r\n").encode()),
        ("utf_16.csv", CSV.encode("utf-16")),
        ("utf_16.csv.gz", gzip.compress(CSV.encode("utf-16"), mtime=0)),
        ("quoted.csv", '"user","item","domain","timestamp"\n"007","x","a","1300000000"\n"008","y","b","1300086400"\n'),
        ("semicolons.csv", CSV.replace(",", ";")),
        ("excel.csv", "sep=;\n" + CSV.replace(",", ";")),
        ("hive.txt", CSV.replace(",", "\x01")),
        ("blanks.txt", CSV.replace(",", " ")),
        ("carets.txt", CSV.replace(",", "^")),
        ("spark.csv", 'user,item,domain,timestamp,title\n007,x,a,1300000000,"a \\"b\\", c"\n008,y,b,1300086400,d\n'),
        ("index.csv", ",user,item,domain,timestamp\n0,007,x,a,1300000000\n1,008,y,b,1300086400\n"),
        ("names.csv", "UserID,Item_Id,DOMAIN,eventTime\n007,x,a,1300000000\n008,y,b,1300086400\n"),
        ("dates.csv", HEADER + "007,x,a,2011-03-13 07:06:40 UTC\n008,y,b,2011-03-14T08:06:40+01:00\n"),
        ("slashes.csv", HEADER + "007,x,a,2011/3/13 7:06:40\n008,y,b,2011/03/14 07:06:40\n"),
        ("digits.csv", HEADER + "007,x,a,20110313070640\n008,y,b,20110314070640\n"),
    ],
)
def test_text_is_read_as_it_lies(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)

    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("time_format", "text"),
    [("%d/%m/%Y", "04/03/2014"), ("%m/%d/%Y", "03/04/2014"), ("%m %d, %Y", "03 4, 2014"), ("%Y%m%d", "20140304")],
)
def test_a_stated_time_format_says_what_day_it_was(tmp_path, time_format, text):
    (tmp_path / "a.csv").write_text(f'{HEADER}u,x,a,"{text}"\n')

    assert rows_of(tmp_path / "a.csv", Layout(time_format=time_format)) == [("u", "x", "a", MIDNIGHT)]


def test_a_day_that_might_be_a_month_is_no_time_until_its_format_is_stated(tmp_path):
    (tmp_path / "a.csv").write_text(f"{HEADER}u,x,a,03/04/2014\n")

    with pytest.raises(BadRowsError, match=r"'03/04/2014'; a time format such as %d/%m/%Y may be stated"):
        read_interactions([tmp_path / "a.csv"], max_bad_row_share=0.5)


def test_whole_numbers_that_are_dates_are_read_as_dates_and_said_to_be(tmp_path):
    table = pa.table({"user": ["u"], "item": ["x"], "domain": ["a"], "timestamp": [20140304]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read_interactions([tmp_path / "a.parquet"], max_bad_row_share=0.0)

    assert rows_of(tmp_path / "a.parquet") == [("u", "x", "a", MIDNIGHT)]
    assert found.notes == (f"{tmp_path / 'a.parquet'}: times are read as dates of 8 digits, such as 20140301",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_format": "%Y" * 32},
        {"time_format": "%Y %d %Y"},
        {"time_format": "dd/mm"},
        {"time_format": "%H:%M"},
        {"encoding": "utf-9"},
    ],
)
def test_a_layout_that_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        Layout(**wrong)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("time_format", [None, "%Y %m"])
def test_a_cell_of_a_megabyte_is_no_time_and_costs_no_square_of_it(tmp_path, name, time_format):
    """Blanks before something that is no zone took minutes for each 100 kB; the suite would not end."""
    text = f"2014{' ' * (1 << 20)}01"
    row = {"user": "u", "item": "x", "domain": "a", "timestamp": text}
    (tmp_path / name).write_bytes(lines_of([row]) if name.endswith("l") else f"{HEADER}u,x,a,{text}\n".encode())
    found = read_interactions([tmp_path / name], Layout(time_format=time_format), max_bad_row_share=1.0)

    assert [row.line for row in found.bad_rows] == [1 if name.endswith("l") else 2]


@pytest.mark.parametrize("text", [" " * 1024, "a" + " " * 1022 + "b", ">" + " " * 1023, "a=", "=5", "a", ""])
def test_what_is_no_condition_is_refused_however_long(text):
    """Blanks could be divided in as many ways as their cube: 16 conditions held a service for minutes."""
    with pytest.raises(ConfigurationError, match="is no condition such as"):
        parse_condition(text)


def test_a_stated_encoding_is_read_and_without_it_the_rows_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes((HEADER + "u,café,a,5\n").encode("latin-1"))

    assert rows_of(tmp_path / "a.csv", Layout(encoding="latin-1")) == [("u", "café", "a", 5.0)]
    with pytest.raises(BadRowsError, match="line 2: not UTF-8: item"):
        rows_of(tmp_path / "a.csv")


@pytest.mark.parametrize(("said", "meant"), [(r"\t", "\t"), ("tab", "\t"), (r"\x01", "\x01"), (", ", ", ")])
def test_a_shell_can_say_any_separator(said, meant):
    assert parse_separator(said) == meant


def test_keys_within_keys_are_columns_and_wrapped_values_are_unwrapped(tmp_path):
    rows = [{"user": {"id": "007"}, "item": {"$oid": "x"}, "domain": "a", "ts": {"$date": "2011-03-13T07:06:40Z"}}]
    (tmp_path / "a.jsonl").write_bytes(lines_of(rows))
    (tmp_path / "b.jsonl").write_bytes(lines_of([{"who": {"key": {"n": "007"}}, "item": "x", "domain": "a", "ts": 5}]))

    assert rows_of(tmp_path / "a.jsonl") == ROWS[:1]
    assert rows_of(tmp_path / "b.jsonl", with_columns(Layout(), "user=who.key.n")) == [("007", "x", "a", 5.0)]


@pytest.mark.parametrize(
    ("content", "says"),
    [('[{"user": "u"}]', "of an array, write each element on a line"), ("{'user': 'u'}", "single quotes are Python's")],
)
def test_what_looks_like_json_lines_and_is_not_says_what_to_do(tmp_path, content, says):
    (tmp_path / "a.json").write_text(content)

    with pytest.raises(InputFormatError, match=says):
        read_interactions([tmp_path / "a.json"], max_bad_row_share=1.0)


def test_blocks_of_an_item_and_its_ratings_are_read(tmp_path):
    """The Netflix prize's; the line that names the item is no row."""
    (tmp_path / "combined_data_1.txt").write_text("1:\n7,3,2005-09-06\n8,5,2005-05-13\n2:\n7,4,2005-10-19\nbroken\n")
    found = read_interactions([f"films={tmp_path}/combined_data_1.txt"], max_bad_row_share=0.5)

    assert [(row.line, row.reason) for row in found.bad_rows] == [(6, "1 fields instead of 3")]
    assert [row[:3] for row in rows_of(f"films={tmp_path}/combined_data_1.txt")] == [
        ("7", "1", "films"),
        ("7", "2", "films"),
        ("8", "1", "films"),
    ]


ODD_IDS = ['"lamp"', '"a" b', "50%", "50%25", "a b", "NA", "null", "x%2Fy", "%41", "c'd", "\u00a0e", "%C3%A9", "é"]


def test_an_inter_of_ours_and_of_others_names_the_same_items(tmp_path):
    """What Taesar writes is read as what it was; what others write is read as it stands, and never as another id."""
    header = "user_id:token\titem_id:token\tdomain:token\ttimestamp:float\n"
    ours = "".join(f"{inter_id(text)}\t{inter_id(text)}\ta\t{n}\n" for n, text in enumerate(ODD_IDS))
    others = "".join(f"{text}\t{text}\ta\t{n}\n" for n, text in enumerate(ODD_IDS) if text != "50%25")
    (tmp_path / "ours.inter").write_text(header + ours, encoding="utf-8")
    (tmp_path / "others.inter").write_text(header + others, encoding="utf-8")

    assert [row[1] for row in rows_of(tmp_path / "ours.inter")] == sorted(ODD_IDS)
    assert [row[1] for row in rows_of(tmp_path / "others.inter")] == sorted({*ODD_IDS} - {"50%25"})


@pytest.mark.parametrize("condition", ["is_click=1", "is_click=true", "is_click=True"])
@pytest.mark.parametrize("yes", ["1", "1.0", "true", "True"])
def test_a_condition_holds_of_every_spelling_of_true(condition, yes):
    assert parse_condition(condition).holds(yes)
    assert not parse_condition(condition).holds({"1": "0", "1.0": "0.0", "true": "false", "True": "False"}[yes])


def test_rows_of_a_partition_without_a_value_have_no_domain(tmp_path):
    for name in ("a", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"domain={name}").mkdir()
        (tmp_path / f"domain={name}" / "part-0.csv").write_text("user,item,time\nu,x,5\n")
    found = read_interactions([tmp_path], max_bad_row_share=0.5)

    assert [bad.reason for bad in found.bad_rows] == ["missing domain"]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_ids_that_a_float_may_have_rounded_are_warned_of(tmp_path, kind):
    for name, number in (("large", 2.0**60), ("small", 1000.0)):
        table = {"user": ["u"], "item": pa.array([number], kind), "domain": ["a"], "timestamp": [5]}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    large, small = (read_interactions([tmp_path / f"{n}.parquet"], max_bad_row_share=0.0) for n in ("large", "small"))

    assert ["different ids may have become one" in warning for warning in large.warnings] == [True]
    assert small.warnings == ()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a", "seen"])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_packed_text_is_read_by_both_callers_whatever_its_name_says(tmp_path, name, codec):
    """A job looks at JSON before it reads it: what looks must leave the file open."""
    rows = [dict(zip(HEADER.strip().split(","), row, strict=True)) for row in ROWS]
    content = lines_of(rows) if name in ("a.jsonl", "seen") else CSV.encode()
    path = tmp_path / (f"{name}.gz" if codec == "gzip" and "." in name else name)
    path.write_bytes(pa.Codec(codec).compress(content, asbytes=True))

    assert rows_of(path) == ROWS


@pytest.mark.parametrize(
    ("condition", "kept"),
    [("stars>=4", "xz"), ("stars>=4,5", "xz"), ("stars>4.5", "z"), ("stars=3.5", "y"), ("stars<10", "xy")],
)
def test_a_condition_compares_numbers_with_a_decimal_comma(tmp_path, condition, kept):
    (tmp_path / "a.csv").write_text("user;item;domain;time;stars\r\nu;x;a;1;4,5\r\nu;y;a;2;3,50\r\nu;z;a;3;10,0\r\n")
    layout = Layout(where=(parse_condition(condition),))

    assert "".join(row[1] for row in rows_of(tmp_path / "a.csv", layout)) == kept


@pytest.mark.parametrize(("value", "warned"), [("4", False), ("", False), ("good", True), ("1,234", True)])
def test_a_condition_that_orders_texts_for_want_of_a_number_is_warned_of(tmp_path, value, warned):
    (tmp_path / "a.csv").write_text(f'user,item,domain,time,stars\nu,x,a,1,5\nu,y,a,2,"{value}"\n')
    layout = Layout(where=(parse_condition("stars>=4"),))
    warnings = read_interactions([tmp_path / "a.csv"], layout, max_bad_row_share=0.0).warnings

    assert ["is no number, and was compared as a text" in warning for warning in warnings] == [True] * warned


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (["7.0", "8.0"], "whole numbers that were written as floats"),
        (["4.00638E+12", "x"], "numbers without their last digits"),
        (["7.0", "8.5"], None),
        (["12e5", "7"], None),
    ],
)
@pytest.mark.parametrize("column", ["user", "item"])
def test_texts_that_were_numbers_before_a_table_changed_them_are_warned_of(tmp_path, ids, says, column):
    fields = [(value, "x") if column == "user" else ("u", value) for value in ids]
    rows = "".join(f"{user},{item},a,5\n" for user, item in fields)
    (tmp_path / "a.csv").write_text(HEADER + rows)
    warnings = read_interactions([tmp_path / "a.csv"], max_bad_row_share=0.0).warnings

    assert [str(says) in warning and f"column {column} holds" in warning for warning in warnings] == [True] * bool(says)


def test_domains_that_differ_in_their_spelling_alone_are_warned_of(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "u,x,Books,1\nu,y,books,2\nu,z,films,3\n")
    warnings = preview(read_interactions([tmp_path / "a.csv"], max_bad_row_share=0.0)).warnings

    assert [warning.partition(" differ in")[0] for warning in warnings] == ["the domains 'Books', 'books'"]


@pytest.mark.parametrize("factor", [1_000, 1_000_000])
@pytest.mark.parametrize("every", [2, 40])
def test_times_of_two_units_within_a_domain_are_warned_of(tmp_path, factor, every):
    """A log whose writer went from seconds to milliseconds; whichever of the two a file's first rows speak for."""
    times = [(1_300_000_000 + n) * (factor if n % every else 1) for n in range(400)]
    rows = "".join(f"u{n % 7},i{n},{'ab'[n // 4 % 2]},{time}\n" for n, time in enumerate(times))
    (tmp_path / "a.csv").write_text(HEADER + rows)
    warnings = preview(read_interactions([tmp_path / "a.csv"], max_bad_row_share=0.0)).warnings

    assert any("in another unit than the others" in warning for warning in warnings)


def test_files_named_alike_in_a_folder_for_each_domain_are_of_those(tmp_path):
    for domain, item in (("toys", "x"), ("books", "y")):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "ratings.dat").write_text(f"u::{item}::5::1300000000\n")

    assert [row[1:3] for row in rows_of(tmp_path)] == [("x", "toys"), ("y", "books")]


def test_times_that_are_ratings_and_domains_with_blanks_are_warned_of(tmp_path):
    rows = "".join(f"u{n},i{n},{'ab'[n % 2]}, {n % 5 + 1}\n" for n in range(60))
    (tmp_path / "a.csv").write_text(HEADER + rows)
    (tmp_path / "b.csv").write_text(HEADER + rows.replace(",a,", ", a,"))
    plain, blanks = (
        preview(read_interactions([tmp_path / n], max_bad_row_share=0.0)).warnings for n in ("a.csv", "b.csv")
    )

    assert any("all times lie between 1 and 5: is their column one of ratings?" in warning for warning in plain)
    assert any("the domain ' a' begins or ends with a blank" in warning for warning in blanks)


def test_identifiers_of_the_type_uuid_are_their_texts(tmp_path):
    """As DuckDB and others write what PostgreSQL calls uuid."""
    ids = [UUID(int=number) for number in (7, 7, 1 << 127)]
    stored = pa.array([*(one.bytes for one in ids), None], pa.uuid())
    log = {"user": stored, "item": stored, "domain": ["a"] * 4, "timestamp": [1, 2, 3, 4]}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    first, second = str(ids[0]), str(ids[2])

    assert rows_of(tmp_path / "log.parquet") == [
        (first, first, "a", 1.0),
        (first, first, "a", 2.0),
        (second, second, "a", 3.0),
    ]


def test_a_job_reads_lists_of_the_type_uuid(tmp_path):
    ids = [UUID(int=number) for number in (7, 8)]
    lists = pa.ListArray.from_arrays([0, 2], pa.array([one.bytes for one in ids], pa.uuid()))
    columns = {"user_id": pa.array([ids[0].bytes], pa.uuid()), "item_ids": lists, "domains": [["a", "b"]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    [row] = read_rows(files_of([tmp_path / "a.parquet"]), Layout(), LIMITS)

    assert (row.user_id, list(row.item_ids)) == (str(ids[0]), [str(one) for one in ids])


def test_delta_encoded_parquet_is_read(tmp_path):
    table = pa.table({"user": ["007"], "item": ["x"], "domain": ["a"], "timestamp": [5]})
    encodings = {"user": "DELTA_BYTE_ARRAY", "item": "DELTA_LENGTH_BYTE_ARRAY", "domain": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=encodings)

    assert len(read_interactions([tmp_path / "a.parquet"], max_bad_row_share=0.0).times_N) == 1


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson"])
@pytest.mark.parametrize("content", [b"%PDF-1.4\n1 0 obj\n", b"ab\xd8", b"\xff\xfe\x00\xd8", b"\xff\xfea"])
def test_text_that_is_not_of_the_stated_encoding_is_said_to_be_none_of_it(tmp_path, name, content):
    """With and without UTF-16's mark: the decoder fails in two ways."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputFormatError, match="the text is not utf-16"):
        read_interactions([tmp_path / name], Layout(encoding="utf-16"), max_bad_row_share=0.5)
