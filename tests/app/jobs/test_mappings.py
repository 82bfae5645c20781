"""The mapping store on both databases: counts, shares, scores, pages, streams, and taking counts back."""

import threading

import numpy as np
import pytest
from sqlalchemy import event

from app.errors import StoreUnavailableError
from app.mappings.mapping_store import (
    DictionaryKey,
    Increment,
    MappingFilter,
    MappingKey,
    drop,
    find_dictionary,
    fold_in,
    increments_of,
    merge_staged,
    most_frequent,
    page,
    stage,
    stream,
    take_back,
)
from app.storage.database import reading, writing
from models.vocabulary import Vocabulary

JOB = DictionaryKey("kitchen", "v1", "paper", "job-1")
OTHER = DictionaryKey("kitchen", "v1", "paper", "job-2")
ALL = DictionaryKey("kitchen", "v1", "paper")
ANY = MappingFilter()

FIRST = [
    Increment("food", "f1", "", 1, 0),
    Increment("food", "f1", "k1", 2, 3_000_000),
    Increment("food", "f1", "k2", 1, 500_000),
    Increment("food", "f2", "", 4, 0),
]
SECOND = [Increment("books", "b1", "k1", 1, 250_000), Increment("food", "f1", "k1", 5, 4_000_000)]


def merge(engine, key, increments):
    with writing(engine) as connection:
        stage(connection, increments)
        merge_staged(connection, key)


def rows(engine, key, where=ANY):
    with reading(engine) as connection:
        found = find_dictionary(connection, key)
        return [] if found is None else [row for block in stream(connection, found, where) for row in block]


def test_the_most_frequent_replacements_come_first_and_deletions_are_none(engine):
    merge(engine, JOB, FIRST)
    merge(engine, JOB, SECOND)
    with reading(engine) as connection:
        dictionary = find_dictionary(connection, JOB)
        found = most_frequent(connection, dictionary, ANY, limit=2)
        of_k1 = most_frequent(connection, dictionary, MappingFilter(target_item="k1"), limit=9)

    assert [(row.source_item, row.target_item, row.count) for row in found] == [("f1", "k1", 7), ("b1", "k1", 1)]
    assert [(row.source_item, row.count) for row in of_k1] == [("f1", 7), ("b1", 1)]


def test_decisions_become_counts_and_score_sums_per_pair():
    vocabulary = Vocabulary(("books", "kitchen"), (("b1", "b2"), ("k1", "k2")))
    found = increments_of(
        vocabulary,
        np.asarray([2, 1, 2, 2]),
        np.asarray([3, 4, 3, 0]),
        np.asarray([1.5, 0.25, 2.0, np.nan], dtype=np.float32),
    )

    assert found == [
        Increment("books", "b1", "k2", 1, 250_000),
        Increment("books", "b2", "", 1, 0),
        Increment("books", "b2", "k1", 2, 3_500_000),
    ]


def test_one_decision_is_one_increment():
    vocabulary = Vocabulary(("books", "kitchen"), (("b1",), ("k1",)))
    [found] = increments_of(vocabulary, np.asarray([1]), np.asarray([2]), np.asarray([0.5], dtype=np.float32))

    assert found == Increment("books", "b1", "k1", 1, 500_000)


def test_no_decision_is_no_increment():
    vocabulary = Vocabulary(("books",), (("b1",),))
    nothing = np.zeros(0, dtype=np.int64)

    assert increments_of(vocabulary, nothing, nothing, nothing.astype(np.float32)) == []


def test_share_is_the_part_of_the_source_items_decisions_and_sums_to_one(engine):
    merge(engine, JOB, FIRST)
    lines = rows(engine, JOB)
    of_f1 = [line for line in lines if line.source_item == "f1"]

    assert [(line.target_item, line.count, line.share) for line in of_f1] == [
        (None, 1, 1 / 4),
        ("k1", 2, 2 / 4),
        ("k2", 1, 1 / 4),
    ]
    assert sum(line.share for line in of_f1) == 1
    assert {line.deletions for line in of_f1} == {1}
    assert [line.mean_score for line in of_f1] == [None, 3.0 / 2, 0.5 / 1]


def test_a_source_item_that_was_only_deleted_has_one_line(engine):
    merge(engine, JOB, FIRST)
    [line] = rows(engine, JOB, MappingFilter(source_item="f2"))

    assert (line.target_item, line.count, line.share, line.decisions, line.deletions) == (None, 4, 1.0, 4, 4)


def test_merging_adds_to_what_is_there(engine):
    merge(engine, JOB, FIRST)
    merge(engine, JOB, SECOND)
    found = {(line.source_item, line.target_item): (line.count, line.score_micros) for line in rows(engine, JOB)}

    assert found[("f1", "k1")] == (2 + 5, 3_000_000 + 4_000_000)
    assert found[("b1", "k1")] == (1, 250_000)
    assert len(found) == 5


def test_the_order_of_merges_leaves_no_trace(engine):
    """Score sums are integers: a + b + c is the same in any order, unlike floats."""
    parts = [[Increment("food", "f1", "k1", 1, micros)] for micros in (333_333, 1, 7_777_777)]
    for part in parts:
        merge(engine, JOB, part)
    for part in reversed(parts):
        merge(engine, OTHER, part)

    assert rows(engine, JOB) == rows(engine, OTHER)


