"""What the demo's autoencoders lose between encoding and the served decode, in decibels and by the judge.

python -m training.unpack --checkpoint demo --out .gpu/demo
python -m benchmarks.reconstruction --run .gpu/demo --checkpoint demo
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.judge import Verdict, judge, rounded
from cosmos3_models import Cosmos3Pipeline
from cosmos3_models.autoencoders.frames import to_frames
from training.captions import states
from training.latents import Encoders, recipe_of
from training.recipe import Recipe
from training.world import Draw


def measure(pipeline: Cosmos3Pipeline, encoders: Encoders, recipe: Recipe, clips: int) -> dict[str, Any]:
    """Decibels over clips that training has not seen, and shares of right answers about what came out."""
    mean, std = (
        torch.tensor(values, device=encoders.device)[:, None, None, None]
        for values in (recipe.video_vae.latents_mean, recipe.video_vae.latents_std)
    )
    picture, sound, verdict = [], [], Verdict()
    for step in range(clips):
        draw = Draw(step, 0, encoders.device)
        scene = encoders.world.scenes(draw, 1, "unseen")
        video_latents, sound_latents, _ = encoders(scene)
        made = torch.cat([to_frames(p) for p in pipeline.video_decoder((video_latents - mean) / std)])
        expected = torch.from_numpy(encoders.world.pictures(scene))
        picture.append(_square(made.float() / 255, expected.float() / 255))
        waveform = encoders.world.waveform(scene)[0]
        assert pipeline.sound_decoder is not None, "the demo has sound"
        heard = pipeline.sound_decoder(sound_latents)
        sound.append(_square(heard, waveform) / float(waveform.square().mean()))
        sounds, rate = heard.cpu().numpy(), recipe.sound.sample_rate
        verdict += judge(made.cpu().numpy(), recipe.fps, sounds, rate, states(scene.labels, 0))
    return {
        "clips": clips,
        "video_psnr_db": round(-10 * math.log10(np.mean(picture)), 2),
        "sound_snr_db": round(-10 * math.log10(np.mean(sound)), 2),
        "right": rounded(verdict.accuracy()),
    }


def _square(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.to(got.device)).square().mean())


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training runs: it has the encoders")
    parser.add_argument("--checkpoint", default="demo", help="what they were exported to, or demo (%(default)s)")
    parser.add_argument("--clips", type=int, default=100, help="to measure on (%(default)s)")
    parser.add_argument("--device", default="auto", help="torch device (%(default)s)")
    args = parser.parse_args()
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, args.device)
    recipe = recipe_of(args.run)
    encoders = Encoders(recipe, args.run, pipeline.denoiser.transformer.device)
    print(json.dumps(measure(pipeline, encoders, recipe, args.clips)))


if __name__ == "__main__":
    main()
