"""The exported composite loads and trains where recommender engineers use it: RecBole and RecTools."""

from __future__ import annotations

import shutil
import warnings

import polars as pl
import pytest

from models.composite.folder import COMPOSITE


def composite_rows(folder):
    return pl.read_parquet(folder / COMPOSITE)["item_ids"].to_list()


def test_the_composite_loads_into_recbole_row_for_row_and_trains(recbole, composite_folder, tmp_path, monkeypatch):
    """The .inter file as a benchmark file: the same rows in the same order, and a falling full-softmax loss."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data" / "food"
    data.mkdir(parents=True)
    for part in ("train", "valid", "test"):
        shutil.copy(composite_folder / "food.inter", data / f"food.{part}.inter")
    config = recbole.config.Config(
        model="SASRec",
        dataset="food",
        config_dict={
            "data_path": str(tmp_path / "data"),
            "checkpoint_dir": str(tmp_path / "saved"),
            "benchmark_filename": ["train", "valid", "test"],
            "alias_of_item_id": ["item_id_list"],
            "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
            "MAX_ITEM_LIST_LENGTH": 32,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "hidden_size": 16,
            "inner_size": 16,
            "epochs": 3,
            "learning_rate": 0.01,
            "train_batch_size": 32,
            "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full", "group_by": None},
            "metrics": ["Hit"],
            "valid_metric": "Hit@10",
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
        },
    )
    loaded = recbole.data.create_dataset(config)
    train, valid, _test = recbole.data.data_preparation(config, loaded)
    feature = train.dataset.inter_feat
    rows = [
        [*loaded.id2token("item_id", items[:length]), loaded.id2token("item_id", last)]
        for items, length, last in zip(
            feature["item_id_list"].numpy(),
            feature["item_length"].numpy(),
            feature["item_id"].numpy(),
            strict=True,
        )
    ]

    assert rows == composite_rows(composite_folder)
    model = recbole.model.sequential_recommender.sasrec.SASRec(config, train.dataset)
    trainer = recbole.trainer.Trainer(config, model)
    trainer.fit(train, valid, saved=False, verbose=False, show_progress=False)
    losses = [trainer.train_loss_dict[epoch] for epoch in range(3)]
    assert losses[2] < losses[0]
    assert 0 < trainer.best_valid_result["hit@10"] <= 1


def test_the_composite_loads_into_rectools_and_trains(composite_folder, tmp_path, monkeypatch):
    """One interaction per item, one session per row; RecTools' SASRec trains and recommends target items only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rectools = pytest.importorskip("rectools")
        dataset_module = pytest.importorskip("rectools.dataset")
        models = pytest.importorskip("rectools.models")
        pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)  # the trainer underneath writes logs where it runs
    table = pl.read_parquet(composite_folder / COMPOSITE)
    interactions = (
        table.with_columns(session=pl.col("user_id") + "/" + pl.col("origin"))
        .select("session", pl.col("item_ids"), position=pl.int_ranges(pl.col("item_ids").list.len()))
        .explode("item_ids", "position")
    )
    frame = pandas.DataFrame(
        {
            rectools.Columns.User: interactions["session"].to_list(),
            rectools.Columns.Item: interactions["item_ids"].to_list(),
            rectools.Columns.Weight: 1.0,
            rectools.Columns.Datetime: pandas.Timestamp("2020-01-01")
            + pandas.to_timedelta(interactions["position"].to_list(), unit="D"),
        }
    )
    loaded = dataset_module.Dataset.construct(frame)
    model = models.SASRecModel(
        n_blocks=1, n_heads=1, n_factors=16, session_max_len=32, epochs=1, batch_size=32, deterministic=True
    )
    model.fit(loaded)
    sessions = frame[rectools.Columns.User].unique()
    recommended = model.recommend(users=sessions, dataset=loaded, k=5, filter_viewed=False)

    assert loaded.interactions.df.shape[0] == sum(len(row) for row in composite_rows(composite_folder))
    assert set(recommended[rectools.Columns.User]) == set(sessions)
    assert set(recommended[rectools.Columns.Item]) <= {item for row in composite_rows(composite_folder) for item in row}
