"""What sees every operation of torch's, without torch's compiler."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):
    """A dispatch mode that does not bring in torch's compiler, which takes seconds: nothing here is compiled."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls, **options: Any) -> None:
        """Without torch's, which imports its compiler at the first use, to keep it out of the mode."""
        super(TorchDispatchMode, cls).__init_subclass__(**options)
