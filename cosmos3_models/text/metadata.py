"""What a prompt says about the video besides its content: length, frame rate and size."""

import json
from typing import Any


def with_metadata(prompt: str, *, num_frames: int, fps: float, height: int, width: int) -> str:
    """Add length, frame rate and size to a prompt: as sentences, or as keys if it is a JSON object.

    The wording is that of the official pipeline, which the model was trained with.

    Args:
        num_frames: 1 for an image, of which neither length nor frame rate is said.
        fps: frames per second.
        height, width: pixels.
    """
    caption = caption_in(prompt)
    if caption is not None:
        return _caption_with_metadata(caption, num_frames, fps, height, width)
    text, medium = prompt.strip(), "image"
    if num_frames > 1:
        medium = "video"
        text = _append(text, f"The video is {num_frames / fps:.1f} seconds long and is of {fps:.0f} FPS.")
    return _append(text, f"This {medium} is of {height}x{width} resolution.")


def caption_in(text: str) -> dict[str, Any] | None:
    """Return the structured caption that a prompt is; None if it is text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _append(text: str, sentence: str) -> str:
    return text.strip().rstrip(".") + ". " + sentence


def _caption_with_metadata(caption: dict[str, Any], num_frames: int, fps: float, height: int, width: int) -> str:
    if num_frames > 1:
        caption |= {"duration": f"{int(num_frames / fps)}s", "fps": float(fps)}
    else:
        caption = {key: value for key, value in caption.items() if key not in ("duration", "fps")}
    return json.dumps(caption | {"resolution": {"H": height, "W": width}})
