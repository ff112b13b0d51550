"""What holds for all tests."""

from __future__ import annotations

import signal

# whoever starts the tests in the background of a shell has them ignore Ctrl-C, and all processes that they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
