"""A batch from its file to its videos: check all of it, see what is there already, make the rest."""

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from cosmos3_models import InvalidInput
from cosmos3_models.params import MAX_SEED
from serve.client.batch.checks import Checks
from serve.client.batch.lines import InvalidBatch, Line, Lines
from serve.client.batch.output import Listed, Output
from serve.client.batch.pace import MOST, Pace, Place, Stopped
from serve.client.batch.report import Report, Summary
from serve.client.batch.threads import share
from serve.client.batch.wanted import Options, Plan, Wanted
from serve.client.videos import RemoteError, RemoteVideos

READERS = 16  # records that are read at a time: one of a remote store takes long, but costs nothing
NOTICE_PERIOD_S = 10.0
DEFAULTS = Options()
SILENT = Report()


def run(
    file: str | Path,
    out: str | Path,
    url: str = "http://127.0.0.1:8000",
    api_key: str | None = None,
    options: Options = DEFAULTS,
    report: Report = SILENT,
) -> Summary:
    """Make every video of a file that is not in ``out`` yet.

    It may be interrupted or killed at any time, and run again from any machine: finished videos are found by their
    records, and those on the server by keys that follow from the lines. An interrupt withdraws what the server has not
    started; what it has started, the next run collects.

    Args:
        file: one JSON request a line.
        out: a folder, or an fsspec URL.
        url: of the server.
        report: told what happens.

    Raises:
        InvalidBatch: a line, an option or ``out`` is invalid; nothing was started.
        RemoteError: the server refused the key or was lost for ten minutes. Run it again to go on.
    """
    start, saying = time.monotonic(), threading.Lock()
    _check_options(options)
    with ExitStack() as stack:
        lines = stack.enter_context(closing(Lines(Path(file))))
        listed = stack.enter_context(closing(Listed()))
        server = stack.enter_context(closing(RemoteVideos(url, api_key, _Notices(report, saying))))
        _check(lines, Checks(server.models(), options), listed, report)
        batch = _Batch(Plan(lines, options), server, Output(str(out)), listed, (report, saying))
        batch.find()
        try:
            batch.make(options.max_failures)
        except BaseException:
            with suppress(Exception):  # what ended the batch may keep the list from its place as well
                batch.output.write_list(listed)
            raise
        batch.output.write_list(listed)
        return Summary(len(batch.plan), sum(batch.found), batch.made, batch.failed, time.monotonic() - start)


def _check_options(options: Options) -> None:
    seeds = options.seeds
    if options.repeat < 1:
        raise InvalidBatch(f"repeat: got {options.repeat}, expected 1 or more")
    if seeds and options.repeat > 1:
        raise InvalidBatch("repeat: got it beside seeds, expected one of the two: each seed is one video of a line")
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise InvalidBatch(f"seeds: got {[*seeds]!r:.80}, expected different numbers from 0 to {MAX_SEED}")


def _check(lines: Lines, checks: Checks, listed: Listed, report: Report) -> None:
    """Read and check all lines, and report each that is invalid.

    Raises:
        InvalidBatch: there is one, or no line at all.
    """
    invalid = 0
    for number, line in lines.read():
        try:
            _check_line(line, checks, listed)
        except InvalidInput as error:
            invalid += 1
            report.invalid(number, str(error))
    if invalid:
        raise InvalidBatch(f"{invalid} of {len(lines)} lines are invalid; nothing was started")
    if not len(lines):
        raise InvalidBatch("the file has no request")


def _check_line(line: Line | InvalidInput, checks: Checks, listed: Listed) -> None:
    if isinstance(line, InvalidInput):
        raise line
    checks.check(line)
    if (earlier := listed.name(line.name, line.number)) is not None:
        raise InvalidInput("name", line.name, "a new name", f"line {earlier} has it, and files are named so")


class _Notices:
    """Passes on what the client says of its connections, of which many break at the same moment."""

    def __init__(self, report: Report, saying: threading.Lock) -> None:
        self._report, self._lock = report, saying
        self._said_at = -NOTICE_PERIOD_S

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._said_at >= NOTICE_PERIOD_S:
                self._said_at = now
                self._report.note(text)


class _TooManyFailures(Exception):
    """More videos have failed than may."""


