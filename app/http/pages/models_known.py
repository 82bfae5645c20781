"""The models as pages need them: which one serves, and what its domains are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.http.pages.own_api import OwnApi
from app.http.pages.rendering import colour_numbers


@dataclass(frozen=True)
class ServingModel:
    """
    The model that answers.

    Args:
        version: hash of its content.
        name: what people call it, or its version.
        rule: how it decides.
        domains: their names, in the order of their items' numbers.
        facts: all that GET /models says of it.
    """

    version: str
    name: str
    rule: str
    domains: list[str]
    facts: Mapping[str, Any]

    @property
    def colours(self) -> dict[str, int]:
        """Which colour each domain has."""
        return colour_numbers(self.domains)

    def domain(self, name: str) -> Mapping[str, Any]:
        """What is said of one domain."""
        return next(domain for domain in self.facts["domains"] if domain["name"] == name)

    def chosen(self, target: str) -> str:
        """*target* if it is a domain; else the last, as the first is most often the one that others learn from."""
        return target if target in self.domains else self.domains[-1]


async def serving_model(api: OwnApi) -> ServingModel | None:
    """The model that answers, or None where none is loaded."""
    models = await api.get("/models")
    facts = next((model for model in models["loaded"] if model["active"]), None)
    if facts is None:
        return None
    domains = [domain["name"] for domain in facts["domains"]]
    return ServingModel(facts["version"], facts["name"] or facts["version"], facts["rule"], domains, facts)
