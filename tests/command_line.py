"""The command in a process of its own, and options that make its training small."""

from __future__ import annotations

import sys

COMMAND = [sys.executable, "-c", "from app.cli.taesar import main; main()"]
TINY = ("--width", "16", "--heads", "2", "--layers", "1", "--batch-size", "8", "--device", "cpu", "--no-trial")
NO_EPOCHS = ("--epochs", "0", "--expert-epochs", "0")
NO_TRAINING = (*TINY, *NO_EPOCHS)
