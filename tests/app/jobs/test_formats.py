"""Reading a job's input: every format, every bad row with its line and reason, every limit."""

import csv
import gzip
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import RequestTooLargeError, UnsupportedFormatError
from app.jobs import formats
from app.jobs.formats import BadRow, SequenceRow, SourceLimits, format_of, read_rows
from models.data.reading.layouts import Layout
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts
from models.data.reading.text_blocks import MAX_LINE_BYTES
from models.errors import InputFormatError

LIMITS = SourceLimits(max_bytes=1 << 20, max_expanded_bytes=32 << 20, max_items=5)
GOOD = {"user_id": "A1", "items": [{"item_id": "b1", "domain": "books"}, {"item_id": "f1", "domain": "food"}]}
ROW = SequenceRow(1, "A1", ["b1", "f1"], ["books", "food"])


def read(content, source_format, limits=LIMITS, **layout):
    file = InputFile(FileFacts(""), lambda: io.BytesIO(content), len(content))
    return list(read_rows([file], Layout(input_format=source_format, **layout), limits))


def check_format(file, source_format, limits):
    return formats.check_format(file, FileFacts(""), Layout(input_format=source_format), limits)


def lines(*rows):
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def parquet(columns, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


INTERACTIONS = "user_id,item_id,domain,timestamp\nA1,b1,books,10\nA1,f1,food,20\nA2,k1,kitchen,5\n"
TWO_USERS = [
    SequenceRow(2, "A1", ["b1", "f1"], ["books", "food"], 2, [10.0, 20.0]),
    SequenceRow(4, "A2", ["k1"], ["kitchen"], 1, [5.0]),
]


def test_ndjson_lines_are_sequences():
    assert read(lines(GOOD), "ndjson") == [ROW]


def test_a_last_line_without_its_end_an_empty_line_and_a_byte_order_mark_change_nothing():
    assert read(b"\xef\xbb\xbf" + lines(GOOD).rstrip() + b"\r\n\n", "ndjson") == [ROW]


def test_csv_rows_of_one_user_are_one_sequence():
    assert read(INTERACTIONS.encode(), "csv") == TWO_USERS


def test_inter_is_csv_with_tabs_and_types():
    header = "user_id:token\titem_id:token\tdomain:token\ttimestamp:float\n"
    body = INTERACTIONS.split("\n", 1)[1].replace(",", "\t")

    assert read((header + body).encode(), "inter") == TWO_USERS


def test_parquet_interactions_equal_csv_but_for_the_header_line():
    rows = list(csv.DictReader(io.StringIO(INTERACTIONS)))
    found = read(parquet({name: [row[name] for row in rows] for name in rows[0]}), "parquet")

    assert [(row.user_id, row.item_ids, row.domains, row.line) for row in found] == [
        (row.user_id, row.item_ids, row.domains, row.line - 1) for row in TWO_USERS
    ]


def test_parquet_sequences_are_two_lists():
    content = parquet({"user_id": ["A1"], "item_ids": [["b1", "f1"]], "domains": [["books", "food"]]})

    assert read(content, "parquet") == [ROW]


def test_timestamps_sort_a_users_rows_and_equal_ones_keep_their_order():
    content = "user_id,item_id,domain,timestamp\nA,late,d,9\nA,first,d,1\nA,second,d,1\n"
    [row] = read(content.encode(), "csv")

    assert row.item_ids == ["first", "second", "late"]


def test_dates_of_iso_8601_sort_among_numbers_as_seconds_since_1970():
    content = "user_id,item_id,domain,timestamp\nA,c,d,1970-01-02T00:00:00Z\nA,b,d,1970-01-01 23:00:00\nA,a,d,82799\n"
    columns = {"user_id": ["A", "A"], "item_id": ["late", "early"], "domain": ["d", "d"]}
    times = pa.array([2, 1], pa.timestamp("s"))

    assert read(content.encode(), "csv") == [
        SequenceRow(2, "A", ["a", "b", "c"], ["d"] * 3, 3, [82799.0, 82800.0, 86400.0])
    ]
    assert read(parquet(columns | {"timestamp": times}), "parquet") == [
        SequenceRow(1, "A", ["early", "late"], ["d"] * 2, 2, [1.0, 2.0])
    ]


def test_the_columns_may_be_called_as_in_the_input_of_prepare():
    prepared = INTERACTIONS.replace("user_id,item_id", "user,item")
    columns = {"user": ["A1", "A1", "A2"], "item": ["f1", "b1", "k1"], "domain": ["food", "books", "kitchen"]}

    assert read(prepared.encode(), "csv") == TWO_USERS
    assert [row.item_ids for row in read(parquet({**columns, "timestamp": [20, 10, 5]}), "parquet")] == [
        ["b1", "f1"],
        ["k1"],
    ]
    assert read(b"user_id,user,item_id,domain\nA,name,x,d\n", "csv") == [SequenceRow(2, "name", ["x"], ["d"])]
    with pytest.raises(InputFormatError, match="no column for the item; columns found: user, thing, domain"):
        read(b"user,thing,domain\n", "csv")


def test_without_timestamps_the_order_of_the_file_counts():
    [row] = read(b"domain,item_id,user_id,extra\nd,z,A,1\nd,a,A,2\n", "csv")

    assert row.item_ids == ["z", "a"]


@pytest.mark.parametrize("source_format", ["ndjson", "csv"])
def test_gzip_is_seen_by_its_content(source_format):
    content = lines(GOOD) if source_format == "ndjson" else INTERACTIONS.encode()

    assert read(gzip.compress(content), source_format) == read(content, source_format)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"items": []}', "user_id is missing"),
        ('{"user_id": 7, "items": []}', "user_id: Input should be a valid string"),
        ('{"user_id": "A", "items": [{"item_id": "", "domain": "d"}]}', "items.0.item_id"),
        ('{"user_id": "A", "items": [{"item_id": "x"}]}', "items.0.domain: Field required"),
        ('{"user_id": "A", "items": [], "extra": 1}', "extra"),
        ('{"user_id": "a\\tb", "items": []}', "user_id holds a control character"),
        (json.dumps({"user_id": "A", "items": [GOOD["items"][0]] * 6}), "6 items; the limit is 5"),
        ("[1]", "Input should be an object"),
    ],
)
def test_a_bad_line_is_named_with_its_reason_and_the_others_are_read(bad, reason):
    first, second, third = read(lines(GOOD, bad, GOOD), "ndjson")

    assert (first.line, third.line) == (1, 3)
    assert second == BadRow(2, second.reason)
    assert reason in second.reason


