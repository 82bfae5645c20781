"""The joint expert: its loss read slowly, its scale, and that validation alone decides who reads it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle, load_bundle
from models.data.dataset import Dataset
from models.errors import UnknownDomainError
from models.network.decoder import Decoder, DecoderConfig
from models.network.expert_parts import read_parts, table_of
from models.training import joint
from models.training.expert_choice import choose_expert
from models.training.joint import LOGIT_SCALE, domains_with_rows, train_joint_expert
from models.training.loop import EpochReport, Silent, StepReport, TrainingConfig
from models.training.objective import choose_held_out
from models.training.own_shares import ndcg_by_row, try_own_shares
from models.training.pipeline import NetworkConfig, PipelineConfig, train_bundle
from models.tuning import JointShare, TargetTuning

CPU = torch.device("cpu")
DOMAINS = ("books", "food", "kitchen")
SIZE = DecoderConfig(
    num_items=60, width=16, inner_width=16, max_length=32, dropout=0, attention_dropout=0, init_std=0.3
)
# All rows in one batch, so that the loss of the first epoch is that of the weights it starts from.
ONE_STEP = TrainingConfig(max_epochs=1, batch_size=1_000)
LEARNING = TrainingConfig(learning_rate=1e-2, batch_size=16, max_epochs=8, weight_decay=1.0)
LITTLE = TrainingConfig(learning_rate=1e-3, batch_size=16, max_epochs=1)
NOTHING = dataclasses.replace(LITTLE, max_epochs=0)


def bundle_of(dataset: Dataset, folder: Path, **options: object) -> Bundle:
    """A base and adapted experts that learn nearly nothing, and a joint one that learns."""
    config = PipelineConfig(NetworkConfig(width=16, inner_width=16), LITTLE, LITTLE, joint=LEARNING)
    config = dataclasses.replace(config, **options)
    return train_bundle(dataset, folder / "bundle", config, device=CPU, run_directory=folder / "run")


@pytest.fixture
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few rows of the small dataset count as many."""
    monkeypatch.setattr(joint, "LEAST_ROWS", 1)


def test_the_loss_is_the_mean_over_domains_of_the_cross_entropy_of_both_readings(dataset: Dataset) -> None:
    """
    One item after one history at a time, by the definition at the top of the module.

    mean_d mean_(history, item in d) - log softmax_(x in d) [ e_x . (h(history) + h(its items of d)) / 2 / c ] [item]
    """
    start, _ = train_joint_expert(dataset, SIZE, dataclasses.replace(ONE_STEP, max_epochs=0), DOMAINS, device=CPU)
    start.scale_hidden(LOGIT_SCALE)
    losses: dict[int, list[float]] = {0: [], 1: [], 2: []}
    with torch.inference_mode():
        for tokens in dataset.train:
            for t in range(1, len(tokens)):
                (index,) = (k for k, domain in enumerate(dataset.vocabulary.token_ranges) if int(tokens[t]) in domain)
                domain = dataset.vocabulary.token_ranges[index]
                history = tokens[:t].astype(np.int64)
                own = history[domain.mask(history)]
                mixed_D = start(torch.from_numpy(history)[None])[0, -1]
                own_D = start(torch.from_numpy(own)[None])[0, -1] if len(own) else mixed_D
                logits_X = start.item_embeddings_VD[domain.columns] @ (mixed_D + own_D) / 2 / LOGIT_SCALE
                losses[index].append(-float(logits_X.log_softmax(0)[int(tokens[t]) - domain.first]))
    _, result = train_joint_expert(dataset, SIZE, ONE_STEP, DOMAINS, device=CPU)

    assert all(losses.values())
    assert result.epochs[1].loss == pytest.approx(np.mean([np.mean(each) for each in losses.values()]), rel=1e-4)


def test_every_target_of_a_domain_weighs_the_same_whichever_batch_it_is_in(dataset: Dataset) -> None:
    """The mean loss of an epoch without learning is the same in batches of 3 as in one."""

    class Losses(Silent):
        def __init__(self) -> None:
            self.steps: list[float] = []

        def on_step(self, report: StepReport) -> None:
            self.steps.append(float(report.loss))

    still = dataclasses.replace(ONE_STEP, learning_rate=1e-12)
    whole = train_joint_expert(dataset, SIZE, still, DOMAINS, device=CPU)[1].epochs[1].loss
    parts = train_joint_expert(dataset, SIZE, dataclasses.replace(still, batch_size=3), DOMAINS, device=CPU)[1]

    assert parts.epochs[1].loss == pytest.approx(whole, rel=1e-4)


def test_the_logits_of_the_finished_expert_are_those_that_the_loss_has_seen(dataset: Dataset) -> None:
    """Without an epoch it is the seed's decoder, its hidden states over c; ranking does not see the difference."""
    none = dataclasses.replace(ONE_STEP, max_epochs=0)
    expert, _ = train_joint_expert(dataset, SIZE, none, DOMAINS, device=CPU)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(none.seed)
        untrained = Decoder(SIZE).eval()
    history = torch.tensor([[1, 30, 2]])

    torch.testing.assert_close(expert(history), untrained(history) / LOGIT_SCALE)
    again, _ = train_joint_expert(dataset, SIZE, none, DOMAINS, device=CPU, start=expert)
    torch.testing.assert_close(again(history), expert(history))


def test_a_domain_that_is_not_there_cannot_judge(dataset: Dataset) -> None:
    with pytest.raises(UnknownDomainError):
        train_joint_expert(dataset, SIZE, ONE_STEP, ("garden",), device=CPU)


def test_few_validation_rows_have_no_joint_expert(dataset: Dataset, tmp_path: Path) -> None:
    """The small dataset has far fewer than a thousand: nothing is trained that nobody could judge."""
    assert domains_with_rows(dataset) == ()
    assert "joint" not in bundle_of(dataset, tmp_path).provenance


