"""
The exports load and train where recommender engineers use them, without a line of code or configuration about the data.

What is set here is how long and how large to train; every name of a column, file or item comes from what was written.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import polars as pl
import pytest
import torch

from models.composite.folder import COMPOSITE

SMALL = {
    "hidden_size": 16,
    "inner_size": 16,
    "epochs": 3,
    "learning_rate": 0.01,
    "train_batch_size": 32,
    "metrics": ["Hit", "NDCG"],
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
}


def composite_rows(folder):
    return pl.read_parquet(folder / COMPOSITE)["item_ids"].to_list()


def stayed_interactions(folder):
    return pl.read_parquet(folder / "interactions" / "*.parquet")


def test_recbole_trains_on_its_export_by_the_yaml_alone(recbole, composite_folder, tmp_path, monkeypatch):
    """The same rows in the same order, a falling full-softmax loss, and ranks of the held-out items."""
    monkeypatch.chdir(tmp_path)
    config = recbole.config.Config(
        model="SASRec",
        config_file_list=[str(composite_folder / "recbole" / "food.yaml")],
        config_dict=SMALL | {"checkpoint_dir": str(tmp_path / "saved")},
    )
    loaded = recbole.data.create_dataset(config)
    train, valid, test = recbole.data.data_preparation(config, loaded)
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
    tested = trainer.evaluate(test, load_best_model=False)
    assert losses[2] < losses[0]
    assert 0 < trainer.best_valid_result["ndcg@10"] <= 1
    assert 0 < tested["hit@10"] <= 1


def test_rectools_trains_on_its_export(composite_folder, tmp_path, monkeypatch):
    """Its frame is read as it is; RecTools' SASRec recommends items of the target to every user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset_module = pytest.importorskip("rectools.dataset")
        models = pytest.importorskip("rectools.models")
        pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)  # the trainer underneath writes logs where it runs
    frame = pandas.read_parquet(composite_folder / "rectools" / "train.parquet")
    held_out = pandas.read_parquet(composite_folder / "rectools" / "test.parquet")
    loaded = dataset_module.Dataset.construct(frame)
    model = models.SASRecModel(
        n_blocks=1, n_heads=1, n_factors=16, session_max_len=32, epochs=1, batch_size=32, deterministic=True
    )
    model.fit(loaded)
    users = held_out["user_id"].unique()
    recommended = model.recommend(users=users, dataset=loaded, k=5, filter_viewed=False)
    stayed = stayed_interactions(composite_folder)

    assert loaded.interactions.df.shape[0] == stayed.height
    assert set(recommended["user_id"]) == set(users)
    assert set(recommended["item_id"]) <= set(stayed["item"])


def test_replay_trains_on_its_export(composite_folder, tmp_path, monkeypatch):
    """Its frame is read as it is; RePlay's SasRec learns, from sequences in the order in which items stayed."""
    if find_spec("replay") is None:
        pytest.skip("RePlay is not installed: make interop installs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        import pandas
        from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
        from replay.data.nn import SequenceTokenizer, TensorFeatureInfo, TensorFeatureSource, TensorSchema
        from replay.models.nn.sequential.sasrec import SasRec, SasRecTrainingDataset
    monkeypatch.chdir(tmp_path)
    schema = FeatureSchema(
        [
            FeatureInfo("user_id", FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
            FeatureInfo("item_id", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
            FeatureInfo("rating", FeatureType.NUMERICAL, FeatureHint.RATING),
            FeatureInfo("timestamp", FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
        ]
    )
    frame = pandas.read_parquet(composite_folder / "replay" / "train.parquet")
    loaded = Dataset(schema, frame)
    source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
    tensors = TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            feature_sources=[source],
            feature_hint=FeatureHint.ITEM_ID,
            embedding_dim=16,
        )
    )
    tokenizer = SequenceTokenizer(tensors)
    sequences = tokenizer.fit_transform(loaded)
    stayed = stayed_interactions(composite_folder)
    expected = stayed.group_by("user", maintain_order=True).agg("item")
    item_of = tokenizer.item_id_encoder.inverse_mapping["item_id"]
    user_of = tokenizer.query_id_encoder.inverse_mapping["user_id"]
    read = {
        user_of[sequences.get_query_id(row)]: [item_of[i] for i in sequences.get_sequence(row, "item_id")]
        for row in range(len(sequences))
    }
    losses = []

    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(float(outputs["loss"]))

    model = SasRec(tensors, block_count=1, hidden_size=16, max_seq_len=32)
    rows = torch.utils.data.DataLoader(SasRecTrainingDataset(sequences, 32), batch_size=64)
    trainer = lightning.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[Losses()],
    )  # fmt: skip
    trainer.fit(model, rows)

    assert read == dict(expected.rows())
    assert losses[-1] < losses[0]
