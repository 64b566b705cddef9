"""Kill trainings with SIGKILL, resume them, and compare every bit with the training that nobody killed.

``python scripts/benchmarks/kill_and_resume.py`` trains the digits ViT (dropout and stochastic depth on schedules,
augmentation, AdamW, a learning rate that moves) in processes of their own, kills them at random moments, many of them
in the middle of writing a checkpoint, and goes on from ``newest_checkpoint``; some are killed once more. In the end the
weights, the optimizer, and loss and rates of every step that any of the processes took must be those of the
uninterrupted training. The same is counted for plain Lightning: its own checkpoint writing, ``last.ckpt``, no
``StepRandomness``. The counts go into ``kill_and_resume.json``, which the README quotes.

Processes are forked from one that has imported everything, so that a hundred trainings take minutes. A kill counts as
inside a write only if the unfinished file is found afterwards; as across file systems, if ``TMPDIR`` lies on another
one than the checkpoints. Linux; one thread, so that forking is safe.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import lightning
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dropout import DropoutScheduler, Linear, StepRandomness, StochasticDepthScheduler
from lightning_dropout.checkpoints import SafeCheckpointIO, newest_checkpoint
from lightning_dropout.configuration import quiet_lightning
from lightning_dropout.data import DigitsDataModule
from lightning_dropout.models import ViT
from lightning_dropout.modules import Classifier
from lightning_dropout.modules.learning_rate import warmup_cosine

EPOCHS, STEPS_PER_SAVE = 3, 3
STEPS, HASH = "steps", "hash"  # files in a run's folder
BALLAST = 1 << 21  # floats in the checkpoint, 8 MB: a write that takes long enough to be hit


class Record(Callback):
    """Append number, loss and rates of each step to a file, so that they outlive the process; at the end, a hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rates = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("dro")}
        values = [outputs["loss"].item(), batch[0].double().sum().item(), *(rates[key] for key in sorted(rates))]
        line = json.dumps([trainer.fit_loop.total_batch_idx, *(struct.pack(">d", value).hex() for value in values)])
        with (self.folder / STEPS).open("a") as file:
            file.write(line + "\n")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        digest = hashlib.sha256()
        for tensor in (*pl_module.state_dict().values(), *_tensors(trainer.optimizers[0].state_dict())):
            digest.update(tensor.numpy().tobytes())
        (self.folder / HASH).write_text(digest.hexdigest())


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    return [state] if isinstance(state, torch.Tensor) else []


def train(folder: Path, ours: bool, graceful: bool = False) -> None:
    """Train, from the newest checkpoint in ``folder`` if there is one; runs in a process of its own."""
    torch.set_num_threads(1)
    quiet_lightning()
    seed_everything(0, workers=True, verbose=False)
    data = DigitsDataModule(augment=True, batch_size=32, train_fraction=0.25, val_fraction=0.05, gap_loader=False)
    data.setup("fit")
    net = ViT((1, 8, 8), 10, preset="digits", dim=16, depth=3, num_heads=2, p=0.1, drop_path=0.2)
    net.register_buffer("ballast", torch.zeros(BALLAST))
    module = Classifier(net, num_classes=10, optimizer=_adam, scheduler=_warmup)
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        DropoutScheduler(rate=Linear(0.3, 0.0)),
        StochasticDepthScheduler(scale=Linear(0.0, 1.0)),
        Record(folder),  # before the checkpoint: a step that is saved is recorded
        ModelCheckpoint(checkpoints, "last", every_n_train_steps=STEPS_PER_SAVE, enable_version_counter=False),
    ]
    plugins = []
    newest = newest_checkpoint(checkpoints) if ours else checkpoints / "last.ckpt"
    if ours:
        callbacks.insert(0, StepRandomness())
        plugins.append(SafeCheckpointIO())
    if graceful:
        from lightning_dropout.callbacks import GracefulStop

        callbacks.append(GracefulStop())
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        callbacks=callbacks,
        plugins=plugins,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=newest if newest is not None and newest.exists() else None)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def _warmup(optimizer: torch.optim.Optimizer, **kwargs: Any) -> Any:
    return warmup_cosine(optimizer, warmup_fraction=0.1, **kwargs)


def start(work: Callable[[], None], folder: Path, tmpdir: Path) -> int:
    """Fork a process that does ``work`` and ends; what it prints goes to a file in ``folder``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["TMPDIR"] = tempfile.tempdir = str(tmpdir)
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int | None:
    """Return the exit code (negative: the signal) of a process that has ended."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def unfinished(folder: Path, tmpdir: Path) -> list[Path]:
    """Return the files of checkpoint writes that have begun and not ended."""
    return [*(folder / "checkpoints").glob(".saving-*"), *(path for path in tmpdir.iterdir() if path.is_file())]


