"""What a log says before anything is trained."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from models.check.signs import read_signs
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare


def prepared(folder: Path, rows: list[tuple[str, str, str, int]]) -> Dataset:
    lines = ["user,item,domain,timestamp", *(",".join(map(str, row)) for row in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare(folder / "log.csv", folder / "dataset", PreparationConfig(overlap="any"))
    return load_dataset(folder / "dataset")


def two_domains(*, tells: bool, num_users: int = 400) -> list[tuple[str, str, str, int]]:
    """Every shop item follows a news item, which names it or does not."""
    source, rows = random.Random(3), []
    for user in range(num_users):
        for step in range(8):
            topic = source.randrange(10)
            news = topic if tells else source.randrange(10)
            rows.append((f"u{user}", f"news-{news}", "news", 10 * step))
            rows.append((f"u{user}", f"shop-{topic}", "shop", 10 * step + 1))
    return rows


def test_source_items_that_name_the_next_target_item_are_seen_to_tell_it(tmp_path) -> None:
    """
    The validation item of every user is news here, so the shop's is asked for where the sequence ends with it: users
    who stopped before their last news item.
    """
    rows = [row for row in two_domains(tells=True) if not (row[2] == "shop" and row[3] == 71)]
    signs = read_signs(prepared(tmp_path, rows), "shop")

    assert signs.linked_users == signs.users == 400
    assert signs.nats is not None
    assert signs.nats.low > 0.1
    assert signs.stop is None


def test_source_items_at_random_tell_nothing(tmp_path) -> None:
    rows = [row for row in two_domains(tells=False) if not (row[2] == "shop" and row[3] == 71)]
    signs = read_signs(prepared(tmp_path, rows), "shop")

    assert signs.nats is not None
    assert signs.nats.mean == pytest.approx(0, abs=0.01)


def test_a_log_whose_users_have_one_domain_each_stops_a_check(tmp_path) -> None:
    rows = [row for row in two_domains(tells=True) if (row[2] == "shop") == (int(row[0][1:]) % 20 != 0)]
    signs = read_signs(prepared(tmp_path, rows), "shop")

    assert signs.linked_users == 0
    assert signs.stop == "Only 0 of 380 users of shop have items of another domain; fewer than 50 cannot show anything."


def test_a_source_that_comes_only_afterwards_stops_a_check(tmp_path) -> None:
    rows = [
        (user, item, domain, time + 1000 * (domain == "news")) for user, item, domain, time in two_domains(tells=True)
    ]
    signs = read_signs(prepared(tmp_path, rows), "shop")

    assert signs.informed_share == 0
    assert signs.stop is not None
    assert "hardly overlap in time" in signs.stop


def test_no_sign_reads_a_test_item(tmp_path) -> None:
    """The file of test items is gone, and every sign is as before."""
    dataset = prepared(tmp_path, two_domains(tells=True))
    (dataset.directory / "test.parquet").unlink()

    assert read_signs(dataset, "news").users == 400
