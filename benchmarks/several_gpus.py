"""One video on one GPU and on several: seconds of a step and where they go, memory, and whether the bytes are the same.

python -m benchmarks.several_gpus --gpus 2 --sizes 720x1280x189 480x832x189
python -m benchmarks.several_gpus --gpus 2 --device cpu --model demo --sizes 96x96x9    # without GPUs, for a trial

Each GPU has a process. First every one makes the video alone, all at the same time; then they make it together, once
with guidance, which divides the prompts, and once without, which divides the tokens.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import spawn
from torch.profiler import ProfilerActivity, profile

from benchmarks import nano
from benchmarks.denoise_step import MODES
from benchmarks.measure import report
from benchmarks.step_profile import CLASSES
from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.configs import SchedulerConfig, SoundDecoderConfig
from cosmos3_models.checkpoint.folder import DEMO, Checkpoint
from cosmos3_models.checkpoint.loading import load_transformer
from cosmos3_models.parallel.world import SeveralRanks, World, open_store
from cosmos3_models.sampling.denoise import VideoDenoiser
from cosmos3_models.text.prompt import PromptIds

WAIT_S = 300.0
GUIDANCE = 6.0
PROFILED_STEPS = 2
POLL_S = 1e-4
EXCHANGES = "exchanges"
# The first class with a word in the name of a kernel, or on a CPU of an operation, counts.
WORDS = {EXCHANGES: ("nccl", "gloo", "c10d")} | CLASSES
WORDS["attention"] += ("_attention_for_cpu",)
WORDS["matrix products"] += ("aten::mm", "aten::addmm")

Meet = Callable[[], None]
Spent = list[tuple[str, float]]
"""What ran, in order, and its seconds."""


class Run(NamedTuple):
    """Steps of one request.

    Attributes:
        seconds: of each step but the first, which waits for the text tower and for what is compiled.
        latents: of video and sound, in host memory.
        peak_gib: most memory of tensors on this rank's GPU; 0 on a CPU.
    """

    seconds: list[float]
    latents: list[Tensor]
    peak_gib: float


def main() -> None:
    args = _parser().parse_args()
    store = open_store(args.gpus, WAIT_S)
    spawn(measure, (args, store.port), nprocs=args.gpus)


def measure(rank: int, args: argparse.Namespace, port: int) -> None:
    """What each process does. Rank 0 reports."""
    if args.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)  # alone as together: a CPU's sums depend on it
    device = f"cuda:{rank}" if args.device == "cuda" else "cpu"
    store = open_store(args.gpus, WAIT_S, port)
    world = SeveralRanks(rank, args.gpus, store, WAIT_S, args.device)
    alone = denoiser(args, torch.device(device), World())
    together = alone.within(world)
    for size in args.sizes:
        for guidance in (GUIDANCE, 1.0):
            rows = compared(alone, together, request(args, size, guidance), partial(meet, store, args.gpus))
            if rank == 0:
                report(rows, device)
    world.leave()


def denoiser(args: argparse.Namespace, device: torch.device, world: World) -> VideoDenoiser:
    """Nano's size with random weights, or the demo."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if args.model == "demo":
        opened = Checkpoint.open(DEMO)
        return VideoDenoiser(load_transformer(opened, device, dtype), opened.scheduler, opened.sound, world)
    transformer = nano.transformer(str(device), dtype, args.layers)
    scheduler, sound = SchedulerConfig.model_validate(nano.SCHEDULER), SoundDecoderConfig.model_validate(nano.SOUND)
    return VideoDenoiser(transformer, scheduler, sound, world)


def request(args: argparse.Namespace, size: str, guidance: float) -> GenerationParams:
    height, width, frames = map(int, size.split("x"))
    return GenerationParams(
        prompt="x",
        height=height,
        width=width,
        num_frames=frames,
        guidance_scale=guidance,
        num_inference_steps=args.repeats + 1,
        generate_sound=args.sound,
        **MODES[args.mode].model_dump(exclude_none=True),
    )


