"""A job as the table, its runner and its readers see it: plain values, no SQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cosmos3_models.media.reading import MediaInfo
from cosmos3_models.references import ReferenceKind
from serve.estimates.observed_jobs import Preview
from serve.graph.artifacts import MAIN, PREVIEW, Artifact
from serve.inputs.inspection import CheckedReference
from serve.jobs.webhooks.settings import NO_WEBHOOKS, WebhookSettings

ACTIVE = ("queued", "in_progress")


@dataclass(frozen=True)
class JobSettings:
    """How jobs are stored and retried. Times are seconds.

    Attributes:
        database_url: SQLite or PostgreSQL, as SQLAlchemy writes it.
        lease_s: a runner that sends no heartbeat for this long has lost its jobs.
        max_attempts: how often a job's denoise may start.
        max_queued_jobs: further ones are refused.
        max_upsampling: jobs whose prompts are rewritten at a time.
        job_deadline_s: a job that has not ended this long after its creation fails.
        retention_s: how long the record and the files of an ended job stay.
        webhooks: how the ends of jobs are sent to clients.
    """

    database_url: str
    lease_s: float
    max_attempts: int
    max_queued_jobs: int
    job_deadline_s: float
    retention_s: float
    webhooks: WebhookSettings = NO_WEBHOOKS
    max_upsampling: int = 16


class StoredArtifact(NamedTuple):
    """An output of a completed job, as its row lists it.

    Attributes:
        name: which output it is, such as video or thumbnail.
        size: bytes; None for one that a release before version 3 of the table stored.
        file: its name in the media store: the database's folder, the claim's token, and a suffix.
        step: of a preview, the steps done when it was estimated.
        shown_at: of a preview, the steps done when it was stored.
    """

    name: str
    media_type: str
    size: int | None
    file: str
    step: int | None = None
    shown_at: int | None = None

    @classmethod
    def of(cls, artifact: Artifact, prefix: str) -> "StoredArtifact":
        """The entry for an artifact whose file's name starts with ``prefix``."""
        kind = "" if artifact.name in MAIN else f".{artifact.name}"
        return cls(artifact.name, artifact.media_type, len(artifact.data), f"{prefix}{kind}{artifact.extension}")

    @classmethod
    def of_preview(cls, jpeg: bytes, prefix: str, step: int) -> "StoredArtifact":
        """The entry for a preview. Its file's name differs from that of the one before it, which may be being read."""
        artifact = Artifact.of(PREVIEW, jpeg)
        file = f"{prefix}.{PREVIEW}-{step}{artifact.extension}"
        return cls(PREVIEW, artifact.media_type, len(jpeg), file, step)

    @property
    def stored(self) -> dict[str, Any]:
        """The entry as JSON. An entry without steps has no fields for them, which earlier releases do not know."""
        return {name: value for name, value in self._asdict().items() if value is not None or name == "size"}

    @property
    def suffix(self) -> str:
        """The part of the file's name that tells what it is, such as ``.thumbnail.jpg``."""
        return "." + self.file.rpartition("/")[2].partition(".")[2]


class StoredInput(NamedTuple):
    """The picture or clip that a job starts from, as its row describes it.

    Attributes:
        kind: image or video.
        file: its name in the media store, which other jobs with the same bytes may name as well.
        size: bytes.
        width, height: pixels.
        frames: 1 of an image.
        file_id: the video of this server that it is, if the client gave it as such.
        continued: whether the result begins with all frames of the clip.
    """

    kind: ReferenceKind
    file: str
    size: int
    width: int
    height: int
    frames: int
    file_id: str | None = None
    continued: bool = False

    @property
    def media(self) -> MediaInfo:
        """What the check of the file found."""
        return MediaInfo(self.kind, self.width, self.height, self.frames)

    @classmethod
    def of(cls, reference: CheckedReference, file: str, continued: bool = False) -> "StoredInput":
        """The entry for a reference whose bytes are in ``file``."""
        media, size = reference.media, reference.upload.size
        return cls(media.kind, file, size, media.width, media.height, media.frames, reference.file_id, continued)


def preview_among(artifacts: Sequence[StoredArtifact]) -> Preview | None:
    """Which preview is among the artifacts of a job, if any."""
    return next((Preview(one.step or 0, one.shown_at or 0) for one in artifacts if one.name == PREVIEW), None)


def token_of(file: str) -> str:
    """The token of the claim that stored a file."""
    return file.rpartition("/")[2].partition(".")[0]


