"""Seconds and memory to encode the pictures that clean latent frames need, at Nano's size, and the error against fp32.

python -m benchmarks.vae_encode --size 720x1280 --frames 1 5 --peer
"""

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import nano
from benchmarks.measure import median_s, peak_gib, relative_error, report
from cosmos3_models.autoencoders.frames import to_pixels
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.media.resize import cover

ERROR_SIZE = (5, 192, 320)  # frames, height and width: small enough for fp32
PHONE = (3000, 4000)  # height and width of a phone's picture


def main() -> None:
    args = _parser().parse_args()
    height, width = map(int, args.size.split("x"))
    encoder = nano.video_encoder(args.device, torch.bfloat16)
    small = _pictures(*ERROR_SIZE)
    expected = nano.video_encoder(args.device, torch.float32)([small])
    error = relative_error(encoder([small]), expected)
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters()) / 2**30
    rows = [
        _row(encoder, _pictures(frames, height, width), args.repeats) | {"weights_gib": weights, "error": error}
        for frames in args.frames
    ]
    if args.peer:
        rows += [_peer(args, _pictures(frames, height, width), small, expected) for frames in args.frames]
    phone = _pictures(1, *PHONE)
    rows.append({"model": "cover of a 12 MP picture", "encode_s": median_s(lambda: cover(phone, height, width), 3)})
    report(rows, args.device)


def _row(encoder: WanVideoEncoder, pictures: NDArray[np.uint8], repeats: int) -> dict[str, Any]:
    """From 8-bit pictures in host memory to latents there."""

    def encode() -> None:
        encoder([pictures]).cpu()

    row = {"model": "ours", "frames": len(pictures), "encode_s": median_s(encode, repeats)}
    return row | {"peak_gib": peak_gib(encode)}


def _peer(
    args: argparse.Namespace, pictures: NDArray[np.uint8], small: NDArray[np.uint8], expected: Tensor
) -> dict[str, Any]:
    """diffusers' encoder with the same weights."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        module: Any = AutoencoderKLWan(**nano.VIDEO_VAE)
    module.to_empty(device=args.device).bfloat16().requires_grad_(False)
    for name, parameter in module.named_parameters():
        nano.fill(name, parameter)

    def encode(frames: NDArray[np.uint8]) -> Tensor:
        pixels = to_pixels(torch.tensor(frames, device=args.device)).bfloat16()
        latents: Tensor = module.encode(pixels).latent_dist.mode().float()
        return latents

    with torch.inference_mode():
        error = relative_error(encode(small), expected)
        seconds = median_s(lambda: encode(pictures).cpu(), args.repeats)
    return {"model": "diffusers", "frames": len(pictures), "encode_s": seconds, "error": error}


def _pictures(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="720x1280", help="height x width (%(default)s)")
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 5], help="pictures, 4k + 1 (%(default)s)")
    parser.add_argument("--peer", action="store_true", help="diffusers in the same run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    main()
