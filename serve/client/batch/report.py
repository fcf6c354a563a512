"""What a batch says while it runs."""

from typing import Any, NamedTuple


class Summary(NamedTuple):
    """How a batch ended.

    Attributes:
        total: videos of the batch.
        found: those that were there before.
        made: those that this run has made.
        failed: those that this run could not make.
        seconds: the run took.
    """

    total: int
    found: int
    made: int
    failed: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every video of the batch is there."""
        return self.found + self.made == self.total


class Report:
    """Silent; override what is of interest. All methods are called from one thread at a time."""

    def invalid(self, line: int, problem: str) -> None:
        """A line is invalid. Nothing will be started, but the other lines are still checked."""

    def note(self, text: str) -> None:
        """Something that a user may want to know."""

    def begins(self, total: int, found: int) -> None:
        """The file is valid; so many of its videos are there already."""

    def made(self, saved: dict[str, Any]) -> None:
        """A video was saved with this record."""

    def failed(self, name: str, line: int, problem: str) -> None:
        """A video could not be made."""
