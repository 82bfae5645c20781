"""
RecBole: files that are split already, and the configuration that loads them.

    TARGET.yaml                 the configuration; `run_recbole --config_files` needs nothing else but a model
    TARGET/TARGET.train.inter   the composite's rows: user_id:token, item_id_list:token_seq, item_id:token
    TARGET/TARGET.valid.inter   each user's validation item after the items of the target before it
    TARGET/TARGET.test.inter    the same with the test item

RecBole makes no prefixes of files that are split already: it learns to predict each row's last item and nothing else.
With ``prefixes`` every row stands once for each of its items but the first.

It wants all three files. Where nothing is held out, valid and test repeat the last item of training rows: they let its
trainer run, and what it then measures says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from urllib.parse import quote

from models.exports.as_inter import SEQUENCES_HEADER, inter_lines
from models.exports.encoding import ExportFormat, HeldOutItem, TrainingData

Row = tuple[str, Sequence[str]]


def write_recbole(data: TrainingData, folder: Path) -> None:
    """Write the folder described at the top."""
    name = file_name(data.target)
    (folder / name).mkdir()
    rows: Mapping[str, Callable[[], Iterable[Row]]] = {
        "train": lambda: _prefixes(data.rows()) if data.prefixes else data.rows(),
        "valid": lambda: _rows(data.validation()),
        "test": lambda: _rows(data.test()),
    }
    longest, held_out = 1, False
    for part, of_part in rows.items():
        path = folder / name / f"{name}.{part}.inter"
        count, most = _write(path, of_part())
        if part != "train":
            held_out = held_out or count > 0
            if not count:  # RecBole cannot read an empty file
                count, most = _write(path, _last_rows(data.rows()))
        longest = max(longest, most)
    (folder / f"{name}.yaml").write_text(_configuration(name, data.directory, longest, held_out), encoding="utf-8")


def _write(path: Path, rows: Iterable[Row]) -> tuple[int, int]:
    """How many *rows* were written, and how many items the longest has before the one to predict."""
    count = longest = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(SEQUENCES_HEADER)
        for user, items in rows:
            file.writelines(inter_lines([user], [items]))
            count += 1
            longest = max(longest, len(items) - 1)
    return count, longest


def _last_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Every user's last row."""
    for _, of_user in groupby(rows, key=itemgetter(0)):
        *_, last = of_user
        yield last


def file_name(target: str) -> str:
    """
    A domain may be called anything, a file not.

    >>> file_name("food"), file_name("Food/Drink"), file_name("..")
    ('food', 'Food%2FDrink', '%2E%2E')
    """
    return quote(target, safe=" ") if target.strip(".") else "%2E" * len(target)


def _prefixes(rows: Iterable[Row]) -> Iterator[Row]:
    for user, items in rows:
        for length in range(2, len(items) + 1):
            yield user, items[:length]


def _rows(held_out: Iterable[HeldOutItem]) -> Iterator[Row]:
    """The rows that ask something: a history, and the item after it."""
    return ((row.user, [*row.history, row.item]) for row in held_out if row.history)


def _configuration(name: str, directory: Path, longest: int, held_out: bool) -> str:
    remark = "" if held_out else "# Nothing was held out: valid and test repeat training rows, and measure nothing.\n"
    return (
        "# Written by `taesar regenerate --export recbole`; data_path is where the files were written.\n"
        f"{remark}"
        f"data_path: {_quoted(str(directory))}\n"
        f"dataset: {_quoted(name)}\n"
        "benchmark_filename: [train, valid, test]\n"
        "USER_ID_FIELD: user_id\n"
        "ITEM_ID_FIELD: item_id\n"
        "alias_of_item_id: [item_id_list]\n"
        "load_col:\n"
        "  inter: [user_id, item_id_list, item_id]\n"
        "ITEM_LIST_LENGTH_FIELD: item_length\n"
        f"MAX_ITEM_LIST_LENGTH: {longest}\n"
        "train_neg_sample_args: null\n"
        "loss_type: CE\n"
        "eval_args:\n"
        "  order: TO\n"
        "  split: {LS: valid_and_test}\n"
        "  mode: full\n"
        "  group_by: null\n"
        "valid_metric: NDCG@10\n"
    )


def _quoted(text: str) -> str:
    """*text* as YAML reads it back, whatever it holds."""
    return "'" + text.replace("'", "''") + "'"


FORMAT = ExportFormat(folder=write_recbole)
