"""What becomes a job: a checked request, what it costs, and where it comes from."""

import hashlib
from typing import NamedTuple

from cosmos3_models import GenerationParams
from serve import tracing
from serve.estimates.cost import Cost
from serve.graph.revision import wants_revision
from serve.inputs.inspection import CheckedReference
from serve.inputs.uploads import Upload
from serve.jobs.job import OF_ITS_OWN, Caller, NewJob, Origin, StoredInput
from serve.schema import VideoRequest

MAX_REQUEST_ID_CHARS = 255


class Wanted(NamedTuple):
    """A request that has been accepted.

    Attributes:
        params: the complete request.
        cost: what it costs, for estimates.
        reference: the picture or clip that it starts from.
    """

    request: VideoRequest
    params: GenerationParams
    cost: Cost
    reference: CheckedReference | None = None
    origin: Origin = OF_ITS_OWN

    @property
    def fingerprint(self) -> str:
        """A hash of the request as the client sent it, and of what it derives from."""
        if self.origin == OF_ITS_OWN:
            return self.request.fingerprint
        return hashlib.sha256(f"{self.request.fingerprint} {self.origin}".encode()).hexdigest()

    @property
    def upload(self) -> Upload:
        """The bytes of the reference.

        Raises:
            ValueError: there is none.
        """
        if self.reference is None:
            raise ValueError("the request has no reference")
        return self.reference.upload

    def job(self, model: str, caller: Caller) -> NewJob:
        """The job of this request, without the file of its reference."""
        return NewJob(
            model=model,
            params=self.params.model_dump(),
            cost=self.cost._asdict(),
            steps=self.params.num_inference_steps,
            fingerprint=self.fingerprint,
            seconds=self.request.seconds,
            metadata=self.request.metadata,
            idempotency_key=caller.idempotency_key,
            request_id=caller.request_id and caller.request_id[:MAX_REQUEST_ID_CHARS],
            input_sha256=None if self.reference is None else self.reference.upload.sha256,
            remixed_from_video_id=self.origin.remixed_from,
            webhook_url=self.request.webhook_url,
            upsampling_pending=wants_revision(self.params),
            traceparent=tracing.traceparent(),
        )

    def stored_input(self, file: str) -> StoredInput | None:
        """The entry of the reference, whose bytes are in ``file``."""
        if self.reference is None:
            return None
        return StoredInput.of(self.reference, file, self.origin.continues)
