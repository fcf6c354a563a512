"""Requests that several tests send."""

REQUEST = {
    "prompt": "a red ball",
    "num_frames": 9,
    "size": "96x64",
    "num_inference_steps": 4,
    "generate_sound": True,
    "seed": 42,
}
LONG = REQUEST | {"num_frames": 33, "size": "192x128", "num_inference_steps": 12}
ENDLESS = REQUEST | {"num_frames": 65, "size": "512x384", "num_inference_steps": 200}
# Seconds on any machine, so that previews come; a quick one or a busy one may skip some of them.
WATCHED = REQUEST | {"num_frames": 65, "size": "192x128", "num_inference_steps": 200, "previews": 7}
PREVIEW_STEPS = range(25, 200, 25)
