"""Preparation out of core: the bytes of the one in memory, whatever comes at a time; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.out_of_core.bounded_preparation import prepare_in_bounded_memory
from models.data.out_of_core.memory_share import MemoryShare
from models.data.out_of_core.preparation_choice import plan_preparation
from models.data.out_of_core.temporary_folder import temporary_folder
from models.data.preparation import PreparationConfig, prepare
from models.data.preparation_report import PreparationReport
from models.data.reading.layouts import Layout, parse_condition
from models.errors import ConfigurationError, DiskTooSmallError, ModelError
from models.memory_sizes import parse_size
from tests.prepared_tables import REPOSITORY, SAMPLE

ENGINE_BYTES = 64 << 20
SMALL = MemoryShare(ENGINE_BYTES, engine_threads=1, chunk_rows=7)
SMALL_CHUNKS = replace(SMALL, chunk_rows=5000)


def content(folder: Path) -> dict[str, object]:
    """Every file's bytes; of the manifest, all but when it was made and what it is called."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset.json"
    }
    manifest = json.loads((folder / "dataset.json").read_text())
    return found | {"manifest": manifest | {"created": "", "name": ""}}


def both(
    folder: Path, inputs: list[str | Path], config: PreparationConfig, share: MemoryShare = SMALL
) -> tuple[object, object]:
    """What either way makes of *inputs*: report, preview and files, or the error's words."""
    results: list[object] = []
    for way in ("memory", "disk"):
        out = Path(tempfile.mkdtemp(dir=folder)) / way
        shown: list[object] = []
        try:
            report: PreparationReport
            if way == "memory":
                report = prepare(inputs, out, config, show=shown.append)
            else:
                report = prepare_in_bounded_memory(inputs, out, config, share, show=shown.append)
        except ModelError as error:
            results.append((type(error), str(error)))
            assert [path.name for path in out.parent.iterdir()] == []
        else:
            results.append((report, shown, content(out)))
            assert [path.name for path in out.parent.iterdir()] == [way]
    return results[0], results[1]


# -- The same bytes

DOMAINS = ("b", "a", "ä")
row_strategy = st.tuples(
    st.integers(0, 6).map(lambda number: ("u{}", "ü{}", "U{}")[number % 3].format(number)),
    st.integers(0, 8),
    st.integers(0, 19).map(lambda number: None if number else "a"),  # now and then another domain than the item's
    st.sampled_from(["0", "-0.0", "1", "1.5", "2", "3", "86400", "-4", "1e3"]),
)
broken_strategy = st.sampled_from(["u1,,a,1", "u1,i1,a,soon", "u1,i1", ""])
lines_strategy = st.lists(
    st.one_of(
        row_strategy.map(
            lambda row: f"{row[0]},i{row[1]},{row[2] or DOMAINS[row[1] % len(DOMAINS)]},{row[3]}",
        ),
        row_strategy.map(lambda row: f"{row[0]},i{row[1]},{DOMAINS[row[1] % len(DOMAINS)]},{row[3]}"),
        row_strategy.map(lambda row: f"{row[0]},i{row[1]},{DOMAINS[row[1] % len(DOMAINS)]},{row[3]}"),
        broken_strategy,
    ),
    min_size=1,
    max_size=90,
)
config_strategy = st.builds(
    PreparationConfig,
    min_user_interactions=st.integers(1, 3),
    min_item_interactions=st.integers(1, 3),
    user_threshold=st.sampled_from(["per_domain", "total"]),
    overlap=st.sampled_from(["all", "any"]),
    max_length=st.sampled_from([3, 6, 128]),
    ties=st.sampled_from(["hash", "input"]),
    seed=st.sampled_from([1, 2025]),
    numbering=st.sampled_from(["shuffled", "first-appearance"]),
    split=st.sampled_from(["leave-one-out", "time"]),
    max_bad_row_share=st.sampled_from([0.01, 1.0]),
    layout=st.sampled_from([Layout(), Layout(prefix_items=True)]),
    anyway=st.just(True),
)
share_strategy = st.builds(
    MemoryShare,
    st.just(ENGINE_BYTES),
    engine_threads=st.sampled_from([1, 2]),
    chunk_rows=st.sampled_from([1, 7, 40, 1000]),
)


@settings(max_examples=40, deadline=None)
@given(files=st.lists(lines_strategy, min_size=1, max_size=2), config=config_strategy, share=share_strategy)
def test_out_of_core_gives_the_files_the_counts_and_the_errors_of_a_preparation_in_memory(files, config, share):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs: list[str | Path] = []
        for index, lines in enumerate(files):
            path = folder / f"{index}.csv"
            path.write_text("user,item,domain,timestamp\n" + "".join(f"{line}\n" for line in lines))
            inputs.append(path)
        in_memory, on_disk = both(folder, inputs, config, share)
    assert in_memory == on_disk


@pytest.mark.parametrize("config", [{}, {"overlap": "any", "max_length": 20}, {"split": "time", "ties": "input"}])
def test_the_sample_has_the_same_bytes_out_of_core(tmp_path, config):
    in_memory, on_disk = both(
        tmp_path, [SAMPLE], PreparationConfig(**config), MemoryShare(ENGINE_BYTES, engine_threads=2, chunk_rows=5000)
    )
    assert in_memory == on_disk


