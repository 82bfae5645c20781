"""Every registered output format: the same interactions come back from each; identifiers stay themselves."""

from __future__ import annotations

import csv
import io
import json
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pytest

from models.data.reading.inter_ids import MISSING_WORDS
from models.exports.as_parquet import write_parts
from models.exports.as_recbole import write_recbole
from models.exports.encoding import HeldOutItem, TrainingData, interactions_schema
from models.exports.export_formats import FILE_FORMATS, FORMATS, load_format

ROWS = [
    ("u 1", "NA", 1_400_000_000.0, "kept", None, None, None),
    ("u 1", '"quoted"', 1_400_000_000.0, "replaced", "50%", "books", -1.5),
    ("u 1", "=1+1", 1_400_000_000.5, "kept", None, None, None),
    ("null", "é\u200c", 3.0, "replaced", "a,b", "books", None),
]
SCHEMA = interactions_schema(carried=["rating"])
TABLE = pa.table([*map(list, zip(*ROWS, strict=True)), ["5", None, "4", "NA"]], schema=SCHEMA)


def written(name: str) -> bytes:
    encode = load_format(name).interactions
    assert encode is not None
    return b"".join(encode(SCHEMA, iter([TABLE.slice(0, 3), TABLE.slice(3)])))


def test_every_format_is_named_once_and_loads() -> None:
    for name, entry in FORMATS.items():
        chosen = load_format(name)
        assert (chosen.interactions is not None) == bool(entry.suffix and entry.media_type)
        assert chosen.interactions is not None or chosen.folder is not None


def test_parquet_gives_back_every_row() -> None:
    assert pl.read_parquet(io.BytesIO(written("parquet"))).rows() == pl.DataFrame(TABLE).rows()


def test_ndjson_gives_back_every_row() -> None:
    rows = [json.loads(line) for line in written("ndjson").decode().splitlines()]
    assert [tuple(row.values()) for row in rows] == pl.DataFrame(TABLE).rows()


def test_csv_gives_back_every_identifier_and_time_as_it_was() -> None:
    """Formulas of spreadsheets included: an id that were changed would be another one."""
    header, *rows = csv.reader(io.StringIO(written("csv").decode()))
    assert header == SCHEMA.names
    assert [(row[0], row[1]) for row in rows] == [(row[0], row[1]) for row in ROWS]
    assert [row[2] for row in rows] == ["1400000000", "1400000000", "1400000000.5", "3"]
    assert [row[4:] for row in rows][:2] == [["", "", "", "5"], ["50%", "books", "-1.5", ""]]


def test_inter_hides_what_its_readers_would_take_for_something_else() -> None:
    header, *rows = [line.split("\t") for line in written("inter").decode().splitlines()]
    assert header[:3] == ["user_id:token", "item_id:token", "timestamp:float"]
    assert header[-2:] == ["score:float", "rating:token"]
    assert [(unquote(row[0]), unquote(row[1])) for row in rows] == [(row[0], row[1]) for row in ROWS]
    assert not MISSING_WORDS.intersection(field for row in rows for field in row if field)
    assert not any('"' in field or " " in field for row in rows for field in row)


@pytest.mark.parametrize(("name", "time"), [("rectools", "datetime"), ("replay", "timestamp")])
def test_a_librarys_frame_orders_items_of_one_time_as_the_sequence_does(name, time) -> None:
    frame = pl.read_parquet(io.BytesIO(written(name)))
    of_one = frame.filter(pl.col("user_id") == "u 1").sort(time)

    assert of_one["item_id"].to_list() == ["NA", '"quoted"', "=1+1"]
    assert of_one[time].is_unique().all()
    assert of_one[time].cast(pl.Int64).to_list() == [10**18 * 7 // 5, 10**18 * 7 // 5 + 1, 14 * 10**17 + 5 * 10**8]


def test_without_times_a_librarys_frame_is_in_the_order_of_the_sequences() -> None:
    encode = load_format("replay").interactions
    assert encode is not None
    untimed = TABLE.set_column(2, SCHEMA.field("timestamp"), pa.nulls(4, pa.float64()))
    frame = pl.read_parquet(io.BytesIO(b"".join(encode(SCHEMA, iter([untimed])))))

    assert frame.sort("user_id", "timestamp")["item_id"].to_list() == [row[1] for row in [ROWS[3], *ROWS[:3]]]


def test_parts_are_bounded_and_in_order(tmp_path) -> None:
    num_rows = write_parts(tmp_path / "parts", SCHEMA, iter([TABLE, TABLE, TABLE]), part_rows=5)
    parts = [pl.read_parquet(path) for path in sorted((tmp_path / "parts").iterdir())]

    assert num_rows == 12
    assert [part.height for part in parts] == [5, 5, 2]
    assert pl.concat(parts).equals(pl.concat([pl.DataFrame(TABLE)] * 3))


def test_no_rows_are_one_part_with_columns(tmp_path) -> None:
    assert write_parts(tmp_path / "parts", SCHEMA, iter([])) == 0
    assert pl.read_parquet(tmp_path / "parts" / "part-00000.parquet").columns == SCHEMA.names


@pytest.mark.parametrize("prefixes", [False, True])
def test_recbole_gets_rows_that_end_with_what_to_predict(tmp_path, prefixes) -> None:
    data = TrainingData(
        target="Food/Drink",
        rows=lambda: [("u", ["a", "b", "c"]), ("v", ["a", "NA"])],
        schema=SCHEMA,
        interactions=lambda: iter([TABLE]),
        validation=lambda: [HeldOutItem("u", ["a", "b", "c"], "d", 1.0), HeldOutItem("w", [], "a", 1.0)],
        test=lambda: [HeldOutItem("u", ["a", "b", "c", "d"], "e", 2.0)],
        prefixes=prefixes,
        directory=tmp_path / "it's",
    )
    write_recbole(data, tmp_path)
    folder = tmp_path / "Food%2FDrink"
    parts = {
        part: (folder / f"Food%2FDrink.{part}.inter").read_text().splitlines()[1:]
        for part in ("train", "valid", "test")
    }
    configuration = (tmp_path / "Food%2FDrink.yaml").read_text()

    assert parts == {
        "train": [*(["u\ta\tb"] if prefixes else []), "u\ta b\tc", "v\ta\t%4EA"],
        "valid": ["u\ta b c\td"],
        "test": ["u\ta b c d\te"],
    }
    assert "MAX_ITEM_LIST_LENGTH: 4\n" in configuration
    assert f"data_path: '{tmp_path}/it''s'\n" in configuration


def test_every_file_format_has_a_suffix_of_its_own() -> None:
    assert len({entry.suffix for entry in FILE_FORMATS.values()}) == len(FILE_FORMATS)
