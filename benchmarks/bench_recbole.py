"""
Training speed of SASRec and GRU4Rec next to RecBole's own trainer: same rows, same full-softmax loss, same machine, one
run. Needs the environment of tests/interop, so it is no part of ``make bench``; the last line is JSON.

    make bench-recbole
    make bench-recbole ARGS='--interactions interactions.csv.gz --target food --rows 1000'

The unit is a training target: one (history, next item) pair through forward, backward and Adam, data loading included,
validation excluded. One of our passes trains every position of every row. RecBole is timed in both of its ways:

    augmented   every prefix of every row is a sample: the same pairs as ours, each encoded anew
    last        one target per row, what it does with a benchmark file: fewer targets, each encoded once

and each at batch 128 and at a batch of 1,024, where a full-softmax step amortises better; its fastest counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.data.dataset import Sequences, load_dataset
from models.data.preparation import prepare
from models.evaluation.arms import Arm, build_arm
from models.evaluation.budgets import EvaluationConfig, RowObjective, build_seeded
from models.training.loop import TrainingConfig, fit

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "food-kitchen-sample.csv.gz"
SEED = 2025
BATCH = 128
LARGE_BATCH = 1024
REMOVED_FROM_NUMPY = {
    "float": float,
    "int": int,
    "bool": bool,
    "object": object,
    "bool8": np.bool_,
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
}
MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "sasrec": {
        "n_layers": 2,
        "n_heads": 2,
        "hidden_size": 128,
        "inner_size": 128,
        "hidden_dropout_prob": 0.2,
        "attn_dropout_prob": 0.2,
    },
    "gru4rec": {"embedding_size": 128, "hidden_size": 128, "num_layers": 1, "dropout_prob": 0.2},
}
THEIR_NAMES = {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}


class DeafBoard:
    """A TensorBoard that takes every call and keeps nothing."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_options: None


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        prepare(arguments.interactions.resolve(), Path(folder) / "dataset", overwrite=True)
        arm = build_arm(load_dataset(Path(folder) / "dataset"), arguments.target, "original", None)
        generator = np.random.default_rng(SEED)
        rows = arm.rows.at(np.sort(generator.permutation(len(arm.rows))[: arguments.rows]))
        os.chdir(folder)
        results = [compare(name, arm, rows, Path(folder), arguments.repeats) for name in ("sasrec", "gru4rec")]
    summary = {
        "benchmark": "recbole",
        "interactions": arguments.interactions.name,
        "target": arguments.target,
        "rows": len(rows),
        "targets": int((rows.lengths - 1).sum()),
        "items": arm.num_items,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "results": results,
    }
    print(json.dumps(summary))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=Path, default=SAMPLE, help="any input of `taesar prepare`")
    parser.add_argument("--target", default="food")
    parser.add_argument("--rows", type=int, default=1000, help="training rows drawn from the target's")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def compare(name: str, arm: Arm, rows: Sequences, folder: Path, repeats: int) -> dict[str, Any]:
    """Targets per second of ours and of RecBole's four settings, interleaved so that all meet the same load."""
    timers = {"ours": our_pass(name, arm, rows)}
    for mode in ("augmented", "last"):
        samples = prefixes(rows) if mode == "augmented" else [row.tolist() for row in rows]
        for batch_size in (BATCH, LARGE_BATCH):
            label = f"recbole {mode}, batch {batch_size}"
            timers[label] = recbole_pass(name, arm, samples, batch_size, folder, mode)
    rates: dict[str, list[float]] = {label: [] for label in timers}
    for _ in range(repeats):
        for label, run in timers.items():
            targets, seconds = run()
            rates[label].append(targets / seconds)
            print(f"{name}: {label}: {targets} targets in {seconds:.1f} s", file=sys.stderr, flush=True)
    medians = {label: round(statistics.median(values), 1) for label, values in rates.items()}
    best = max(value for label, value in medians.items() if label != "ours")
    return {"recommender": name, "targets_per_second": medians, "ratio_to_best": round(medians["ours"] / best, 2)}


