"""The statistics file of one worker: JSON, replaced atomically, so that it is whole after a kill too."""

import json
import os
import time
from collections.abc import Callable

REFRESH_SECONDS = 1.0


class StatisticsFile:
    """Writes what `collect` gives to `path`: at most once a second by tick(), and by write() at the end."""

    def __init__(self, path: str, rank: int, world_size: int, collect: Callable[[], dict]) -> None:
        self._path = path if world_size == 1 or not path else f"{path}.rank{rank}"
        self._collect = collect
        self._next = 0.0

    def tick(self) -> None:
        if self._path and time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        if not self._path:
            return
        self._next = time.monotonic() + REFRESH_SECONDS
        temporary = f"{self._path}.{os.getpid()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self._collect(), file, indent=1)
        os.replace(temporary, self._path)
