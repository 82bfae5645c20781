"""One reader: `taesar prepare` and jobs read the same rows of any file, and name the same bad ones."""

from pathlib import Path

import polars as pl
import pytest

from app.jobs.formats import BadRow, SequenceRow, SourceLimits
from app.jobs.reading_process import read_in_process
from app.jobs.sources import SourceRoots
from models.data.reading.interactions import read_interactions
from models.data.reading.layouts import Layout
from models.data.reading.places import files_of
from tests.reader_fuzz import cases, problem_of, seeds

LAYOUTS = Path(__file__).parents[2] / "layouts"
LIMITS = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=1 << 30, max_items=4096)
HEADER = b"user,item,domain,timestamp\n"
CORPUS = {
    "open_quote.csv": b'user,item,domain,timestamp,review\nu,x,a,1,ok\nu,y,a,2,"never closed\nu,z,a,3,ok\nv,x,a,4,ok\n',
    "line_breaks.csv": b'user,item,domain,timestamp,review\r\nu,x,a,1,"two\r\n\r\nlines"\r\nu,y,a,2,ok\r\n',
    "blank_lines.csv": HEADER + b"\nu,x,a,1\n\n\r\nu,y,a,2\n\n",
    "padding.csv": b" user , item,domain ,timestamp\nu, x,a, 12 \n u,x,a,13\n",
    "infinite.csv": HEADER + b"u,x,a,inf\nu,y,a,-Infinity\nu,z,a,nan\nu,w,a,1e999\nu,v,a,5\n",
    "control.csv": HEADER + "u,a\x0bb,a,1\nu,c\x85d,a,2\nu,e\u2028f,a,3\nu,g\xa0h\u200ci,a,4\n".encode(),
    "lengths.csv": HEADER + b"u," + b"x" * 512 + b",a,1\nu," + b"y" * 513 + b",a,2\n" + b"z" * 600 + b",x,a,3\n",
    "not_utf_8.csv": HEADER + b"u,\xff,a,1\n\xff\xff\nu,y,a,2\nu,\xc3\xa9,\xe9,3\n",
    "carriage.csv": HEADER + b"u,x\ry,a,1\nu,z,a,2\r\n",
    "wide.csv": HEADER + b"u,x,a\nu,x,a,1,2\nu,y,a,2\n",
    "quotes.inter": b"user_id:token\titem_id:token\tdomain:token\ttimestamp:float\n"
    b'u\t"x\ta\t1\nu\ty"z"\ta\t2\nu\tNA\ta\t3\n',
    "types.jsonl": b'{"user": 1, "item": 1.0, "domain": "a", "timestamp": 1}\n'
    b'{"user": "1", "item": [1], "domain": "a", "timestamp": 2}\n'
    b'{"user": true, "item": null, "domain": "a", "timestamp": "x"}\nno json\n{"user": "\\ud800"}\n',
}


@pytest.mark.parametrize("name", sorted({**CORPUS, **seeds()}))
def test_a_file_is_read_alike_by_both_callers(tmp_path, name):
    (tmp_path / name).write_bytes({**CORPUS, **seeds()}[name])

    assert problem_of(tmp_path / name) is None


def test_mutated_files_are_read_alike_by_both_callers(tmp_path):
    """A small share of `make fuzz-reader`; Parquet, which may end a process, is left to that."""
    problems = {}
    for _, name, content in cases(250, seed=7):
        if not name.endswith(".parquet"):
            (tmp_path / name).write_bytes(content)
            problem = problem_of(tmp_path / name)
            if problem is not None:
                problems[content] = problem

    assert problems == {}


@pytest.mark.parametrize(
    "places",
    [
        ["food={}/headerless/ratings_Food.csv", "kitchen={}/headerless/ratings_Kitchen.csv"],
        ["food={}/milliseconds/Food.csv", "kitchen={}/milliseconds/Kitchen.csv"],
        ["food={}/jsonlines/reviews_Food_5.json.gz", "kitchen={}/jsonlines/reviews_Kitchen_5.json.gz"],
        ["{}/recbole"],
        ["{}/hive/domain=*/*.parquet"],
    ],
    ids=["headerless", "milliseconds", "jsonlines", "recbole", "hive"],
)
def test_a_job_reads_the_five_layouts_as_the_truth(places):
    """By the same places, as URIs under an allowed root; a user's items in the order of time."""
    roots = SourceRoots((f"file://{LAYOUTS}",))
    uris = [place.format(f"file://{LAYOUTS}") for place in places]
    rows = list(read_in_process(roots.files(uris, LIMITS), Layout(), LIMITS))
    truth = list(read_in_process(files_of([LAYOUTS / "truth.csv.gz"]), Layout(), LIMITS))

    assert not [row for row in rows if isinstance(row, BadRow)]
    assert _by_user(rows) == _by_user(truth)
    assert sum(row.num_rows for row in rows) == 600


def _by_user(rows: list[SequenceRow]) -> dict[str, list[tuple[str, str, str]]]:
    """Each user's (day, item, domain); items of one day in the order of their ids."""
    scale = 1000.0 if max(row.times[0] for row in rows) > 1e11 else 1.0
    return {
        row.user_id: sorted(
            (f"{time / scale:.0f}", item, domain)
            for time, item, domain in zip(row.times, row.item_ids, row.domains, strict=True)
        )
        for row in rows
    }


def test_a_float_column_names_the_items_that_integers_named(tmp_path):
    """A column of EANs that met a null on its way is of floats: the same items as in the text that was trained on."""
    columns = {"user": ["u"] * 3, "item": [4006381333901, 1, None], "domain": ["a"] * 3, "timestamp": [1, 2, 3]}
    table = pl.DataFrame(columns)
    table.with_columns(pl.col("item").cast(pl.Float64)).write_parquet(tmp_path / "floats.parquet")
    table.write_csv(tmp_path / "text.csv")
    found = [
        read_interactions([tmp_path / name], max_bad_row_share=1.0).ids.items.to_list()
        for name in ("floats.parquet", "text.csv")
    ]
    [bad, row] = read_in_process(files_of([tmp_path / "floats.parquet"]), Layout(), LIMITS)

    assert found == [["1", "4006381333901"]] * 2
    assert (bad.reason, row.item_ids) == ("missing item", ["4006381333901", "1"])
