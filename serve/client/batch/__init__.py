"""Many videos from a server: one request a line of a file, one video with its record in a folder or object store."""

from serve.client.batch.lines import InvalidBatch
from serve.client.batch.report import Report, Summary
from serve.client.batch.run import run
from serve.client.batch.wanted import Options

__all__ = ["InvalidBatch", "Options", "Report", "Summary", "run"]