def test_files_of_different_units_become_seconds_in_both_ways(tmp_path):
    (tmp_path / "s.csv").write_text(
        "user,item,domain,timestamp\n" + "".join(f"u{n % 5},s{n % 7},a,{1_300_000_000 + n}\n" for n in range(60))
    )
    (tmp_path / "ms.csv").write_text(
        "user,item,domain,timestamp\n" + "".join(f"u{n % 5},m{n % 7},b,{1_300_000_000_123 + n}\n" for n in range(60))
    )
    in_memory, on_disk = both(tmp_path, [tmp_path / "s.csv", tmp_path / "ms.csv"], PreparationConfig())
    assert in_memory == on_disk
    assert isinstance(on_disk, tuple)
    assert len(on_disk) == 3


def test_where_no_row_is_good_both_say_so(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp\n,i,a,1\n\n")
    for share in (0.01, 1.0):
        in_memory, on_disk = both(tmp_path, [tmp_path / "t.csv"], PreparationConfig(max_bad_row_share=share))
        assert in_memory == on_disk


def test_where_a_condition_leaves_no_row_both_say_so(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp,rating\nu,i,a,1,2\n")
    config = replace(PreparationConfig(), layout=Layout(where=(parse_condition("rating>=4"),)))
    in_memory, on_disk = both(tmp_path, [tmp_path / "t.csv"], config)
    assert in_memory == on_disk


# -- What is left behind

INTERRUPTED = """
import sys, time
from pathlib import Path
from models.data.out_of_core.bounded_preparation import prepare_in_bounded_memory
from models.data.out_of_core.memory_share import MemoryShare
from models.data.preparation import PreparationConfig

def progress(stage, _fraction):
    if stage == "writing":
        print("writing", flush=True)
        time.sleep(60)

share = MemoryShare(64 << 20, engine_threads=1, chunk_rows=5000)
prepare_in_bounded_memory([sys.argv[1]], Path(sys.argv[2]), PreparationConfig(), share, progress=progress)
"""


def test_a_killed_preparation_leaves_nothing_once_it_is_started_again(tmp_path):
    out = tmp_path / "out"
    killed = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(SAMPLE), str(out)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "writing\n"
    with temporary_folder(out) as beside:  # of a preparation that lives, and of one that will be dead
        assert len([path for path in tmp_path.iterdir() if path != beside]) == 1
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".work"]

    prepare_in_bounded_memory([SAMPLE], out, PreparationConfig(), SMALL_CHUNKS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_said_to_be_one_and_leaves_nothing(tmp_path):
    """Files of this process may have no more bytes: what a full disk looks like to the engine and to our own files."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from models.data.out_of_core.bounded_preparation import prepare_in_bounded_memory
from models.data.out_of_core.memory_share import MemoryShare
from models.data.preparation import PreparationConfig

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
share = MemoryShare(64 << 20, engine_threads=1, chunk_rows=5000)
try:
    prepare_in_bounded_memory([{str(SAMPLE)!r}], Path({str(tmp_path / "out")!r}), PreparationConfig(), share)
except OSError as error:
    sys.exit(f"OSError {{error}}")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert ended.stderr.startswith("OSError ")
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# -- What is decided beforehand


def test_what_fits_is_prepared_in_memory_and_what_does_not_out_of_core(tmp_path):
    plan = partial(plan_preparation, [SAMPLE], tmp_path / "out", PreparationConfig(), extends=False)
    assert plan(memory=2_000_000_000).share is None
    rows = plan(memory=None).forecast.rows
    assert 40_000 < rows < 70_000  # 52,450, estimated from a packed file


def test_a_log_that_does_not_fit_is_refused_by_options_that_need_memory_and_by_a_full_disk(tmp_path):
    log = tmp_path / "log.parquet"
    schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("domain", pa.string()), ("time", pa.int64())])
    with pq.ParquetWriter(log, schema) as writer:
        same = pa.table([["u"] * 10_000_000, ["i"] * 10_000_000, ["d"] * 10_000_000, [1] * 10_000_000], schema=schema)
        writer.write_table(same)
    config = PreparationConfig(layout=Layout(carried=("rating",)))
    for changed, extends, option in ((config, False, "--carry"), (PreparationConfig(), True, "--extend")):
        with pytest.raises(ConfigurationError, match=f"^{option} works in memory only"):
            plan_preparation([log], tmp_path / "out", changed, memory=10**9, extends=extends)
    plan = plan_preparation([log], tmp_path / "out", PreparationConfig(), memory=10**9, extends=False)
    assert plan.share is not None
    assert "out of core in 1 GB of memory" in str(plan)
    with pytest.raises(DiskTooSmallError, match="larger disk"):
        replace(plan.forecast, disk_bytes=1 << 60).check_disk(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "much", "1 XB", "-1GB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match="no size of memory"):
        parse_size(text)


def test_too_little_memory_is_refused_with_the_least():
    with pytest.raises(ConfigurationError, match="is the least"):
        MemoryShare.of(100 << 20)
    with pytest.raises(ConfigurationError, match="give more --memory"):
        MemoryShare.of(1 << 30).check_items(10**9)
