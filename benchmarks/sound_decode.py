"""Seconds to decode a video's sound at Nano's size, and the error against fp64.

python -m benchmarks.sound_decode --seconds 7.875
"""

import argparse
import math

import torch

from benchmarks import nano
from benchmarks.measure import median_s, relative_error, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=7.875, help="of sound (%(default)s: 189 frames at 24 a second)"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    decoder = nano.sound_decoder(args.device, torch.bfloat16)
    frames = math.ceil(args.seconds * decoder.config.sample_rate / decoder.config.hop)
    latents = torch.randn(1, decoder.config.latent_dim, frames, generator=torch.Generator().manual_seed(0))
    seconds = median_s(lambda: decoder(latents.to(args.device)), args.repeats, warm_up=3)
    exact = nano.sound_decoder(args.device, torch.float64)
    error = relative_error(decoder(latents), exact(latents))
    report([{"latent_frames": frames, "decode_s": seconds, "error": error}], args.device)


if __name__ == "__main__":
    main()
