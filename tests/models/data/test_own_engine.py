"""A log that another engine has thinned out becomes the dataset of the whole: the statements of docs/scale.md."""

import re
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from models.data.dataset import load_dataset
from models.data.preparation import PreparationConfig, prepare

SCALE = Path(__file__).parents[3] / "docs" / "scale.md"
EVERY_THRESHOLD = ("by_item_threshold", "by_user_threshold", "by_overlap")


def a_log(seed):
    """Three thousand rows of people of whom, and of whose items, many are too rare; twenty bought in one shop alone."""
    source = np.random.default_rng(seed)
    users = source.zipf(1.3, 3000) % 90
    domains = np.where(users < 20, 1, source.integers(0, 2, 3000))
    items = source.zipf(1.4, 3000) % 300
    return pl.DataFrame(
        {
            "user": [f"u{n:02d}" for n in users],
            "item": [f"{domain}-{item}" for domain, item in zip(domains, items, strict=True)],
            "domain": np.where(domains == 1, "books", "food"),
            "timestamp": source.integers(1_500_000_000, 1_500_300_000, 3000),
        }
    )


def thinned_out(log, folder):
    """What the statements of docs/scale.md write."""
    block = re.search(r"```sql\n(.*?)```", SCALE.read_text(encoding="utf-8"), re.DOTALL)
    first, again, write = (statement for statement in block[1].split(";") if statement.strip())
    with duckdb.connect() as engine:
        engine.register("log", log.to_arrow())
        engine.execute(first)
        rows, before = engine.execute("SELECT count(*) FROM kept").fetchone()[0], None
        while rows != before:
            engine.execute(again)
            rows, before = engine.execute("SELECT count(*) FROM kept").fetchone()[0], rows
        engine.execute(write.replace("'kept'", f"'{folder / 'kept'}'"))
    return folder / "kept" / "domain=*" / "*.parquet", rows


@pytest.mark.parametrize("max_length", [128, 20], ids=["uncut", "cut"])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_the_same_dataset_file_by_file(tmp_path, seed, max_length):
    log = a_log(seed)
    log.write_parquet(tmp_path / "log.parquet")
    config = PreparationConfig(max_length=max_length)
    whole = prepare(tmp_path / "log.parquet", tmp_path / "whole", config)
    kept, num_rows = thinned_out(log, tmp_path)
    prepare([str(kept)], tmp_path / "thinned", config)
    first, second = load_dataset(tmp_path / "whole"), load_dataset(tmp_path / "thinned")
    files = set(first.manifest["files"]) - {"waiting.parquet"}

    assert all(getattr(whole.removed, rule) > 0 for rule in EVERY_THRESHOLD)
    assert num_rows == whole.before_cut.interactions
    assert first.fingerprint == second.fingerprint
    assert {name: first.manifest["files"][name] for name in files} == {
        name: second.manifest["files"][name] for name in files
    }
