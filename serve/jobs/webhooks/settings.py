"""How events are sent."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WebhookSettings:
    """The settings of ``AppArgs`` whose names begin with ``webhook_``.

    Attributes:
        targets: URLs below which a ``webhook_url`` may be; none: no events.
        secrets_file: None only if there are no targets.
    """

    targets: tuple[str, ...] = ()
    secrets_file: str | None = None


NO_WEBHOOKS = WebhookSettings()