def test_finished_jobs_are_summed_and_a_removed_one_leaves_no_trace(engine):
    merge(engine, JOB, FIRST)
    merge(engine, OTHER, SECOND)
    with writing(engine) as connection:
        fold_in(connection, JOB)
    alone = rows(engine, ALL)
    with writing(engine) as connection:
        fold_in(connection, OTHER)
    both = rows(engine, ALL)
    with writing(engine) as connection:
        take_back(connection, OTHER)
        drop(connection, job_id=OTHER.job_id)

    assert alone == rows(engine, JOB)
    assert {(line.source_item, line.target_item): line.count for line in both}[("f1", "k1")] == 2 + 5
    assert rows(engine, ALL) == alone
    assert rows(engine, OTHER) == []


def test_every_change_advances_the_revision(engine):
    revisions = []
    for change in (lambda: merge(engine, JOB, FIRST), lambda: merge(engine, JOB, SECOND)):
        change()
        with reading(engine) as connection:
            revisions.append(find_dictionary(connection, JOB).revision)

    assert revisions == [1, 2]


def test_dictionaries_of_other_targets_versions_and_rules_stay_apart(engine):
    merge(engine, JOB, FIRST)
    others = [
        DictionaryKey("food", "v1", "paper", "job-1"),
        DictionaryKey("kitchen", "v2", "paper", "job-1"),
        DictionaryKey("kitchen", "v1", "reference", "job-1"),
        ALL,
    ]

    assert [rows(engine, key) for key in others] == [[], [], [], []]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_end_to_end_are_the_stream(engine, limit):
    merge(engine, JOB, [*SECOND[:1], *FIRST])
    with reading(engine) as connection:
        dictionary = find_dictionary(connection, JOB)
        found, after = [], None
        while lines := page(connection, dictionary, ANY, after=after, limit=limit):
            assert len(lines) <= limit
            found += lines
            after = lines[-1].key

    assert found == rows(engine, JOB)
    assert [line.key for line in found] == sorted((line.key for line in found), key=key_order)


def key_order(key):
    return (key.source_domain, key.source_item, key.target_item)


@pytest.mark.parametrize(
    ("where", "num_lines"),
    [
        (MappingFilter(source_domain="books"), 1),
        (MappingFilter(source_item="f1"), 3),
        (MappingFilter(target_item="k1"), 2),
        (MappingFilter(target_item=""), 2),
        (MappingFilter(source_domain="food", target_item="k2"), 1),
        (MappingFilter(source_domain="garden"), 0),
    ],
)
def test_filters_choose_lines_and_leave_their_shares_alone(engine, where, num_lines):
    merge(engine, JOB, [*SECOND[:1], *FIRST])
    everything = rows(engine, JOB)
    chosen = rows(engine, JOB, where)

    assert len(chosen) == num_lines
    assert all(line in everything for line in chosen)


def test_a_page_walks_the_index_before_the_database_has_statistics(engine):
    """Just after a large merge PostgreSQL knows nothing of the rows; a page must not sort them all."""
    increments = [Increment("food", f"f{n // 50:05d}", f"k{n % 50:05d}", 1, 1) for n in range(20_000)]
    merge(engine, JOB, increments)
    with reading(engine) as connection:
        dictionary = find_dictionary(connection, JOB)
        statements = []
        event.listen(connection, "before_cursor_execute", lambda *a: statements.append(a[2:4]))
        page(connection, dictionary, ANY, after=MappingKey("food", "f00200", "k00010"), limit=10)
        page(connection, dictionary, MappingFilter(target_item="k00007"), after=None, limit=10)
        explain = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        chosen = [s for s in statements if "LIMIT" in s[0]]
        plans = [str(connection.exec_driver_sql(explain + sql, values).all()) for sql, values in chosen]

    assert len(plans) == 2
    assert all("Sort" not in plan and "B-TREE" not in plan and "Seq Scan" not in plan for plan in plans), plans


def test_a_transaction_that_fails_leaves_no_count(engine):
    def fail():
        with writing(engine) as connection:
            stage(connection, FIRST)
            merge_staged(connection, JOB)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert rows(engine, JOB) == []


def test_merges_from_many_threads_neither_deadlock_nor_lose_a_count(engine):
    """Each thread merges overlapping keys and folds; every count arrives."""
    failures = []

    def work(number):
        key = DictionaryKey("kitchen", "v1", "paper", f"job-{number}")
        try:
            for _ in range(10):
                increments = [Increment("food", f"f{i:03d}", "k1", 1, 1) for i in range(0, 200, 1 + number % 2)]
                merge(engine, key, increments)
                merge(engine, ALL, increments)
            with writing(engine) as connection:
                fold_in(connection, key)
        except StoreUnavailableError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    counts = {line.source_item: line.count for line in rows(engine, ALL)}
    assert (counts["f000"], counts["f001"]) == (6 * 10 * 2, 3 * 10 * 2)
