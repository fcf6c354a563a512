"""The files of jobs in the media store: what they start from and what they made, stored, read and removed."""

import hashlib
import logging
import secrets

from serve.errors import InputLost, NotFound
from serve.inputs.uploads import Receiver, Upload
from serve.jobs.job import Job, token_of
from serve.jobs.media_store import MediaStore
from serve.jobs.table import JobTable

logger = logging.getLogger("ray.serve")

INPUTS = "inputs"
ORPHAN_AGE_S = 3600.0  # at least: the record of a younger file may be about to be written


class JobFiles:
    """The files of one database's jobs.

    Args:
        folder: the database's, in a store that others may use as well.
    """

    def __init__(self, table: JobTable, media: MediaStore, folder: str) -> None:
        self._table, self._media, self._folder = table, media, folder

    async def input_of(self, upload: Upload) -> tuple[str, bool]:
        """Return the name of a file with these bytes, stored now unless a job has one, and whether a job has it.

        A new name contains the hash, and a token: the file of a job that is being deleted may be removed at any moment,
        and its name must not come back.
        """
        known = await self._table.input_with(upload.sha256)
        if known is not None and await self._media.size(known.file) == upload.size:
            return known.file, True
        name = f"{self._folder}/{INPUTS}/{upload.sha256}.{secrets.token_hex(8)}"
        await self._media.write_file(name, upload.path)
        return name, False

    async def copy(self, file: str, receiver: Receiver) -> Upload:
        """Copy a stored file into a temporary one.

        Raises:
            NotFound: it is gone.
        """
        spool, size = receiver.spool(), await self._media.size(file)
        try:
            async for block in self._media.read(file, 0, size or 0):
                spool.feed(block)
                await spool.flush()
        except FileNotFoundError:
            size = None
        if size is None:
            raise NotFound("the file of this video is gone", "video_id")
        return await spool.finish()

    async def read_input(self, job: Job) -> bytes:
        """Return the bytes of a job's input.

        Raises:
            InputLost: they are gone, or no longer what they were.
            MediaUnavailable: the store does not answer.
        """
        stored = job.input_reference
        if stored is None:
            raise InputLost("the job has no input")
        data = bytearray()
        try:
            async for block in self._media.read(stored.file, 0, stored.size):
                data += block
        except FileNotFoundError:
            raise InputLost(f"the {stored.kind} that the video starts from is no longer stored") from None
        if hashlib.sha256(data).hexdigest() != job.input_sha256:
            raise InputLost(f"the {stored.kind} that the video starts from is damaged")
        return bytes(data)

    async def remove_expired(self) -> None:
        """Delete the ended jobs whose retention is over, with their files."""
        for deleted in await self._table.delete_past_retention():
            await self._media.remove(*deleted.files)

    async def remove_orphans(self, age_s: float) -> None:
        """Remove the files of processes of this database that died between a file and its record.

        Args:
            age_s: of the files, at least. They must be older than any record: a database restored to an earlier state
                may lack some records.
        """
        age_s = max(ORPHAN_AGE_S, age_s)
        old = await self._media.older_than(age_s, self._folder)
        old_inputs = await self._media.older_than(age_s, f"{self._folder}/{INPUTS}")
        tokens, inputs = await self._table.tokens_in_use(), await self._table.inputs_in_use()
        orphans = [file for file in old if token_of(file) not in tokens]
        orphans += [file for file in old_inputs if file not in inputs]
        await self._media.remove(*orphans)
        if orphans:
            logger.info(f"Removed {len(orphans)} files without a record.")