@dataclass(frozen=True)
class Job:
    """One row. Times are seconds since the epoch by the database's clock.

    Attributes:
        seq: order of arrival.
        params: the fields of the request's ``GenerationParams``.
        cost: fields of the ``Cost``; None for a row of version 1.
        fingerprint: of the request as the client sent it; None for a row of version 1.
        seconds: the video's length, if the client gave it as such.
        metadata: the client's own texts by name; None for a row of version 1.
        owner: token of the current claim; None while no runner has claimed the job.
        attempts: how often its denoise has started.
        steps: of the denoise; ``step`` of them are done.
        artifacts: what it made, the main one first; until it has completed, its newest preview at most.
        input_reference: the picture or clip that it starts from.
        input_sha256: of its bytes.
        remixed_from_video_id: the video whose request this is with another prompt.
        traceparent: the span of the request that stored it, which its own spans follow; None if nothing is traced.
        webhook_url: where the event of its end is sent.
        webhook_due_at: when it is sent the next time; None before the end, and when there is nothing to send.
        webhook_attempts: how often sending it was started.
        upsampling_pending: its prompt must be rewritten before it can start.
        revised_prompt: the rewritten one.
        prompt_upsampling_error: why there is none.
    """

    seq: int
    id: str
    status: str
    model: str
    params: dict[str, Any]
    cost: dict[str, Any] | None
    fingerprint: str | None
    seconds: str | None
    metadata: dict[str, str] | None
    idempotency_key: str | None
    request_id: str | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    deadline_at: float
    expires_at: float | None
    owner: str | None
    lease_until: float
    attempts: int
    cancel_requested: bool
    stage: str | None
    step: int
    steps: int
    stage_durations: dict[str, float] | None
    error_code: str | None
    error_message: str | None
    artifacts: Sequence[StoredArtifact]
    input_reference: StoredInput | None
    input_sha256: str | None
    remixed_from_video_id: str | None
    traceparent: str | None
    webhook_url: str | None
    webhook_due_at: float | None
    webhook_attempts: int
    upsampling_pending: bool
    revised_prompt: str | None
    prompt_upsampling_error: str | None

    @property
    def ended(self) -> bool:
        """Whether it has completed or failed."""
        return self.status not in ACTIVE

    @property
    def files(self) -> list[str]:
        """The names of its files in the media store."""
        return [artifact.file for artifact in self.artifacts]

    @property
    def preview(self) -> Preview | None:
        """Its newest preview."""
        return preview_among(self.artifacts)

    @property
    def main(self) -> StoredArtifact | None:
        """The video or image; None until the job has completed."""
        return next((artifact for artifact in self.artifacts if artifact.name in MAIN), None)

    @property
    def continues(self) -> bool:
        """Whether its result begins with all frames of its clip."""
        return self.input_reference is not None and self.input_reference.continued

    def artifact(self, name: str) -> StoredArtifact | None:
        """The output of this name; None if the job has none."""
        return next((artifact for artifact in self.artifacts if artifact.name == name), None)


class NewJob(NamedTuple):
    """What a client asked for; see ``Job``.

    Attributes:
        shares_input: its input is the file of other jobs, at least one of which must still be in the table.
    """

    model: str
    params: dict[str, Any]
    cost: dict[str, Any]
    steps: int
    fingerprint: str | None = None
    seconds: str | None = None
    metadata: dict[str, str] | None = None
    idempotency_key: str | None = None
    request_id: str | None = None
    input_reference: StoredInput | None = None
    input_sha256: str | None = None
    remixed_from_video_id: str | None = None
    webhook_url: str | None = None
    upsampling_pending: bool = False
    traceparent: str | None = None
    shares_input: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The columns of a new row."""
        fields = self._asdict()
        del fields["shares_input"]
        return fields | {"input_reference": self.input_reference and self.input_reference._asdict()}


class Caller(NamedTuple):
    """What a request says about itself, besides the video that it wants.

    Attributes:
        idempotency_key: a second request with the same key and fields is the same job.
        request_id: of the HTTP request, for the log.
    """

    idempotency_key: str | None = None
    request_id: str | None = None


class Origin(NamedTuple):
    """How a job derives from an earlier video.

    Attributes:
        remixed_from: whose request it is with another prompt.
        continues: whether it continues its clip, whose frames the result begins with.
    """

    remixed_from: str | None = None
    continues: bool = False


OF_ITS_OWN = Origin()


class InputGone(Exception):
    """The jobs with which a new one shares its input were deleted, and the file with them."""


class Deleted(NamedTuple):
    """A deleted job, and its files, which no other job names."""

    job: Job
    files: list[str]


class Started(NamedTuple):
    """A denoise that has started: how many of the job have, and the seconds since the job was stored."""

    attempts: int
    waited_s: float


class ClaimProgress(NamedTuple):
    """The stage and the step of a claimed job, as its runner reports them."""

    stage: str | None = None
    step: int = 0


class Outcome(NamedTuple):
    """Why a job failed: a code for programs and a message for readers."""

    code: str
    message: str


CANCELLED = Outcome("cancelled", "the job was cancelled")
DEADLINE = Outcome("deadline_exceeded", "the job did not end before its deadline")
LOST = Outcome("attempts_exhausted", "the processes that worked on this job died too often")


class FailedJob(NamedTuple):
    """A job that has failed, and why."""

    id: str
    request_id: str | None
    outcome: Outcome
