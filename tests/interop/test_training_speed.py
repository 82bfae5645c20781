"""The comparison with RecBole's trainer runs; how fast either is, is no assertion."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import bench_recbole


@pytest.mark.usefixtures("recbole")
def test_training_is_timed_next_to_recbole(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench_recbole", "--rows", "20", "--repeats", "1"])

    bench_recbole.main()

    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["recommender"] for row in summary["results"]] == ["sasrec", "gru4rec"]
    for row in summary["results"]:
        assert len(row["targets_per_second"]) == 5
        assert min(row["targets_per_second"].values()) > 0