def test_a_line_that_is_no_text_or_too_long_is_one_bad_row():
    content = b"\xfa\xfb\n" + b"x" * (MAX_LINE_BYTES + 10) + b"\n" + lines(GOOD)
    first, second, third = read(content, "ndjson")

    assert (first.line, second.line, third.line) == (1, 2, 3)
    assert "UTF-8" in first.reason
    assert "longer than" in second.reason
    assert isinstance(third, SequenceRow)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("A,x", "2 fields instead of 4"),
        ("A,,d,1", "missing item_id"),
        (",x,d,1", "missing user_id"),
        ("A,x,d,noon", "timestamp is neither a number nor a date of ISO 8601"),
        ("A,x,d,nan", "timestamp is not finite"),
        ('A,"x,d,1', "not a valid row"),
        (f"A,{'x' * 513},d,1", "item_id is longer than 512"),
    ],
)
def test_a_bad_interaction_is_left_out_of_its_users_sequence(row, reason):
    bad, good = read(f"user_id,item_id,domain,timestamp\nA,a,d,1\n{row}\nA,b,d,2\n".encode(), "csv")

    assert bad == BadRow(3, bad.reason)
    assert reason in bad.reason
    assert good == SequenceRow(2, "A", ["a", "b"], ["d", "d"], 2, [1.0, 2.0])


def test_a_user_whose_rows_stand_apart_is_one_sequence():
    found = read(b"user_id,item_id,domain\nA,a,d\nB,b,d\nA,c,d\n", "csv")

    assert found == [SequenceRow(2, "A", ["a", "c"], ["d", "d"], 2), SequenceRow(3, "B", ["b"], ["d"], 1)]


def test_a_user_with_too_many_interactions_is_one_bad_row():
    content = "user_id,item_id,domain\n" + "A,x,d\n" * 6 + "B,y,d\n"
    bad, good = read(content.encode(), "csv")

    assert bad == BadRow(2, "user 'A' has 6 items; the limit is 5", num_rows=6)
    assert good.user_id == "B"


def test_parquet_lists_that_do_not_fit_are_bad_rows():
    content = parquet(
        {
            "user_id": ["A", "B", "C", None],
            "item_ids": [["x"], ["x", "y"], None, ["x"]],
            "domains": [["d"], ["d"], ["d"], ["d"]],
        }
    )
    found = read(content, "parquet")

    assert [type(row) for row in found] == [SequenceRow, BadRow, BadRow, BadRow]
    assert [row.line for row in found] == [1, 2, 3, 4]


