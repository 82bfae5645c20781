"""The registry of rules: a new rule is one file and one line, and is then offered wherever rules are."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.taesar import cli
from app.http.application import create_app
from app.settings import Settings
from models.bundle import Bundle
from models.decoding.regenerator import Regenerator
from models.decoding.rules import DEFAULT_RULE, RULES, Rule, RuleEntry, describe_rules, load_rule
from models.decoding.window import Choices, Window
from models.network.decoder import DecoderConfig
from tests.conftest import DOMAINS


class FirstItemRule:
    """Every source item becomes the target domain's first item; three items are read."""

    def max_items(self, config: DecoderConfig) -> int:
        return 3

    def prepare(self, bundle: Bundle) -> None:
        pass

    def choose(self, window: Window, bundle: Bundle, target: str, *, training_rows: bool) -> Choices:
        choices = Choices.all_deleted(len(window.tokens_N))
        choices.replacements_N[:] = bundle.vocabulary.token_range(target).first
        return choices


FIRST_ITEM = FirstItemRule()


def test_a_new_rule_is_a_line_in_the_registry(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The regenerator knows no rule by name: it reads, decides and assembles by what the line points to."""
    monkeypatch.setitem(RULES, "first-item", RuleEntry(f"{__name__}:FIRST_ITEM", "writes the first item"))
    target, other = (bundle.vocabulary.token_range(domain) for domain in DOMAINS[:2])
    regenerator = Regenerator(bundle, "first-item")
    sequence = np.asarray([other.first, target.last, other.first, other.last, target.last])

    (result,) = regenerator.regenerate([sequence], DOMAINS[0])

    assert regenerator.max_items == 3
    assert result.token_ids.tolist() == [target.first, target.last]
    assert (result.kept, result.replaced, result.deleted) == (1, 2, 0)
    assert "'first-item' writes the first item." in describe_rules()


@pytest.mark.parametrize("name", RULES)
def test_every_registered_rule_is_there_and_says_what_it_does(name: Rule) -> None:
    """Its line points to code that reads at least as much as the decoder has positions."""
    assert load_rule(name).max_items(DecoderConfig(num_items=1, max_length=32)) in (32, 33)
    assert f"'{name}' {RULES[name].summary}." in describe_rules()
    assert len(RULES[name].summary.split()) > 3


def test_the_names_offered_are_the_registered_ones() -> None:
    """Commands, settings and the HTTP interface take ``Rule``; none of them lists rules of its own."""
    assert get_args(Rule) == tuple(RULES)
    assert DEFAULT_RULE in RULES


def test_help_settings_and_openapi_describe_every_rule() -> None:
    """Each from the registry, so that no summary can say otherwise."""
    words = describe_rules()
    shown = CliRunner().invoke(cli, ["regenerate", "--help"], env={"COLUMNS": "500", "TERM": "dumb"})
    openapi = create_app(Settings()).openapi()
    setting = Settings.model_fields["rule"].description

    assert all(f"'{name}'" in shown.output for name in RULES)
    assert setting is not None
    assert setting.endswith(words)
    assert openapi["components"]["schemas"]["Model"]["properties"]["rule"]["description"].endswith(words)


def test_only_contrastive_rules_are_called_so() -> None:
    """Rule ``anticipate``, the default, reads one expert and contrasts nothing."""
    assert "without contrastive decoding" in RULES["anticipate"].summary
    assert "contrastive" not in create_app(Settings()).openapi()["info"]["summary"]
