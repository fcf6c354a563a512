"""The errors a caller can meet. Each says what came, what was expected and why."""


class InvalidInput(ValueError):
    """A request that cannot be served.

    Args:
        param: the field at fault.
        got: the offending value; it is shown with ``repr`` and cut to a readable length.
        expected: what would have been accepted.
        why: the reason for the rule.
    """

    def __init__(self, param: str, got: object, expected: str, why: str) -> None:
        super().__init__(param, got, expected, why)
        self.param, self.got, self.expected, self.why = param, got, expected, why

    def __str__(self) -> str:
        return f"{self.param}: got {_short(self.got)}, expected {self.expected}, because {self.why}"


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; names the file and what is wrong with it."""

    def __init__(self, file: object, problem: str) -> None:
        super().__init__(str(file), problem)
        self.file, self.problem = str(file), problem

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


class Stopped(Exception):
    """The caller asked for a stop between two steps; nothing was produced."""


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
