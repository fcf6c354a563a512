"""Signatures of events, as Standard Webhooks (version 1) defines them."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable

from serve.secret_file import SecretLines

PREFIX = "whsec_"
SECRETS = SecretLines(
    setting="webhook_secrets_file",
    name="secret",
    title="Webhook secrets",
    pattern=re.compile(PREFIX + r"([A-Za-z0-9+/]{4}){8,21}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"),
    rule="whsec_ and 24 to 64 bytes in base64",
    purpose="events are signed",
)


def signed(event_id: str, sent_at: int, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """The headers of a signed event, with one signature for each secret, so that a secret can be replaced.

    Args:
        sent_at: seconds since the epoch; receivers refuse old messages.
    """
    content = f"{event_id}.{sent_at}.".encode() + body
    signatures = (_signature(secret, content) for secret in secrets)
    return {"webhook-id": event_id, "webhook-timestamp": str(sent_at), "webhook-signature": " ".join(signatures)}


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
