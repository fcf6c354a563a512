"""Object references of a stream's items, so that an item can be handed on without being fetched.

Ray has this behind an underscored name; it is used here and nowhere else.
"""

from collections.abc import AsyncIterator
from typing import Any

from ray import ObjectRef
from ray.serve.handle import DeploymentResponseGenerator


async def item_references(response: DeploymentResponseGenerator[Any]) -> AsyncIterator[ObjectRef]:
    """The references of a streaming response's items, each as soon as it exists."""
    async for reference in await response._to_object_ref_gen():
        yield reference