def our_pass(name: str, arm: Arm, rows: Sequences) -> Any:
    """One epoch of ``fit`` over *rows*, without validation rows."""
    nothing = arm.validation.at(np.zeros(0, np.int64))
    timed = dataclasses.replace(arm, rows=rows, validation=nothing, test=nothing)

    def run() -> tuple[int, float]:
        module = build_seeded(name, timed, EvaluationConfig(), SEED)
        objective = RowObjective(
            module, timed, steps_per_epoch=module.num_batches(rows, BATCH), batch_size=BATCH, seed=SEED
        )
        result = fit(module, objective, TrainingConfig(batch_size=BATCH, max_epochs=1, seed=SEED))
        return int((rows.lengths - 1).sum()), result.epochs[-1].seconds

    return run


def recbole_pass(name: str, arm: Arm, samples: list[list[int]], batch_size: int, folder: Path, mode: str) -> Any:
    """One epoch of RecBole's trainer over *samples*, each predicting its last item."""
    recbole = import_recbole()
    sys.argv = sys.argv[:1]  # RecBole reads the command line for options of its own
    data = folder / "recbole" / mode
    if not data.exists():
        data.mkdir(parents=True)
        # RecBole knows only the items that it has read: its validation rows, never timed, list them all, so that its
        # softmax covers what ours does.
        width = max(len(sample) for sample in samples)
        every_item = list(range(1, arm.num_items + 1))
        ends = [*range(width, arm.num_items, width), arm.num_items]
        listed = [every_item[max(0, end - width) : end] for end in ends]
        for part, lines in (("train", samples), ("valid", listed), ("test", listed)):
            (data / f"{mode}.{part}.inter").write_text(inter_text(lines))
    config = recbole.config.Config(
        model=THEIR_NAMES[name],
        dataset=mode,
        config_dict={
            "data_path": str(folder / "recbole"),
            "checkpoint_dir": str(folder / "saved"),
            "benchmark_filename": ["train", "valid", "test"],
            "alias_of_item_id": ["item_id_list"],
            "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
            # The longest history and no more: shorter rows are padded to it.
            "MAX_ITEM_LIST_LENGTH": max(len(sample) for sample in samples) - 1,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "learning_rate": 3e-4,
            "train_batch_size": batch_size,
            "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full", "group_by": None},
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            **MODEL_OPTIONS[name],
        },
    )
    loaded = recbole.data.create_dataset(config)
    assert loaded.item_num == arm.num_items + 1
    train, _valid, _test = recbole.data.data_preparation(config, loaded)
    package = getattr(recbole.model.sequential_recommender, name)

    def run() -> tuple[int, float]:
        trainer = recbole.trainer.Trainer(config, getattr(package, THEIR_NAMES[name])(config, train.dataset))
        started = time.perf_counter()
        trainer._train_epoch(train, 0, show_progress=False)
        return len(samples), time.perf_counter() - started

    return run


def prefixes(rows: Sequences) -> list[list[int]]:
    """Every prefix of at least two items of every row: RecBole's augmentation."""
    return [row[:end].tolist() for row in rows for end in range(2, len(row) + 1)]


def inter_text(samples: list[list[int]]) -> str:
    """Samples as a ``.inter`` file: the last item of each is the one to predict."""
    lines = [
        f"{user}\t{' '.join(map(str, sample[:-1]))}\t{sample[-1]}\n"
        for user, sample in enumerate(samples)
        if len(sample) > 1
    ]
    return "user_id:token\titem_id_list:token_seq\titem_id:token\n" + "".join(lines)


def import_recbole() -> Any:
    """RecBole with the NumPy names that it still uses and without TensorBoard."""
    warnings.simplefilter("ignore")
    for name, value in REMOVED_FROM_NUMPY.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = DeafBoard  # type: ignore[attr-defined]
    sys.modules.setdefault("torch.utils.tensorboard", board)
    import recbole
    import recbole.config
    import recbole.data
    import recbole.evaluator.collector
    import recbole.evaluator.metrics
    import recbole.model.sequential_recommender.gru4rec
    import recbole.model.sequential_recommender.sasrec
    import recbole.trainer

    return recbole


if __name__ == "__main__":
    main()
