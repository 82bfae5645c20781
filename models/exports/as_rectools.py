"""RecTools: ``user_id, item_id, weight, datetime``, as ``rectools.Columns`` names them."""

from __future__ import annotations

from models.exports.frames import Frame, frame_format

FORMAT = frame_format(Frame("user_id", "item_id", time="datetime", weight="weight", instants=True))
