"""Seconds to decode a video's latents at Nano's size, alone and with H.264, and the error against fp32.

python -m benchmarks.vae_decode --size 720x1280x189 --peer
"""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import nano
from benchmarks.measure import median_s, peak_gib, relative_error, report
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.shapes import LatentGrid

Frames = NDArray[np.uint8]
ERROR_GRID = LatentGrid(3, 12, 20)  # small enough for fp32


def main() -> None:
    args = _parser().parse_args()
    height, width, num_frames = map(int, args.size.split("x"))
    grid = LatentGrid.of_video(num_frames, height, width)
    latents = _latents(grid, args.device)
    decoder = nano.video_decoder(args.device, torch.bfloat16)
    expected = _pixels(nano.video_decoder(args.device, torch.float32), _latents(ERROR_GRID, args.device))
    error = relative_error(_pixels(decoder, _latents(ERROR_GRID, args.device)), expected)
    rows: list[dict[str, Any]] = []
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    for chunk in args.chunks or [decoder.chunk_size(grid.height, grid.width)]:

        def decode(chunk: int = chunk) -> None:
            for _ in decoder(latents, chunk):
                pass

        row = {"model": "ours", "latents_per_chunk": chunk, "decode_s": median_s(decode, args.repeats), "error": error}
        bound = decoder.peak_bytes(chunk, grid.height, grid.width) + weights
        rows.append(row | {"peak_gib": peak_gib(decode), "bound_gib": bound / 2**30})
    if args.encode:
        rows += _encodings(decoder, latents)
    if args.peer:
        rows.append(_peer(args, latents, expected))
    report(rows, args.device)


def _latents(grid: LatentGrid, device: str) -> Tensor:
    channels: Any = nano.VIDEO_VAE["z_dim"]
    shape = (1, channels, grid.frames, grid.height, grid.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _pixels(decoder: WanVideoDecoder, latents: Tensor) -> Tensor:
    return torch.cat([pixels.cpu() for pixels in decoder(latents)], dim=2)


def _encodings(decoder: WanVideoDecoder, latents: Tensor) -> list[dict[str, Any]]:
    """H.264 of what a random decoder makes, which is close to noise and takes longest, and of smooth pictures.

    The smooth ones take the place of each decoded chunk on its way to the encoder.
    """
    noisy = np.concatenate(list(decoder.frames(latents)))
    rows = []
    for name, frames in (("decoded", noisy), ("smooth", _smooth(*noisy.shape[:3]))):
        alone = median_s(partial(_write, [frames], frames.shape), 1, 0)
        both = median_s(partial(_decode_and_write, decoder, latents, frames), 1, 0)
        rows.append({"model": f"ours, {name} frames", "h264_alone_s": alone, "decode_and_h264_s": both})
    return rows


def _decode_and_write(decoder: WanVideoDecoder, latents: Tensor, frames: Frames) -> None:
    _write(_replaced(decoder.frames(latents), frames), frames.shape)


def _replaced(chunks: Iterator[Frames], frames: Frames) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield frames[done : done + len(chunk)]
        done += len(chunk)


def _write(chunks: Iterable[Frames], shape: tuple[int, ...]) -> None:
    from cosmos3_models.media.mp4 import VideoWriter, encode_chunks

    num_frames, height, width, _ = shape
    with VideoWriter(num_frames, height, width, fps=24.0) as writer:
        encode_chunks(writer, chunks)


def _smooth(num_frames: int, height: int, width: int) -> Frames:
    """A gradient that drifts."""
    row, column = np.mgrid[0:height, 0 : width + num_frames]
    wide = np.stack([np.sin((row * a + column * b) / 97) for a, b in ((1, 2), (2, 1), (1, -1))], -1) * 100 + 128
    wide = wide.astype(np.uint8)
    return np.stack([wide[:, shift : shift + width] for shift in range(num_frames)])


def _peer(args: argparse.Namespace, latents: Tensor, expected: Tensor) -> dict[str, Any]:
    """diffusers' decoder with the same weights: names are ours, but for the parts that only encode."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        module: Any = AutoencoderKLWan(**nano.VIDEO_VAE)
    module.to_empty(device=args.device).bfloat16().requires_grad_(False)
    for name, parameter in module.named_parameters():
        nano.fill(name, parameter)
    with torch.inference_mode():
        small = module.decode(_latents(ERROR_GRID, args.device).bfloat16()).sample.float()
        seconds = median_s(lambda: module.decode(latents.bfloat16()), args.repeats)
    error = relative_error((small.clamp(-1, 1) + 1) / 2, expected)
    return {"model": "diffusers", "decode_s": seconds, "error": error}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="720x1280x189", help="height x width x frames (%(default)s)")
    parser.add_argument(
        "--chunks", nargs="*", type=int, help="latent frames at a time; by default what the decoder picks"
    )
    parser.add_argument("--encode", action="store_true", help="also encode H.264 while the next chunk is decoded")
    parser.add_argument("--peer", action="store_true", help="diffusers in the same run")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    main()