def test_a_domain_reads_both_where_they_rank_its_validation_items_better(
    dataset: Dataset, tmp_path: Path, many_rows: None
) -> None:
    """The joint one has learned and the adapted ones have not; its shares come with it, and the manifest says so."""
    bundle = bundle_of(dataset, tmp_path)
    tried = bundle.provenance["joint"]["tried"]

    assert bundle.joint is not None
    for domain, expert in zip(DOMAINS, bundle.experts, strict=True):
        token_range, found = bundle.vocabulary.token_range(domain), tried[domain]
        held_out = choose_held_out(dataset.train, dataset.validation, token_range)
        adapted, alone = (try_own_shares(which, held_out, token_range) for which in (expert, bundle.joint))
        parts = bundle.expert_parts(domain)
        states_ND = read_parts(parts, held_out.histories, token_range)
        both_N = ndcg_by_row(states_ND, table_of(parts, token_range), held_out, token_range)
        assert (found["adapted"], found["joint"]) == (pytest.approx(adapted.best), pytest.approx(alone.best))
        assert found["both"] == pytest.approx(both_N.mean())
        assert found["both"] - found["adapted"] > found["standard_error"] > 0
        assert bundle.tuning(domain) == TargetTuning(adapted.shares, None, JointShare(0.5, alone.shares))
    assert json.loads(json.dumps(bundle.provenance)) == bundle.provenance


def test_a_joint_expert_that_adds_nothing_is_left(dataset: Dataset, tmp_path: Path, many_rows: None) -> None:
    """Adapted experts that have learned as much keep their domains; only the manifest knows of the other."""
    bundle = bundle_of(dataset, tmp_path, base=LEARNING, expert=LEARNING, joint=NOTHING)
    without = bundle_of(dataset, tmp_path / "without", base=LEARNING, expert=LEARNING, joint=None)

    assert set(bundle.provenance["joint"]["tried"]) == set(DOMAINS)
    assert (bundle.joint, bundle.version) == (None, without.version)


def test_equal_experts_leave_the_adapted_one(dataset: Dataset) -> None:
    """A difference of nothing is within its error of nothing."""
    domain = dataset.vocabulary.token_range("food")
    expert = Decoder(SIZE).eval()
    choice = choose_expert(expert, expert, choose_held_out(dataset.train, dataset.validation, domain), domain)

    assert choice.trial is not None
    assert choice.trial.adapted == choice.trial.joint == choice.trial.both
    assert choice.joint is None


@pytest.mark.parametrize(
    "without",
    [{"joint": None}, {"sampled_softmax": 12}, {"two_readings": False}, {"experts": "single-domain"}],
    ids=["switched off", "sampled softmax", "one reading", "an ablation"],
)
def test_there_is_none_where_it_has_no_place(
    dataset: Dataset, tmp_path: Path, many_rows: None, without: dict[str, object]
) -> None:
    assert "joint" not in bundle_of(dataset, tmp_path, **without).provenance


def test_a_refit_trains_the_joint_expert_again(dataset: Dataset, tmp_path: Path, many_rows: None) -> None:
    """On everything, to the epoch that validation chose; what each domain reads stays."""
    bundle = bundle_of(dataset, tmp_path, refit=True)
    first = bundle_of(dataset, tmp_path / "first")

    assert bundle.provenance["joint"] == first.provenance["joint"]
    assert bundle.tunings == first.tunings
    assert bundle.joint is not None
    assert first.joint is not None
    assert not torch.equal(bundle.joint.item_embeddings_VD, first.joint.item_embeddings_VD)


def test_a_run_that_stopped_in_the_joint_expert_ends_with_the_same_bundle(
    dataset: Dataset, tmp_path: Path, many_rows: None
) -> None:
    class StopError(Exception):
        """Ends a run early, as a kill would."""

    class Stop(Silent):
        def on_epoch(self, report: EpochReport) -> None:
            if (report.stage, report.epoch) == (joint.JOINT_STAGE, 3):
                raise StopError

    config = PipelineConfig(NetworkConfig(width=16, inner_width=16), LITTLE, LITTLE, joint=LEARNING)
    arguments = {"device": CPU, "run_directory": tmp_path / "run"}
    with pytest.raises(StopError):
        train_bundle(dataset, tmp_path / "bundle", config, progress=Stop(), **arguments)
    resumed = train_bundle(dataset, tmp_path / "bundle", config, **arguments)

    assert resumed.version == bundle_of(dataset, tmp_path / "undisturbed").version
    assert not (tmp_path / "run").exists()


def test_a_refresh_goes_on_with_the_joint_expert(dataset: Dataset, tmp_path: Path, many_rows: None) -> None:
    """With no epoch it is yesterday's, to the bit of its ranking; without one yesterday, none is begun."""
    earlier = bundle_of(dataset, tmp_path / "earlier")
    config = PipelineConfig(NetworkConfig(width=16, inner_width=16), LITTLE, LITTLE)
    still = dataclasses.replace(config, joint=dataclasses.replace(LEARNING, max_epochs=0))
    for number, init in enumerate((earlier, bundle_of(dataset, tmp_path / "none", joint=None))):
        out = tmp_path / str(number)
        train_bundle(dataset, out / "bundle", still, device=CPU, run_directory=out / "run", init=init)
    refreshed, plain = (load_bundle(tmp_path / name / "bundle") for name in ("0", "1"))

    assert (plain.joint, "joint" in plain.provenance) == (None, False)
    assert refreshed.joint is not None
    assert earlier.joint is not None
    for name, weights in refreshed.joint.state_dict().items():
        torch.testing.assert_close(weights, earlier.joint.state_dict()[name])