def test_a_null_time_in_parquet_is_a_bad_row_and_moves_nothing():
    columns = {"user_id": ["A", "A", "A"], "item_id": ["x", "y", "z"], "domain": ["d"] * 3, "timestamp": [5, None, 7]}

    assert read(parquet(columns), "parquet") == [
        BadRow(2, "missing timestamp"),
        SequenceRow(1, "A", ["x", "z"], ["d", "d"], 2, [5.0, 7.0]),
    ]


@pytest.mark.parametrize(
    "items",
    [
        pytest.param(pa.array([b"\xff", b"y"]).view(pa.string()), id="text"),
        pytest.param(pa.array([b"\xff", b"y"]), id="bytes"),
    ],
)
def test_parquet_text_that_is_not_utf_8_is_a_bad_row(items):
    content = parquet({"user_id": ["A", "A"], "item_id": items, "domain": ["d", "d"]})

    assert read(content, "parquet") == [BadRow(1, "not UTF-8: item_id"), SequenceRow(2, "A", ["y"], ["d"])]


def test_parquet_times_may_be_finer_than_pythons():
    times = pa.array([1_300_000_000_000_002_000, 1_300_000_000_000_001_007], pa.timestamp("ns"))
    content = parquet({"user_id": ["A", "A"], "item_id": ["late", "early"], "domain": ["d", "d"], "timestamp": times})

    assert [row.item_ids for row in read(content, "parquet")] == [["early", "late"]]


@pytest.mark.parametrize(
    ("content", "source_format", "reason"),
    [
        (b"PK\x03\x04rest", "ndjson", "a zip archive"),
        (b"PAR1rest", "csv", "a Parquet file"),
        (b"BZh91AY", "ndjson", "a bzip2 file"),
        (b'{"user_id": "A"}\n', "csv", "no column"),
        (b"user_id,item_id\nA,x\n", "csv", "no column for the domain"),
        (b"no parquet at all", "parquet", "not a readable Parquet file"),
        (b"", "parquet", "not a readable Parquet file"),
    ],
)
def test_a_file_of_another_format_is_refused_as_a_whole(content, source_format, reason):
    with pytest.raises(InputFormatError, match=reason):
        check_format(io.BytesIO(content), source_format, LIMITS)


def test_parquet_without_the_columns_is_refused_and_says_which():
    with pytest.raises(InputFormatError, match="columns found: a, b"):
        read(parquet({"a": [1], "b": [2]}), "parquet")


def test_parquet_whose_lists_are_none_is_refused():
    with pytest.raises(InputFormatError, match="item_ids is string, not a list"):
        read(parquet({"user_id": ["A"], "item_ids": ["x"], "domains": ["d"]}), "parquet")


def test_damaged_gzip_and_parquet_are_refused():
    with pytest.raises(InputFormatError, match="gzip"):
        read(gzip.compress(lines(*[GOOD] * 1000))[:-20], "ndjson")
    whole = parquet({"user_id": ["A"] * 9000, "item_id": [str(i) for i in range(9000)], "domain": ["d"] * 9000})
    with pytest.raises(InputFormatError):
        read(whole[:100] + bytes(2000) + whole[2100:], "parquet")


def test_checking_the_format_leaves_the_file_at_its_start():
    file = io.BytesIO(lines(GOOD))
    check_format(file, "ndjson", LIMITS)

    assert file.tell() == 0


def test_checking_the_format_reads_a_few_megabytes_only():
    """A request waits for it: 64 MiB of empty lines are not read to their end, and say nothing against the format."""
    limits = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=1 << 30, max_items=5)

    class Counted(io.BytesIO):
        read_bytes = 0

        def read(self, size=-1):
            content = super().read(size)
            self.read_bytes += len(content)
            return content

    file = Counted(b"\n" * (64 << 20))
    check_format(file, "ndjson", limits)

    assert file.read_bytes < 16 << 20
    assert file.tell() == 0


def test_a_gzip_bomb_stops_at_the_limit():
    """64 MiB of blanks in 64 KiB: read until the limit, not to its end."""
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < 1 << 17
    with pytest.raises(RequestTooLargeError, match="TAESAR_MAX_EXPANDED_BYTES"):
        read(bomb, "ndjson")


def test_a_gzip_bomb_of_one_line_costs_no_memory():
    limits = SourceLimits(max_bytes=1 << 20, max_expanded_bytes=256 << 20, max_items=5)
    [bad] = read(gzip.compress(b"x" * (64 << 20)), "ndjson", limits)

    assert "longer than" in bad.reason