def meet(store: TCPStore, ranks: int) -> None:
    """Return once all ranks have called this. No exchange, so that no profile has it."""
    met = store.add("met", 1)
    while store.add("met", 0) < -(-met // ranks) * ranks:
        time.sleep(POLL_S)


def compared(
    alone: VideoDenoiser, together: VideoDenoiser, params: GenerationParams, meet: Meet
) -> list[dict[str, Any]]:
    """A row for one GPU and one for all, then where the time goes, a row for each class. All ranks call this."""
    one, all_of_them = take_steps(alone, params, meet), take_steps(together, params, meet)
    same = all(torch.equal(a, b) for a, b in zip(one.latents, all_of_them.latents, strict=True))
    found = _of_all_ranks((statistics.median(one.seconds), one.peak_gib, all_of_them.peak_gib, same))
    alone_s, alone_gib, together_gib, equal = zip(*found, strict=True)
    ranks, seconds = dist.get_world_size(), statistics.median(all_of_them.seconds)
    name = {"size": f"{params.height}x{params.width}x{params.num_frames}", "guidance": params.guidance_scale}
    slowest = max(alone_s)  # the one for which the others wait
    return [
        name | {"what": "one", "seconds": slowest, "fastest": min(alone_s), "peak_gib": max(alone_gib)},
        name
        | {
            "what": f"{ranks} together",
            "seconds": seconds,
            "fastest": min(all_of_them.seconds),
            "peak_gib": max(together_gib),
            "efficiency": slowest / ranks / seconds,
            "same_bytes": all(equal),
        },
        *[name | row for row in where(_of_all_ranks(profiled(together, params, meet)))],
    ]


def take_steps(denoise: VideoDenoiser, params: GenerationParams, meet: Meet) -> Run:
    on_gpu = denoise.transformer.device.type == "cuda"
    meet()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    ends: list[float] = []
    latents = denoise(prompts(denoise, params), params, on_step=lambda *_: ends.append(time.perf_counter()))
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return Run([after - before for before, after in pairwise(ends)], [x.cpu() for x in latents.present], peak)


def profiled(denoise: VideoDenoiser, params: GenerationParams, meet: Meet) -> Spent:
    """What this rank's GPU, or its CPU, does in a step, the mean of ``PROFILED_STEPS`` after a first one."""
    on_gpu = denoise.transformer.device.type == "cuda"
    few = params.model_copy(update={"num_inference_steps": 1 + PROFILED_STEPS})
    record = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])

    def on_step(done: int, _steps: int) -> None:
        if done == 1:
            record.start()
            meet()

    denoise(prompts(denoise, params), few, on_step=on_step)
    record.stop()
    events = sorted(record.events(), key=lambda event: event.time_range.start)
    return [
        (event.name, (event.device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / PROFILED_STEPS)
        for event in events
    ]


def where(by_rank: Sequence[Spent]) -> list[dict[str, Any]]:
    """Seconds a step by class, on the rank where the class takes longest.

    All ranks leave an exchange together. So its shortest time on any rank is what it takes, and the rest of a longer
    one is waiting for that rank.
    """
    exchanged = [[spent for name, spent in each if class_of(name) == EXCHANGES] for each in by_rank]
    moving = sum(min(same) for same in zip(*exchanged, strict=False))  # a profile may lack some of the last
    seconds: dict[str, float] = defaultdict(float)
    for each in by_rank:
        own: dict[str, float] = defaultdict(float)
        for name, spent in each:
            own[class_of(name)] += spent
        own["waiting"] = own.pop(EXCHANGES, moving) - moving
        for kind, spent in own.items():
            seconds[kind] = max(seconds[kind], spent)
    return [{"what": kind, "seconds": spent} for kind, spent in ({EXCHANGES: moving} | seconds).items()]


def class_of(name: str) -> str:
    return next(kind for kind, words in WORDS.items() if any(word in name for word in words))


def prompts(denoise: VideoDenoiser, params: GenerationParams) -> PromptIds:
    """Random ids of the length of a short prompt and, with guidance, of the default negative one."""
    draw, vocabulary = np.random.default_rng(0), denoise.transformer.config.vocab_size
    positive, negative = (draw.integers(0, vocabulary, n) for n in (nano.PROMPT_TOKENS, nano.NEGATIVE_TOKENS))
    return PromptIds(positive, None if params.guidance_scale == 1 else negative)


def _of_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, help="or processes (%(default)s)")
    parser.add_argument("--sizes", nargs="*", default=["720x1280x189", "480x832x189"], help="height x width x frames")
    parser.add_argument("--mode", default="exact", choices=MODES, help="(%(default)s)")
    parser.add_argument("--sound", action="store_true", help="make sound, too")
    parser.add_argument("--repeats", type=int, default=4, help="timed steps (%(default)s)")
    parser.add_argument("--model", default="nano", choices=["nano", "demo"], help="of what size (%(default)s)")
    parser.add_argument(
        "--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="of nano; fewer: trial"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return parser


if __name__ == "__main__":
    main()