class _Batch:
    """A checked batch.

    Attributes:
        found: for each place of the plan, whether its video was there before.
        made, failed: videos of this run.
    """

    def __init__(
        self,
        plan: Plan,
        server: RemoteVideos,
        output: Output,
        listed: Listed,
        told: tuple[Report, threading.Lock],
    ) -> None:
        self.plan, self.output = plan, output
        self._server, self._listed = server, listed
        self._report, self._lock = told  # the lock is that of all below as well
        self._pace = Pace()
        self._ending = False
        self.found = bytearray(len(plan))
        self.made = self.failed = 0
        self._may_fail: int | None = None

    def find(self) -> None:
        """Find the videos that are there already."""
        share(iter(range(len(self.plan))), self._find, READERS)
        self._report.begins(len(self.plan), sum(self.found))

    def make(self, max_failures: int | None) -> None:
        """Make the other ones, until all have ended or more have failed than may."""
        self._may_fail = max_failures
        missing = (place for place in self.plan.order() if not self.found[place])
        try:
            share(missing, self._make, min(MOST, len(self.plan) - sum(self.found)))
        except _TooManyFailures:
            self._withdraw()
            self._report.note(f"{self.failed} videos have failed, which ends the batch")
        except BaseException:
            self._withdraw()
            raise

    def _find(self, take: Callable[[], int | None]) -> None:
        while (place := take()) is not None:
            record = self.output.finished(self._planned(place))
            if record is not None:
                self._listed.add(place, record)
                self.found[place] = True

    def _planned(self, place: int) -> Wanted:
        try:
            return self.plan.at(place)
        except InvalidInput as error:
            raise InvalidBatch(f"the file or what it names has changed since it was checked: {error}") from None

    def _make(self, take: Callable[[], int | None]) -> None:
        with suppress(Stopped):
            while self._make_next(take) is not None:
                pass

    def _make_next(self, take: Callable[[], int | None]) -> int | None:
        """Make the next video, and return its place; None if there is none left."""
        with self._pace.place() as slot:
            with self._pace.turn():
                place = take()
                if place is None:
                    return None
                video = self._planned(place)
                submitted = self._submitted(video, slot)
            end = self._followed(video, slot) if submitted else None
        if end is not None:
            self._save(place, video, end["video"])
        return place

    def _submitted(self, video: Wanted, slot: Place) -> bool:
        file = None if video.reference is None else video.reference[0]
        try:
            wait = self._pace.refused
            slot.video_id = self._server.submit(video.fields, video.key, file, again=True, wait=wait)
        except (RemoteError, OSError) as error:
            self._fail(video, error)
        return slot.video_id is not None

    def _followed(self, video: Wanted, slot: Place) -> dict[str, Any] | None:
        """The last event of a video that is complete."""
        try:
            end = self._server.follow(str(slot.video_id), slot.saw)
            if end["type"] == "completed":
                return end
            deleted = end["type"] == "deleted"
            raise RemoteError("the video was deleted" if deleted else end["video"]["error"]["message"])
        except RemoteError as error:
            self._fail(video, error)
            return None

    def _save(self, place: int, video: Wanted, record: dict[str, Any]) -> None:
        # A folder of its own: this thread may outlive the batch, and must not meet its clean-up. At the program's exit
        # that may happen still, and is no error.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / video.name
            try:
                self._server.download(record["id"], file)
            except RemoteError as error:
                return self._fail(video, error)
            saved = self.output.save(video, record, file)
        self._listed.add(place, saved)
        with self._lock:
            self.made += 1
            if not self._ending:
                self._report.made(saved)

    def _fail(self, video: Wanted, error: Exception) -> None:
        """Count a failure of one video; raise the errors that all others would meet as well."""
        if isinstance(error, RemoteError) and error.wait_s is not None:
            raise error
        with self._lock:
            if self._ending:
                raise Stopped
            self.failed += 1
            self._report.failed(video.name, video.line, str(error))
            if self._may_fail is not None and self.failed > self._may_fail:
                self._ending = True
                raise _TooManyFailures

    def _withdraw(self) -> None:
        """Delete what the server has not started."""
        with self._lock:
            self._ending = True
        with suppress(RemoteError):
            for video_id in self._pace.stop():
                self._server.delete(video_id)
