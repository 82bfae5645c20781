"""The benchmarks run: every one of ours on shapes small enough for the suite, with what they assert about answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks import (
    bench_abxi,
    bench_decode,
    bench_large_training,
    bench_processes,
    bench_refresh,
    bench_scaling,
    bench_serving,
    bench_training,
    bench_training_data,
)
from benchmarks.measure import interleaved_seconds, random_bundle, random_sequences, rounded
from models.data.dataset import Dataset, pad_right
from models.decoding.regenerator import Regenerator
from models.decoding.rules import DEFAULT_RULE

ROOT = Path(__file__).resolve().parents[2]


def test_decoding_is_timed_on_equal_tokens() -> None:
    row = bench_decode.bench(500, 2, 1, "cpu")

    assert row["different_tokens_beyond_float_margin"] == 0
    # How they compare is no assertion: on a busy machine one of a millisecond took eight.
    times = row["ms_per_source_position"]
    assert {"ours", "anticipate", "decide", "plain", "products", "released", "released_whole"} <= times.keys()
    assert min(times.values()) > 0


def test_both_training_steps_go_the_same_way() -> None:
    """Three steps of Adam: losses stay equal to 1e-5, and fall."""
    whole_BL = pad_right(random_sequences(4, 300), 129)
    sides = bench_training.ours(300), bench_training.baseline(300)
    for side in sides:
        for _ in range(3):
            side.step(whole_BL)

    assert sides[0].losses == pytest.approx(sides[1].losses, rel=1e-5)
    assert sides[0].losses[2] < sides[0].losses[0]


def test_rows_are_less_to_send_than_the_table() -> None:
    """One process; of 20,000 items a step draws and reads a part."""
    whole, sampled = (bench_processes.steps(20_000, 1, sampled=sampled) for sampled in (False, True))

    assert 0 < sampled["megabytes"] < whole["megabytes"]
    assert 0 < sampled["summing"] < sampled["step"]


def test_the_large_log_has_every_item_and_only_readers_have_more_than_one(tmp_path: Path) -> None:
    bench_large_training.write_log(tmp_path / "log.parquet", 500, readers=10, length=20)
    log = pl.read_parquet(tmp_path / "log.parquet")

    assert log["item"].n_unique() == 500
    assert sorted(log["user"].value_counts()["count"].to_list())[-10:] == [20] * 10
    assert log["user"].value_counts().filter(pl.col("count") > 1).height == 10


@pytest.mark.parametrize(("text", "seconds"), [("0:07", 7), ("12:05", 725), ("1:00:01", 3601)])
def test_a_forecast_is_read_back_as_seconds(text: str, seconds: int) -> None:
    assert bench_large_training.clock_seconds(text) == seconds


def test_an_epoch_reads_the_same_from_a_file_as_from_memory(dataset: Dataset) -> None:
    held, stored = (bench_training_data.run_way(way, dataset.directory) for way in ("held", "stored"))

    assert held["items_read"] == stored["items_read"] > 0
    assert stored["own_megabytes"].keys() == {"opened", "peak_of_opening", "peak"}


def test_a_curve_has_a_point_per_value() -> None:
    shapes = [bench_scaling.Shape(400, num_sequences=4, num_domains=domains) for domains in (2, 4)]
    points = bench_scaling.curve(shapes, [2, 4], 1, "cpu")

    assert points["values"] == [2, 4]
    assert min(points["total"]) > 0


def test_an_answer_for_another_client_is_counted_as_wrong() -> None:
    """The check of bench_serving against a server that mixes up its clients."""
    bundle = random_bundle(200, 2)
    regenerator, sequences = Regenerator(bundle, DEFAULT_RULE), random_sequences(2, 200)
    pool = bench_serving.exchanges(regenerator, bundle.vocabulary, sequences, "synthetic-0")
    assert pool[0].expected != pool[1].expected

    def answer_of(exchange: bench_serving.Exchange) -> bytes:
        body = json.dumps({"sequences": [{"user_id": exchange.user_id, "items": exchange.expected}]}).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    async def checked() -> list[bench_serving.Answered]:
        async def always_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.split("content-length: ")[1].split("\r")[0]))
                writer.write(answer_of(pool[0]))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(always_the_first, bench_serving.HOST, 0)
        async with server:
            return await bench_serving.ask(server.sockets[0].getsockname()[1], pool, 1, 2)

    first, second = asyncio.run(checked())
    assert (first.right, second.right) == (True, False)


def test_a_log_is_cut_into_days_that_hold_every_row_once_in_order_of_time(tmp_path) -> None:
    paths = bench_refresh.days_of(bench_refresh.SAMPLE, tmp_path, 0.8, 3)
    days = [pl.read_csv(path)["timestamp"] for path in paths]
    whole = pl.read_csv(bench_refresh.SAMPLE)["timestamp"].sort()

    assert len(days) == 4
    assert len(days[0]) == pytest.approx(0.8 * len(whole), abs=1)
    assert pl.concat(days).to_list() == whole.to_list()


def test_programs_take_turns() -> None:
    calls: list[str] = []
    seconds = interleaved_seconds({name: lambda name=name: calls.append(name) for name in "ab"}, 2)

    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert seconds.keys() == {"a", "b"}


def test_results_are_rounded_through_and_through() -> None:
    assert rounded({"a": [1.23456, {"b": 98765.4321}], "c": 7}) == {"a": [1.235, {"b": 98770.0}], "c": 7}


def test_the_last_line_of_a_benchmark_is_json() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_decode", "--vocabularies", "300", "--domains", "2"]
    command += ["--rounds", "1", "--threads", str(torch.get_num_threads()), "--memory", "ours"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["benchmark"] == "decode"
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["rows"][0]["peak_megabytes"]["ours"] > 50


def test_a_day_of_refreshes_is_compared_with_a_training_from_nothing_and_read_back_afterwards(tmp_path: Path) -> None:
    training = "--epochs 1 --expert-epochs 0 --width 8"
    arguments = (bench_refresh.SAMPLE, tmp_path, 1, 0.9, "last", "--overlap any --max-length 4", training)
    [row] = bench_refresh.bench(*arguments)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    [again] = bench_refresh.bench(*arguments)

    assert row["users"] > 0
    assert row["share_of_time"] > 0
    assert again == row
    assert len(before) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_item_ranked_among_999_is_where_items_drawn_one_by_one_put_it() -> None:
    """The first stays first, among fewer all are drawn, and 100 before it among 4,000 others are 25 on average."""
    rng = np.random.default_rng(1)
    assert bench_abxi.sampled_ranks(np.asarray([1, 7, 1000]), np.asarray([5000, 500, 999]), rng).tolist() == [
        1,
        7,
        1000,
    ]

    drawn = bench_abxi.sampled_ranks(np.full(2000, 101), np.full(2000, 3996), rng)
    by_hand = [1 + int((rng.permutation(3996)[:999] < 100).sum()) for _ in range(2000)]
    assert drawn.mean() == pytest.approx(26, abs=0.5)
    assert drawn.std() == pytest.approx(np.std(by_hand), rel=0.1)


def test_the_authors_measures_by_arithmetic() -> None:
    measured = bench_abxi.measures(np.asarray([1, 3, 7, 20]))

    assert measured == pytest.approx((0.5, 0.75, (1 + 0.5 + 1 / 3) / 4, (1 + 1 / 3 + 1 / 7 + 1 / 20) / 4))


def test_abxi_is_trained_and_set_beside_its_authors_figures(tmp_path: Path) -> None:
    small = dataclasses.replace(bench_abxi.SIZE, width=8, inner_width=8, domain_rank=2, invariant_rank=2)
    dataset = bench_abxi.prepared(bench_abxi.SAMPLE, tmp_path)
    rows = bench_abxi.bench(dataset, tmp_path, [1], decay=1.0, epochs=1, size=small)

    assert [row["domain"] for row in rows] == ["food", "kitchen"]
    for row in rows:
        ours, authors = row["ours"]["mean"], row["authors"]["mean"]
        assert 0 < ours["hr_at_5"] <= ours["hr_at_10"] < 1
        assert row["ratio"]["mrr"] == pytest.approx(ours["mrr"] / authors["mrr"])
