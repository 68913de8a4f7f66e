"""Lines that could not be used: counted by reason, listed with file and line, and never too many.

One bad line must not end a run after hours, and thousands of them must not pass unseen. So every reader of
documents reports what it skips to a `Rejects`, which writes each case down and stops the run past a rate.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO

NUM_CASES_SHOWN = 5


class Rejects:
    """Counts skipped lines by reason; past `max_rate` of the lines read, `check` stops the run.

    `path`: a file that receives one JSON line `{file, line, reason}` per case as it happens. It appears with the
    first case; a file left there by an earlier run is removed at once, so it never speaks for another run.
    `max_rate`: share of the lines read, in [0, 1]. It is judged once `min_count` lines were read, so that one
    bad line among the first ten does not stop a corpus of millions.
    """

    def __init__(self, path: str | Path | None = None, max_rate: float = 0.01, min_count: int = 100) -> None:
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_rate is a share of the lines read, between 0 and 1; got {max_rate}")
        self.path = None if path is None else Path(path)
        self.max_rate = max_rate
        self.min_count = min_count
        self.counts: dict[str, int] = {}
        self.num_read = 0
        self._first_cases: list[str] = []
        self._file: IO[str] | None = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def num_rejected(self) -> int:
        """Lines skipped so far, all reasons together."""
        return sum(self.counts.values())

    def add(self, file: str, line: int, reason: str) -> None:
        """Count one skipped line (`line` counts from 1; in parquet it is the row). The caller counts `num_read`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self._first_cases) < NUM_CASES_SHOWN:
            self._first_cases.append(f"{file}:{line} {reason}")
        if self.path is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Line buffered: after kill -9 the cases seen so far can still be read.
            self._file = open(self.path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        json.dump({"file": file, "line": line, "reason": reason}, self._file, ensure_ascii=False)
        self._file.write("\n")

    def check(self) -> None:
        """ValueError, with the counts and the first cases, when more than `max_rate` of the lines read were skipped."""
        rejected = self.num_rejected
        if self.num_read < self.min_count or rejected <= self.max_rate * self.num_read:
            return
        where = f"; all cases are in {self.path}" if self.path is not None else ""
        raise ValueError(
            f"{rejected:,} of {self.num_read:,} lines read ({rejected / self.num_read:.2%}) cannot be used, more than "
            f"the {self.max_rate:.2%} allowed: {self.summary()}. First cases: {'; '.join(self._first_cases)}{where}. "
            "Repair the input, or allow a larger share of rejects."
        )

    def summary(self) -> str:
        """The counts in words, largest first: `not JSON 12, empty text 3`."""
        return ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.counts.items(), key=lambda c: -c[1]))

    def close(self) -> None:
        """Close the file of cases; a later `add` would start it anew."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