def test_a_parquet_bomb_is_refused_by_what_its_footer_says():
    """20 million equal values take a few kilobytes in the file."""
    count = 20_000_000
    values = pa.DictionaryArray.from_arrays(_zeros(count), ["x"])
    content = parquet({"user_id": values, "item_id": values, "domain": values})

    assert len(content) < 1 << 18
    with pytest.raises(RequestTooLargeError, match="TAESAR_MAX_EXPANDED_BYTES"):
        read(content, "parquet")


def _zeros(count):
    return pa.Array.from_buffers(pa.int32(), count, [None, pa.py_buffer(bytes(4 * count))])


def test_a_parquet_bomb_of_long_values_stops_while_it_is_decoded():
    """One long value, repeated: the footer counts it once, decoding would repeat it 10,000 times."""
    indices = _zeros(10_000)
    values = pa.DictionaryArray.from_arrays(indices, ["x" * 100_000])
    content = parquet({"user_id": values, "item_id": values, "domain": values})

    with pytest.raises(RequestTooLargeError, match="TAESAR_MAX_EXPANDED_BYTES"):
        read(content, "parquet")


def measured(tmp_path, content, call):
    """What *call* of app.jobs.formats prints of a file, and the megabytes that the process took for it."""
    path = tmp_path / "measured.parquet"
    path.write_bytes(content)
    program = f"""
import resource
from app.jobs.formats import SourceLimits, check_format, read_rows
from models.data.reading.layouts import Layout
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts
parquet, facts = Layout(input_format="parquet"), FileFacts("")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
limits = SourceLimits(max_bytes=1 << 33, max_expanded_bytes=1 << 35, max_items=4096)
before = peak()
file = InputFile(facts, lambda: open({str(path)!r}, "rb"), 0)
print({call})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, megabytes = done.stdout.splitlines()
    return found, int(megabytes)


LONG = "x" * (6 << 20)
READ_ALL = "[sum(row.reason.endswith('is longer than 512 characters') for row in read_rows([file], parquet, limits))]"


def long_users(count=256):
    """1.5 GB of user ids in 1.4 kB."""
    users = pa.DictionaryArray.from_arrays(_zeros(count), [LONG])
    columns = {"user_id": users, "item_ids": [["b1"]] * count, "domains": [["books"]] * count}
    return parquet(columns, compression="zstd")


def long_items(count=256):
    """As much again in lists."""
    items = pa.ListArray.from_arrays(range(count + 1), pa.DictionaryArray.from_arrays(_zeros(count), [LONG]))
    columns = {"user_id": [str(i) for i in range(count)], "item_ids": items, "domains": [["books"]] * count}
    return parquet(columns, compression="zstd")


@pytest.mark.parametrize("make", [long_users, long_items])
@pytest.mark.parametrize(
    ("call", "expected"),
    [("check_format(file.open(), facts, parquet, limits)", "parquet"), (READ_ALL, "[256]")],
    ids=["check", "read"],
)
def test_a_long_value_that_a_small_parquet_file_repeats_is_never_written_out(tmp_path, make, call, expected):
    content = make()
    found, megabytes = measured(tmp_path, content, call)

    assert len(content) < 4096
    assert found == expected
    assert megabytes < 400


def test_a_parquet_list_that_is_too_long_is_a_bad_row_and_not_written_out(tmp_path):
    count = 5_000_000
    values = pa.DictionaryArray.from_arrays(_zeros(count), ["x"])
    lists = pa.ListArray.from_arrays([0, count, count], values)
    content = parquet({"user_id": ["A", "B"], "item_ids": lists, "domains": lists})
    found, megabytes = measured(
        tmp_path, content, "[getattr(row, 'reason', 'good') for row in read_rows([file], parquet, limits)]"
    )

    assert found == "['5000000 items; the limit is 4096', 'good']"
    assert megabytes < 300


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"MAX_GROUP_VALUES": 99}, "100 values of .*: write smaller row groups"),
        ({"MAX_GROUP_BYTES": 999_999}, "100 values of .*: write smaller row groups"),
        ({"MAX_LONG_TEXT_BYTES": 100_000}, "100 values of .* bytes are too long to be names"),
    ],
)
def test_a_parquet_row_group_that_no_batch_makes_small_is_refused_by_its_footer(monkeypatch, bounds, reason):
    content = parquet(
        {"user_id": [f"{i}{'x' * 10_000}" for i in range(100)], "item_id": ["i"] * 100, "domain": ["d"] * 100}
    )
    for name, bound in bounds.items():
        monkeypatch.setattr(f"models.data.reading.parquet.{name}", bound)
    with pytest.raises(InputFormatError, match=reason):
        check_format(io.BytesIO(content), "parquet", LIMITS)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_parquet_texts_in_an_encoding_that_expands_are_refused_by_name(encoding):
    columns = {"user_id": ["A"], "item_id": ["x"], "domain": ["d"]}
    content = parquet(columns, use_dictionary=False, column_encoding=dict.fromkeys(columns, encoding))
    with pytest.raises(InputFormatError, match=f"the encoding {encoding} is not read"):
        check_format(io.BytesIO(content), "parquet", LIMITS)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user_id": [{"a": "A"}]}, "column user_id holds struct<.*neither text nor numbers"),
        ({"item_id": [["x"]]}, "column item_id holds list<.*neither text nor numbers"),
        ({"timestamp": [{"t": 1}]}, "column timestamp holds struct<.*neither text nor numbers"),
        ({"item_id": pa.array([b"x"], pa.binary(1))}, "column item_id holds fixed_size_binary"),
    ],
)
def test_parquet_columns_of_nested_values_are_refused(columns, reason):
    content = parquet({"user_id": ["A"], "item_id": ["x"], "domain": ["d"]} | columns)
    with pytest.raises(InputFormatError, match=reason):
        check_format(io.BytesIO(content), "parquet", LIMITS)


def test_parquet_lists_of_nested_values_are_refused():
    content = parquet({"user_id": ["A"], "item_ids": [[{"id": "x"}]], "domains": [["d"]]})
    with pytest.raises(InputFormatError, match=r"column item_ids holds struct<.*neither text nor numbers"):
        check_format(io.BytesIO(content), "parquet", LIMITS)


def test_a_parquet_column_that_is_there_twice_is_refused():
    sink = io.BytesIO()
    arrays = [pa.array([value]) for value in ("A", "B", "x", "d")]
    pq.write_table(pa.Table.from_arrays(arrays, ["user_id", "user_id", "item_id", "domain"]), sink)
    with pytest.raises(InputFormatError, match="more than one column named 'user_id'"):
        check_format(sink, "parquet", LIMITS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 700},
        {"use_dictionary": False},
        {"dictionary_pagesize_limit": 512},
        {"data_page_version": "2.0"},
        {"compression": "none"},
    ],
)
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_is_read_alike_however_it_was_written(options, text):
    count = 5000
    items = [[f"i{n * n % 1009}" for n in range(row, row + row % 4)] for row in range(count)]
    items[7] = None
    columns = {
        "user_id": pa.array([f"u{row}" for row in range(count)], text),
        "item_ids": pa.array(items, pa.list_(text)),
        "domains": pa.array([["d"] * len(row or ()) for row in items], pa.large_list(text)),
    }
    found = read(parquet(columns, **options), "parquet")

    assert found[7] == BadRow(8, "item_ids and domains are not two lists of the same length")
    assert [row for row in found if row.line != 8] == [
        SequenceRow(row + 1, f"u{row}", ids, ["d"] * len(ids)) for row, ids in enumerate(items) if ids is not None
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_parquet_bytes_that_are_not_said_to_be_text_are_read_as_utf_8(kind):
    texts = {"user_id": "Ä1", "item_id": "b1", "domain": "books"}
    columns = {name: pa.array([value.encode()], kind) for name, value in texts.items()}
    lists = {
        "user_id": columns["user_id"],
        "item_ids": pa.array([[b"b1"]], pa.list_(kind)),
        "domains": pa.array([[b"books"]], pa.list_(kind)),
    }

    assert (
        read(parquet(columns), "parquet")
        == read(parquet(lists), "parquet")
        == [SequenceRow(1, "Ä1", ["b1"], ["books"])]
    )


def test_parquet_numbers_are_names_too():
    columns = {"user_id": [7, 7], "item_id": pa.array([1, 2], pa.int16()), "domain": ["d", "d"]}

    assert read(parquet(columns), "parquet") == [SequenceRow(1, "7", ["1", "2"], ["d", "d"], 2)]


@pytest.mark.parametrize(
    ("name", "stated", "expected"),
    [
        ("a.ndjson", None, "ndjson"),
        ("a.JSONL.gz", None, "ndjson"),
        ("a.csv.gz", None, "csv"),
        ("a.inter", None, "inter"),
        ("a.parquet", None, "parquet"),
        ("whatever", "csv", "csv"),
        ("part-00000", None, None),
    ],
)
def test_the_format_is_stated_or_in_the_name(name, stated, expected):
    assert format_of(name, stated) == expected


@pytest.mark.parametrize(("name", "stated"), [("a.zip", None), ("a.csv", "xlsx")])
def test_other_formats_are_not_supported(name, stated):
    with pytest.raises(UnsupportedFormatError):
        format_of(name, stated)
