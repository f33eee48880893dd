"""Trains the embedded model: tokenizer, weights, and the record of how it went."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from oss_tools.checkpoints.files import replace_file
from oss_tools.errors import BadRequest
from oss_tools.models.gpt_oss import GptOss
from oss_tools.tiny import data, tokenizer
from oss_tools.tiny.model import TinyModel
from oss_tools.tiny.optimizer import optimizers

TOKENIZER_TEXTS = 20_000  # conversations from which the tokenizer learns
WARM_UP, COOL_DOWN = 60, 0.5  # steps; share of the steps in which the learning rate falls to zero
PROMPT_WEIGHT = (
    0.2  # in the loss, of a token that the model need not say: it holds much that is said twice, and teaches copying
)
BALANCE = 0.01  # weight of the routers' load-balancing loss
CLIP = 1.0  # norm of the gradient
CHECKPOINT_EVERY = 200  # steps


@dataclass
class Run:
    """What a training was asked to do and what came of it: the record under results/."""

    seed: int
    steps: int
    tokens_per_step: int
    learning_rate: float
    commit: str = ""  # of the code that trained
    questions: int = 0  # trained on
    tokens: int = 0  # of them, padding not counted
    seconds: float = 0.0
    loss: list[tuple[int, float]] = field(default_factory=list)  # step, mean loss of a wanted token since the entry before
    torch: str = str(torch.__version__)
    threads: int = 0
    before: dict[str, Any] | None = None  # the record of the training whose weights this one began with


def train(
    out: Path,
    run: Run,
    begin: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    report: Callable[[str], None] = print,
) -> Run:
    """Trains and writes a Hugging Face checkpoint into `out`, with training.json, the record.

    Args:
        out: its folder; `out`.state is kept beside it until the end, so that an interrupted run goes on with `resume`.
        run: seed, steps, tokens of a step, learning rate.
        begin: a checkpoint made by this, whose tokenizer is kept and whose weights (as rounded) are trained further.
        stop_after: stops at this step, to be resumed later; the schedule is that of `run.steps`.
        report: given a line every now and then.

    The same seed, steps, batch, learning rate, number of threads and version of torch give the same weights.
    """
    torch.manual_seed(run.seed)
    run.commit, run.threads = _commit(), torch.get_num_threads()
    model = TinyModel()
    if begin:
        content, run.before = load(begin, model)
    else:
        content = tokenizer.train(data.texts(run.seed, TOKENIZER_TEXTS), model.config.vocab_size)
    opts = optimizers(model, run.learning_rate)
    batches = data.batches(Tokenizer.from_str(json.dumps(content)), run.seed, run.tokens_per_step)
    state, first = out.with_name(out.name + ".state"), 0
    if resume and state.exists():
        first, run = _restore(state, model, opts, run.steps)
        run.questions = sum(len(next(batches).tokens) for _ in range(first))
    started, sums, before = time.monotonic(), [0.0, 0.0], run.seconds
    last = min(run.steps, stop_after or run.steps)
    for step in range(first, last):
        batch = next(batches)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["highest"] * schedule(step, run.steps)
        loss, count = _step(model, opts, torch.from_numpy(batch.tokens), torch.from_numpy(batch.said))
        sums[0], sums[1] = sums[0] + loss * count, sums[1] + count
        run.questions += len(batch.tokens)
        run.tokens += int((batch.tokens != data.PADDING).sum())
        run.seconds = before + time.monotonic() - started
        if (step + 1) % 20 == 0 or step + 1 == last:
            run.loss.append((step + 1, round(sums[0] / sums[1], 4)))
            sums = [0.0, 0.0]
            report(f"step {step + 1}/{run.steps} loss {run.loss[-1][1]:.4f} tokens {run.tokens} {run.seconds:.0f} s")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == last:
            save(out, model, content, run)
            _keep(state, model, opts, step + 1, run)
    if last == run.steps:
        state.unlink(missing_ok=True)
    return run


def schedule(step: int, steps: int) -> float:
    """The learning rate's share of its highest: a warm-up, a plain, and a straight line to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (steps * COOL_DOWN))


def _step(model: TinyModel, opts: list[torch.optim.Optimizer], tokens: Tensor, said: Tensor) -> tuple[float, int]:
    """One update; returns the mean loss of the tokens that the model has to say, and how many they were."""
    targets, wanted = tokens[:, 1:].flatten(), said[:, 1:].flatten()
    weights = torch.where(wanted, 1.0, PROMPT_WEIGHT) * (targets != data.PADDING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, balance = model(tokens[:, :-1])
        logits = model.lm_head(hidden).flatten(0, 1)
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    ((losses * weights).sum() / weights.sum() + BALANCE * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for opt in opts:
        opt.step()
    model.zero_grad(set_to_none=True)
    return losses.detach()[wanted].mean().item(), int(wanted.sum())


def save(out: Path, model: TinyModel, content: dict[str, Any], run: Run) -> None:
    """Writes the checkpoint: weights rounded to bfloat16, gate and up projection interleaved."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if "gate_up_proj" in name:
            gate, up = tensor.chunk(2, dim=-1)
            tensor = torch.stack([gate, up], dim=-1).flatten(-2)
        tensors[name] = tensor.to(torch.bfloat16).contiguous()
    save_file(tensors, out / "model.safetensors.part", metadata={"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")
    config = GptOss(model.config).hf_config()
    texts = tokenizer.files(content, Path(__file__).with_name("chat_template.jinja").read_text("utf-8"))
    for name, text in {
        "config.json": json.dumps(config, indent=2),
        **texts,
        "training.json": json.dumps(asdict(run)),
    }.items():
        replace_file(out / name, text + "\n")


def load(folder: Path, model: TinyModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `save`: fills `model`, returns the contents of tokenizer.json and of the record.

    Raises:
        BadRequest: the folder has no such files, or tensors of other names or shapes.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / "model.safetensors")
        content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        record = json.loads((folder / "training.json").read_text("utf-8"))
    except OSError as error:
        raise BadRequest(
            f"{error.filename or folder}: {error.strerror or error}; --begin wants a folder that `train` wrote"
        ) from None
    for name, tensor in tensors.items():
        if "gate_up_proj" in name:
            tensors[name] = torch.cat([tensor[..., ::2], tensor[..., 1::2]], dim=-1)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise BadRequest(f"{folder}: not the embedded model's shape: {str(error).splitlines()[-1].strip()}") from None
    return content, record


def _keep(path: Path, model: TinyModel, opts: list[torch.optim.Optimizer], step: int, run: Run) -> None:
    part = path.with_name(path.name + ".part")
    torch.save({"step": step, "run": asdict(run), "model": model.state_dict(), "opts": [o.state_dict() for o in opts]}, part)
    os.replace(part, path)


def _restore(path: Path, model: TinyModel, opts: list[torch.optim.Optimizer], steps: int) -> tuple[int, Run]:
    """The step to go on with and the run so far. Before half of both numbers of steps, one may be put for the other: the
    learning rate has not begun to fall."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    run, step = Run(**state["run"]), int(state["step"])
    if steps != run.steps and step > min(steps, run.steps) * COOL_DOWN:
        raise BadRequest(f"{path}: at step {step} of {run.steps} the learning rate falls; it cannot go on as one of {steps}")
    run.steps = steps
    return step, run


def _commit() -> str:
    """The commit of this code, with + if this folder has changes that are not in it; empty outside a repository."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607 (the developer's git)
    clean = subprocess.run(["git", "-C", here, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, check=False)  # noqa: S607
    return head.stdout.strip() + ("+" if head.stdout and clean.returncode else "")
