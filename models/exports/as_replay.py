"""RePlay: ``user_id, item_id, rating, timestamp``, the latter in whole nanoseconds, to sort by."""

from __future__ import annotations

from models.exports.frames import Frame, frame_format

FORMAT = frame_format(Frame("user_id", "item_id", time="timestamp", weight="rating", instants=False))
