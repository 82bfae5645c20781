"""
The first lines of the ``taesar`` command: an interrupt while the rest of it is being imported ends it without a word.

That takes some tenths of a second, in which Python would answer Ctrl-C with a traceback of whatever it was reading.
"""

from __future__ import annotations

import signal


def launch() -> None:
    """What the installed command runs. Interrupts that were ignored, as behind a script's ``&``, stay so."""
    answers = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if answers:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app.cli.taesar import start

    if answers:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    start()
