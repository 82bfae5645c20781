"""
Which versions serve, as SQL holds it: the one truth that every API replica and every worker follows.

Decisions are numbered and appended. Whoever decides first says what was decided last: the number after it can be taken
once only, so of two decisions at the same time one is made anew on top of the other, and none is lost.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from app.access.audit import Act, append_act
from app.errors import ActivationConflictError, ModelUnavailableError
from app.storage.database import now_ms, reading, writing
from app.storage.tables import activations

# Replicas look so often: one row of one small table. Nothing is sent to them, so nothing can be lost on the way.
FOLLOW_SECONDS = 0.5


class OvertakenError(Exception):
    """Somebody else decided first."""


@dataclass(frozen=True)
class Serving:
    """
    Which versions serve.

    Args:
        number: of the decision; 0 where none is recorded, and a process serves what it was started with.
        active: answers whatever the canary does not; None when nothing serves.
        previous: what a roll back would activate; None when there is nothing.
        canary: answers a share of the requests; None when there is none.
        canary_share: that share, in (0, 1] with a canary, else 0.
    """

    number: int = 0
    active: str | None = None
    previous: str | None = None
    canary: str | None = None
    canary_share: float = 0.0

    @property
    def versions(self) -> tuple[str, ...]:
        """Those that answer requests which name none."""
        return tuple(version for version in (self.active, self.canary) if version is not None)

    def activated(self, version: str) -> Serving:
        """The next decision: *version* alone; this one, where it serves alone already."""
        previous = self.previous if version == self.active else self.active
        if self.number and (version, None) == (self.active, self.canary):
            return self
        return Serving(self.number + 1, version, previous)

    def with_canary(self, version: str, share: float) -> Serving:
        """
        The next decision: *version* answers a share of the requests, instead of a canary that there may be.

        Raises:
            ModelUnavailableError: nothing is active, so there is nothing to compare with.
            ActivationConflictError: it is the active one.
        """
        if self.active is None:
            raise ModelUnavailableError("no model is loaded; activate one first")
        if version == self.active:
            raise ActivationConflictError(f"{version} is active: a canary is another version")
        return replace(self, number=self.number + 1, canary=version, canary_share=share)

    def rolled_back(self) -> Serving:
        """
        The next decision: without the canary, if there is one; else what was active before, and the other way round.

        Raises:
            ActivationConflictError: there is neither.
        """
        if self.canary is not None:
            return replace(self, number=self.number + 1, canary=None, canary_share=0.0)
        if self.previous is None:
            raise ActivationConflictError("there is nothing to roll back to: no other version was active before")
        return Serving(self.number + 1, self.previous, self.active)

    def version_for(self, key: str) -> str | None:
        """
        The version that answers *key*, a user's id say: always the same while this decision stands.

        Which keys go to a canary depends on its version, so that not the same users meet every canary.
        """
        if self.canary is None:
            return self.active
        digest = hashlib.sha256(f"{self.canary}\0{key}".encode()).digest()
        drawn = int.from_bytes(digest[:6], "big") / (1 << 48)  # in [0, 1): 48 bits are exact in a float
        return self.canary if drawn < self.canary_share else self.active


class ActivationStore:
    """
    The decisions in SQL; every method is one transaction.

    Args:
        engine: of the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def latest(self) -> Serving | None:
        """The last decision; None when there was none. Raises StoreUnavailableError."""
        columns = (activations.c[name] for name in ("number", "active", "previous", "canary", "canary_share"))
        with reading(self._engine) as connection:
            row = connection.execute(select(*columns).order_by(activations.c.number.desc()).limit(1)).one_or_none()
        return None if row is None else Serving(*row)

    def record(self, decided: Serving) -> None:
        """
        Append a decision.

        Raises:
            OvertakenError: another one has its number.
            StoreUnavailableError: the database does not answer; whether it was appended is then unknown.
        """
        try:
            with writing(self._engine) as connection:
                connection.execute(
                    insert(activations).values(
                        number=decided.number,
                        active=decided.active,
                        previous=decided.previous,
                        canary=decided.canary,
                        canary_share=decided.canary_share,
                        at_ms=now_ms(),
                    )
                )
                detail = {"canary": decided.canary, "canary_share": decided.canary_share} if decided.canary else {}
                append_act(connection, Act.SERVE, str(decided.active), previous=decided.previous, **detail)
        except IntegrityError as error:
            raise OvertakenError from error
