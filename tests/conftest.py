"""One torch thread: small tensors are quicker that way, and results do not depend on the cores. Ctrl-C counts."""

from __future__ import annotations

import signal

import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what runs in its background so
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
