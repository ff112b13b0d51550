"""The processes of a run, as what happens around its stages sees them. Imports no torch where there is but one."""

from __future__ import annotations

import os
from typing import Any

from unified.errors import PluginError

#: what a process says whose companion has gone; that one says why
LOST = "another process of this run has ended, and this one with it"


class Team:
    """The processes of a run: one, unless a launcher started several. Only the main one writes."""

    def __init__(self) -> None:
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from unified.accelerating import process_state

            self._state = process_state()

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self._state is None or bool(self._state.is_main_process)

    def wait(self) -> None:
        """Go on when all processes are here."""
        try:
            if self._state is not None:
                self._state.wait_for_everyone()
        except RuntimeError as error:
            if self.lost_another(error):
                raise PluginError(LOST) from error
            raise

    def lost_another(self, error: BaseException) -> bool:
        """Whether an error only tells that another process has gone."""
        if self._state is None:
            return False
        from unified.processes import lost_another

        return lost_another(error)

    def close(self) -> None:
        """Part in good order: a process that ends while others still talk to it takes them down."""
        if self._state is not None:
            self.wait()
            self._state.destroy_process_group()
