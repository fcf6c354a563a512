"""Sends the events of ended jobs, and repeats what no receiver has confirmed."""

import asyncio
import json
import logging
import random
import time
from contextlib import suppress

import httpx

from serve.jobs.metrics import WebhookMetrics, log_job
from serve.jobs.retries import persisted
from serve.jobs.webhooks.outbox import Delivery, Outbox
from serve.jobs.webhooks.settings import WebhookSettings
from serve.jobs.webhooks.signatures import SECRETS, signed
from serve.jobs.webhooks.targets import Targets, shown
from serve.secret_file import SecretFile

logger = logging.getLogger("ray.serve")

AT_ONCE = 16  # repeated attempts of one process; the first one belongs to its job
LOOK_S = 10.0  # between two looks for events that another process has left
TIMEOUT_S = 15.0  # of an attempt, all in all
EXPIRY_S = 86_400.0  # after the job's end
FIRST_DELAY_S, LONGEST_DELAY_S = 5.0, 3600.0
HEADERS = {"User-Agent": "cosmos3-serve", "Content-Type": "application/json"}
GONE = 410
UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)  # the last one: a host that is no name


class Deliveries:
    """Makes the attempts of one process.

    Args:
        settings: with at least one target.

    Raises:
        ValueError: the file of secrets contains none.
    """

    def __init__(self, outbox: Outbox, settings: WebhookSettings) -> None:
        self._outbox = outbox
        self._targets = Targets(settings.targets)
        self._secrets = SecretFile(settings.secrets_file or "", SECRETS)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # below, it logs whole URLs
        # A redirect could lead past the list of targets.
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, headers=HEADERS)
        self._metrics = WebhookMetrics()
        self._attempts: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()

    async def send_first(self, seq: int) -> None:
        """Send the event of a job that has just ended, unless another process already does."""
        for delivery in await persisted(lambda: self._outbox.claim(1, seq)):
            await self._attempt(delivery)
        self.look()  # a failed attempt has another one, which may be the next that is due

    def look(self) -> None:
        """Look for due events now."""
        self._wake.set()

    async def run(self) -> None:
        """Make every attempt when it is due, for as long as the process lives."""
        while True:
            self._wake.clear()
            try:
                wait_s = await self._start_due()
            except Exception:  # the next look repeats it
                logger.warning("The events that are due cannot be read.", exc_info=True)
                wait_s = LOOK_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def close(self) -> None:
        """Stop the attempts; the lease of each one ends by itself."""
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        await self._http.aclose()

    async def _start_due(self) -> float:
        """Start the attempts that are due, and return the seconds until the next look."""
        room = AT_ONCE - len(self._attempts)
        wait_s = await self._outbox.wait_s() if room else None  # the end of an attempt is the next look
        if wait_s is None or wait_s > 0:
            return min(LOOK_S, wait_s or LOOK_S)
        for delivery in await self._outbox.claim(room):
            attempt = asyncio.create_task(self._attempt(delivery))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._ended)
        return 0

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            logger.error("An event was not sent; its lease ends by itself.", exc_info=error)
        self.look()

    async def _attempt(self, delivery: Delivery) -> None:
        """Make an attempt, and write what follows from it."""
        problem, final = await self._problem(delivery)
        delay_s = _delay_s(delivery.attempt)
        if problem is None:
            await persisted(lambda: self._outbox.finish(delivery))
            return self._metrics.count("delivered")
        if not final and delay_s < min(EXPIRY_S - delivery.age_s, delivery.remaining_s):
            await persisted(lambda: self._outbox.retry(delivery, delay_s))
            return self._metrics.count("failed")
        await persisted(lambda: self._outbox.finish(delivery))
        self._metrics.count("given_up")
        fields = {"url": shown(delivery.url), "attempts": delivery.attempt, "reason": problem}
        text = "Gave up sending the event of 1 job"
        log_job("webhook_given_up", delivery.id, delivery.request_id, text, logging.WARNING, **fields)

    async def _problem(self, delivery: Delivery) -> tuple[str | None, bool]:
        """Send an event. Return what kept it from its receiver, if anything, and whether that is final."""
        if not self._targets.allow(delivery.url):
            return "deploy.yaml no longer lists its target", True
        if not (secrets := self._secrets.secrets()):
            return "the file of secrets contains none", False
        event_id, body = _event(delivery)
        headers = signed(event_id, int(time.time()), body, secrets)
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._http.stream("POST", delivery.url, content=body, headers=headers) as response,
            ):
                status = response.status_code  # the body is not read
        except UNREACHABLE as error:
            return f"{type(error).__name__} {error}".strip(), False
        return (None, True) if response.is_success else (f"status {status}", status == GONE)


def _event(delivery: Delivery) -> tuple[str, bytes]:
    """Id and body of an event, which are those of every attempt."""
    event_id = f"evt_{delivery.id.removeprefix('video_')}"
    about = {"object": "event", "created_at": int(delivery.completed_at), "type": f"video.{delivery.status}"}
    return event_id, json.dumps({"id": event_id, **about, "data": {"id": delivery.id}}).encode()


def _delay_s(attempt: int) -> float:
    """Seconds after a failed attempt: twice as many each time, less a random part so that jobs do not march in step."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.5, 1)