def wait_for_steps(pid: int, folder: Path, steps: int) -> bool:
    """Wait until a run has recorded ``steps`` steps; whether its process is still there."""
    path = folder / STEPS
    while ended_code(pid) is None:
        if path.exists() and path.read_bytes().count(b"\n") >= steps:
            return True
        time.sleep(0.002)
    return False


_codes: dict[int, int] = {}


def ended_code(pid: int) -> int | None:
    """Return what :func:`ended` said; a process can be waited for only once."""
    if pid not in _codes and (code := ended(pid)) is not None:
        _codes[pid] = code
    return _codes.get(pid)


def finish(pid: int, limit: float = 300.0) -> int:
    """Wait for the end of a process and return its exit code."""
    deadline = time.monotonic() + limit
    while (code := ended_code(pid)) is None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return code


class Harness:
    """Runs points and compares them with the uninterrupted training."""

    def __init__(self, root: Path, elsewhere: Path, seed: int) -> None:
        self.root, self.elsewhere, self.random = root, elsewhere, random.Random(seed)
        self.points = 0
        self.whole: dict[bool, tuple[dict[int, Any], str]] = {}
        self.total_steps = 0
        for ours in (True, False):
            folder, tmpdir = self.folders(across=False)
            started = time.perf_counter()
            code = finish(start(functools.partial(train, folder, ours), folder, tmpdir))
            if code != 0:
                raise RuntimeError(f"The uninterrupted training failed: {(folder / 'output.txt').read_text()}")
            self.seconds = time.perf_counter() - started
            (steps,) = self.steps_of(folder)
            self.whole[ours] = steps, (folder / HASH).read_text()
            self.total_steps = len(steps)
            shutil.rmtree(folder)

    def folders(self, across: bool) -> tuple[Path, Path]:
        """Return a new run folder, and a folder for TMPDIR: on another file system if ``across``."""
        self.points += 1
        folder = self.root / f"point_{self.points}"
        (folder / "tmp").mkdir(parents=True)
        if not across:
            return folder, folder / "tmp"
        return folder, Path(tempfile.mkdtemp(dir=self.elsewhere))

    def steps_of(self, folder: Path) -> list[dict[int, Any]]:
        """Return one dictionary of what was recorded for each step; several if processes disagree."""
        found: list[dict[int, Any]] = [{}]
        for line in (folder / STEPS).read_text().splitlines() if (folder / STEPS).exists() else ():
            try:
                number, *values = json.loads(line)
            except ValueError:  # the kill cut this line
                continue
            if found[0].setdefault(number, values) != values:
                found.append({number: values})
        return found

    def equal(self, folder: Path, ours: bool) -> bool:
        """Whether a training that has ended is the uninterrupted one: every step, weights and optimizer."""
        hashed = folder / HASH
        return hashed.exists() and (self.steps_of(folder), hashed.read_text()) == (
            [self.whole[ours][0]],
            self.whole[ours][1],
        )

    def kill_somewhere(self, pid: int, folder: Path) -> bool:
        """Kill at a random step and a random moment after it; whether the process was still running."""
        if not wait_for_steps(pid, folder, self.random.randrange(self.total_steps)):
            return False
        time.sleep(self.random.uniform(0, 0.1))
        return self.kill(pid)

    def kill_inside_a_write(self, pid: int, folder: Path, tmpdir: Path) -> bool:
        """Kill at a random moment of a random checkpoint's write; whether it was hit."""
        steps = len(self.steps_of(folder)[0])
        if not wait_for_steps(pid, folder, self.random.randrange(steps, max(self.total_steps - 6, steps + 1))):
            return False
        while not unfinished(folder, tmpdir):
            if ended_code(pid) is not None:
                return False
        time.sleep(self.random.uniform(0, 0.02))
        return self.kill(pid) and bool(unfinished(folder, tmpdir))

    def kill(self, pid: int) -> bool:
        if ended_code(pid) is None:
            os.kill(pid, signal.SIGKILL)
        return finish(pid) == -signal.SIGKILL

    def point(self, ours: bool, inside: bool, across: bool) -> dict[str, Any]:
        """Kill one training, maybe twice, and let it go on to its end."""
        while True:
            folder, tmpdir = self.folders(across)
            try:
                pid = start(functools.partial(train, folder, ours), folder, tmpdir)
                hit = self.kill_inside_a_write(pid, folder, tmpdir) if inside else self.kill_somewhere(pid, folder)
                if hit:
                    return self.resumed(folder, tmpdir, ours)
                finish(self.ensure_dead(pid))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(tmpdir, ignore_errors=True)

    def ensure_dead(self, pid: int) -> int:
        self.kill(pid)
        return pid

    def resumed(self, folder: Path, tmpdir: Path, ours: bool) -> dict[str, Any]:
        last = folder / "checkpoints" / "last.ckpt"
        result: dict[str, Any] = {"unreadable": last.exists() and not readable(last), "kills": 1}
        if ours and self.random.random() < 0.25:  # once more
            pid = start(functools.partial(train, folder, ours), folder, tmpdir)
            result["kills"] += self.kill_somewhere(pid, folder)
            self.ensure_dead(pid)
        result["code"] = finish(start(functools.partial(train, folder, ours), folder, tmpdir))
        result["equal"] = self.equal(folder, ours)
        result["output"] = (folder / "output.txt").read_text()[-2000:]
        return result

    def terminated(self) -> dict[str, Any]:
        """End one training with SIGTERM under GracefulStop, and let it go on to its end."""
        while True:
            folder, tmpdir = self.folders(across=False)
            try:
                pid = start(functools.partial(train, folder, ours=True, graceful=True), folder, tmpdir)
                if not wait_for_steps(pid, folder, self.random.randrange(1, self.total_steps - 6)):
                    continue
                time.sleep(self.random.uniform(0, 0.05))
                os.kill(pid, signal.SIGTERM)
                if (code := finish(pid)) != 0:  # else it had been at its end
                    return {"code": code, **self.resumed(folder, tmpdir, ours=True), "first_code": code}
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def readable(path: Path) -> bool:
    """Whether a checkpoint can be loaded."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def summary(results: list[dict[str, Any]]) -> dict[str, int]:
    """Count what some points came to."""
    return {
        "points": len(results),
        "bit_equal": sum(result["equal"] for result in results),
        "last_checkpoint_unreadable": sum(result["unreadable"] for result in results),
        "kills": sum(result["kills"] for result in results),
    }


def main() -> None:
    """Run all points and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100, help="trainings that are killed")
    parser.add_argument("--inside", type=int, default=30, help="of these inside a checkpoint write")
    parser.add_argument("--across", type=int, default=10, help="of these with TMPDIR on another file system")
    parser.add_argument("--plain", type=int, default=20, help="points of plain Lightning, half of them inside a write")
    parser.add_argument("--terms", type=int, default=10, help="trainings that get SIGTERM, with GracefulStop")
    parser.add_argument("--folder", type=Path, help="where the runs are put; default: a temporary folder")
    parser.add_argument("--elsewhere", type=Path, default=Path("/dev/shm"), help="a folder on another file system")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        if Path(root).stat().st_dev == args.elsewhere.stat().st_dev:
            parser.error(f"Expected --elsewhere on another file system than {root}, but got {args.elsewhere}.")
        harness = Harness(Path(root), args.elsewhere, args.seed)
        print(f"uninterrupted: {harness.total_steps} steps, {harness.seconds:.1f} s", flush=True)
        kinds = [(True, index < args.across) for index in range(args.inside)]
        kinds += [(False, False)] * (args.points - args.inside)
        results = run("ours", [lambda k=kind: harness.point(True, *k) for kind in kinds])
        half = args.plain // 2
        plain_kinds = [(True, True)] * half + [(False, False)] * (args.plain - half)
        plain = run("plain Lightning", [lambda k=kind: harness.point(False, *k) for kind in plain_kinds])
        counts: dict[str, Any] = {
            **summary(results),
            "inside_a_write": args.inside,
            "inside_a_write_across_file_systems": min(args.inside, args.across),
            "plain_lightning": summary(plain) | {"inside_a_write_across_file_systems": half},
        }
        terms = run("SIGTERM", [harness.terminated for _ in range(args.terms)])
        counts["sigterm"] = summary(terms) | {"exit_143": sum(each["first_code"] == 143 for each in terms)}
    counts["steps"] = harness.total_steps
    counts["versions"] = {"lightning": lightning.__version__, "torch": torch.__version__}
    args.output.write_text(json.dumps(counts, indent=2) + "\n")
    print(json.dumps(counts, indent=2))


def run(name: str, points: list[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run points one after the other and say what each came to."""
    results = []
    for number, point in enumerate(points, start=1):
        results.append(point())
        print(f"{name} {number}/{len(points)}: {'equal' if results[-1]['equal'] else 'different'}", flush=True)
        if name != "plain Lightning" and not results[-1]["equal"]:
            print(results[-1], flush=True)
    return results


if __name__ == "__main__":
    main()
