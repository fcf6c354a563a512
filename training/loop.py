"""The training loop that every trainer shares: schedule, mixed precision, running average, log, resuming.

The random numbers of a step depend on seed and step alone, so a run that was cut goes on as if it had not been.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from cosmos3_models.transformer.joined_linear import JoinedLinear
from training.muon import Muon
from training.world import Draw

logger = logging.getLogger("training")

STATE = "state.pt"
WEIGHTS = "weights.safetensors"
LOG = "log.jsonl"
GRADIENT_NORM = 1.0  # longer gradients are cut
BETAS = (0.9, 0.98)

WARM_UPS = 2  # runs before a CUDA graph is recorded: libraries load, choose and allocate

Forward = Callable[..., Any]
Inputs = tuple[Tensor, ...]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Task(Protocol):
    """What one trainer adds to the loop."""

    half: bool  # runs in bf16 on a GPU, with fp32 master weights
    fp32: tuple[str, ...]  # names of parameters that stay fp32 all the same start so
    muon: str | None  # matrices with this in their name are trained by Muon, all else by AdamW

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def parts(self, draw: Draw, progress: float) -> Iterable[Inputs]:
        """What one step sees, in parts that are computed one after the other."""
        ...

    def losses(self, forward: Forward, *inputs: Tensor) -> dict[str, Tensor]:
        """Named losses of one part, ``loss`` among them; ``forward`` calls ``module``. No random numbers in here."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a run goes.

    Attributes:
        steps: of the optimiser, at most.
        minutes: of all runs together, at most; what is reached first ends the schedule.
        learning_rate: at its peak, after ``warmup`` steps; from there it falls in a line to 0 at the end.
        average: decay of the running average of the weights.
        stop_at: leave before this step, to go on another time.
        start: averaged weights of another run to begin with.
    """

    out: Path
    steps: int
    learning_rate: float
    minutes: float | None = None
    warmup: int = 200
    average: float = 0.999
    weight_decay: float = 0.01
    seed: int = 0
    log_every: int = 50
    save_every_s: float = 120.0
    stop_at: int | None = None
    start: Path | None = None


class Run:
    """The state of a run: weights, optimisers, running average, step and the seconds it took."""

    def __init__(self, task: Task, settings: Settings, device: torch.device) -> None:
        module = task.module
        if settings.start is not None:
            module.load_state_dict(load_file(settings.start))
        self.module = module.to(device)
        self.step = 0
        self.elapsed_s = 0.0
        self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self.optimizers = _optimizers(task, settings, device)
        self._path = settings.out / STATE
        if self._path.is_file():
            self._load(device)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        draft = self._path.with_suffix(".draft")
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        torch.save(state, draft)
        draft.rename(self._path)

    def _load(self, device: torch.device) -> None:
        state = torch.load(self._path, map_location=device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        logger.info("going on at step %d", self.step)


def train(task: Task, settings: Settings, device: torch.device) -> Run:
    """Train to the end of the schedule, or to ``stop_at``, and write state, log and averaged weights."""
    settings.out.mkdir(parents=True, exist_ok=True)
    run = Run(task, settings, device)
    gradients = Gradients(task, _forward(task, device))
    clock = _Clock(run.elapsed_s)
    sums: dict[str, Tensor] = {}
    first = run.step
    for progress in _steps(run, settings, clock):
        losses = _step(task, run, gradients, settings, progress, device)
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
        if run.step % settings.log_every == 0:
            _log(run, settings, progress, {name: float(total) / (run.step - first) for name, total in sums.items()})
            sums, first = {}, run.step
        if clock.since_saved_s() > settings.save_every_s:
            run.save()
            clock.saved()
    run.save()
    save_file({name: tensor.contiguous() for name, tensor in run.average.items()}, settings.out / WEIGHTS)
    return run


def load_average(module: AnyModule, folder: Path, device: torch.device) -> AnyModule:
    """Put the averaged weights of a finished run into ``module``."""
    module.load_state_dict(load_file(folder / WEIGHTS))
    return module.to(device).eval().requires_grad_(False)


class _Clock:
    def __init__(self, before_s: float) -> None:
        self._start = time.monotonic() - before_s
        self._saved = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def since_saved_s(self) -> float:
        return time.monotonic() - self._saved

    def saved(self) -> None:
        self._saved = time.monotonic()


def _steps(run: Run, settings: Settings, clock: _Clock) -> Iterator[float]:
    """How far the schedule is, 0 to 1, at the start of every step that is still to do."""
    end = settings.steps if settings.stop_at is None else min(settings.steps, settings.stop_at)
    while run.step < end:
        spent = 0.0 if settings.minutes is None else clock.elapsed_s() / (60 * settings.minutes)
        if spent >= 1:
            return
        yield max(run.step / settings.steps, spent)
        run.elapsed_s = clock.elapsed_s()


def _step(
    task: Task, run: Run, gradients: "Gradients", settings: Settings, progress: float, device: torch.device
) -> dict[str, Tensor]:
    rate = settings.learning_rate * min((run.step + 1) / settings.warmup, 1 - progress)
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    losses = gradients.of(task.parts(Draw(settings.seed, run.step, device), progress))
    losses["gradient"] = nn.utils.clip_grad_norm_(run.module.parameters(), GRADIENT_NORM)
    for optimizer in run.optimizers:
        optimizer.step()
    run.step += 1
    _update_average(run, settings.average)
    return losses


class Gradients:
    """Fills in the gradients of the parameters.

    On a GPU a part is recorded as a CUDA graph when its shapes first come up, and replayed from then on: models as
    small as these would wait for Python most of the time.
    """

    def __init__(self, task: Task, forward: Forward) -> None:
        self._task = task
        self._forward = forward
        self._parameters = list(_trained(task.module).values())
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}
        self._memory = torch.cuda.graph_pool_handle() if self._sums[0].is_cuda else None
        for parameter, gradient in zip(self._parameters, self._sums, strict=True):
            parameter.grad = gradient

    def of(self, parts: Iterable[Inputs]) -> dict[str, Tensor]:
        """Set every gradient to its mean over the parts; the mean losses."""
        torch._foreach_zero_(self._sums)
        total: dict[str, Tensor] = {}
        count = 0
        for inputs in parts:
            losses = self._recording(inputs).replay(inputs) if inputs[0].is_cuda else self._add(*inputs)
            total = {name: total.get(name, 0) + loss for name, loss in losses.items()}
            count += 1
        torch._foreach_div_(self._sums, count)
        return {name: loss / count for name, loss in total.items()}

    def _add(self, *inputs: Tensor) -> dict[str, Tensor]:
        losses = self._task.losses(self._forward, *inputs)
        gradients = torch.autograd.grad(losses["loss"], self._parameters, allow_unused=True)
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        torch._foreach_add_([self._sums[index] for index in used], [gradients[index] for index in used])
        return {name: loss.detach() for name, loss in losses.items()}

    def _recording(self, inputs: Inputs) -> "_Recording":
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._recordings:
            before = [gradient.clone() for gradient in self._sums]
            self._recordings[key] = _Recording(self._add, inputs, self._memory)
            torch._foreach_copy_(self._sums, before)  # the warm-ups have added to them
        return self._recordings[key]


class _Recording:
    """A CUDA graph of ``run`` for inputs of one shape. Recordings that never run at once may share their memory."""

    def __init__(self, run: Callable[..., dict[str, Tensor]], inputs: Inputs, memory: Any) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory):
            self._losses = run(*self._inputs)

    def replay(self, inputs: Inputs) -> dict[str, Tensor]:
        """The same with other values. What it returns is overwritten by the next replay."""
        torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return self._losses


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _update_average(run: Run, decay: float) -> None:
    """Move the average towards the weights; at first fast, so that the random start is forgotten."""
    weight = 1 - min(decay, (1 + run.step) / (10 + run.step))
    current = run.module.state_dict()
    floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([run.average[name] for name in floats], [current[name] for name in floats], weight)


def _forward(task: Task, device: torch.device) -> Forward:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return half_forward(task) if task.half and device.type == "cuda" else task.module


def half_forward(task: Task) -> Forward:
    """``module`` with bf16 copies of its weights, as it will serve; gradients reach the weights themselves."""

    def forward(*inputs: Any) -> Any:
        weights = dict(task.module.named_parameters())
        names = [name for name in weights if not name.startswith(task.fp32)]
        halves = _Halves.apply(*(weights[name] for name in names))
        return functional_call(task.module, weights | dict(zip(names, halves, strict=True)), inputs)

    return forward


class _Halves(torch.autograd.Function):
    """bf16 copies of fp32 weights, and fp32 copies of their gradients: few launches for hundreds of small tensors."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        halves = tuple(torch.empty_like(w, dtype=torch.bfloat16, memory_format=_layout(w)) for w in weights)
        torch._foreach_copy_(halves, weights)
        frozen = [half for half, trained in zip(halves, ctx.needs_input_grad, strict=True) if not trained]
        ctx.mark_non_differentiable(*frozen)
        return halves

    @staticmethod
    def backward(_: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = {index: gradient for index, gradient in enumerate(gradients) if gradient is not None}
        full = {index: torch.empty(half.shape, device=half.device) for index, half in there.items()}
        torch._foreach_copy_(list(full.values()), list(there.values()))
        return tuple(full.get(index) for index in range(len(gradients)))


def _layout(weight: Tensor) -> torch.memory_format:
    """For convolutions that of the tensor cores, which activations then follow."""
    return torch.channels_last_3d if weight.ndim == 5 else torch.contiguous_format


def _optimizers(task: Task, settings: Settings, device: torch.device) -> list[torch.optim.Optimizer]:
    """AdamW, in which matrices decay but no gains and biases, and Muon where it is wanted."""
    chosen: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in _trained(task.module).items():
        by_muon = task.muon is not None and task.muon in name and weight.ndim == 2
        (chosen if by_muon else rest).append(weight)
    groups = [
        {"params": [w for w in rest if w.squeeze().ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in rest if w.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    joined = {m.weight: list(m.parts.values()) for m in task.module.modules() if isinstance(m, JoinedLinear)}
    rate = settings.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=device.type == "cuda")
    return [adam, Muon(chosen, rate, settings.weight_decay, parts=joined)] if chosen else [adam]


def _log(run: Run, settings: Settings, progress: float, means: dict[str, float]) -> None:
    """One line of JSON with the means since the last one; a loss that is no number ends the run."""
    line = {"step": run.step, "progress": round(progress, 4), "elapsed_s": round(run.elapsed_s, 1)}
    text = json.dumps(line | {name: float(f"{value:.4g}") for name, value in means.items()})
    with (settings.out / LOG).open("a") as log:
        log.write(text + "\n")
    logger.info(text)
    if not means["loss"] < float("inf"):
        raise FloatingPointError(f"the loss is {means['loss']} at step {run.step}")


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, minutes: float, batch: int, rate: float) -> None:
    """The options that every trainer has, with this one's defaults."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the whole demo; each trainer has its own inside")
    add("--recipe", type=Path, default=None, help="configs of the models; by default training/recipe.json")
    add("--minutes", type=float, default=minutes, help="the schedule ends then (%(default)s)")
    add("--steps", type=int, default=steps, help="the schedule ends then, if the time has not (%(default)s)")
    add("--stop-at", type=int, default=None, help="leave at this step; the same command goes on")
    add("--start", type=Path, default=None, help="weights.safetensors of an earlier run to begin a new schedule with")
    add("--batch", type=int, default=batch, help="clips a step (%(default)s)")
    add("--learning-rate", type=float, default=rate, help="at its peak (%(default)s)")
    add("--seed", type=int, default=0, help="of weights and data (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device (%(default)s)")
    add("--log-every", type=int, default=50, help="steps between lines of the log (%(default)s)")


def settings_of(args: argparse.Namespace, component: str) -> Settings:
    """The settings that the command line asks for."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return Settings(
        out=args.out / component,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        seed=args.seed,
        log_every=args.log_every,
        stop_at=args.stop_at,
        start=args.start,
    )
