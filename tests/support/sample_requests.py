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
