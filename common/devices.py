"""Where a run computes: device, precision and processes. One process needs no launcher; several use Lightning Fabric."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import sys

import torch

from common.backbones import GlobalBatchNorm2d
from common.errors import UserError


def keep_memory() -> None:
    """Let glibc keep freed memory instead of giving it back after every tensor.

    A training step frees and takes the same large tensors again; each time the kernel would zero the pages anew.
    `benchmarks/training.py` measures what it saves. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere bf16 is emulated and several times slower than fp32."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_device(name: str = "auto", gpu: str | None = None) -> torch.device:
    """Return the device named by `--device` or by the originals' `--gpu 0`, `--gpus "0,"`.

    A GPU that is absent gives a one-line warning and the CPU; a name that is none is a `UserError`.
    """
    if gpu is not None:
        number = gpu.split(",")[0].strip()
        if not number.lstrip("-").isdigit():
            raise UserError(f"--gpu expects a GPU number such as 0, got {gpu!r}")
        name = "cpu" if int(number) < 0 else f"cuda:{number}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device expects auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device expects auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        print(f"warning: {name} is not on this machine ({torch.cuda.device_count()} GPUs); using the CPU", file=sys.stderr)
        return torch.device("cpu")
    return device


def refuse_local_norms(model: torch.nn.Module) -> None:
    """A `UserError` if a BatchNorm of the model would see the batch of its own process only: the processes would drift apart."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    kinds = {type(module).__name__ for module in norms if not isinstance(module, GlobalBatchNorm2d)}
    if kinds:
        raise UserError(f"this network has {', '.join(sorted(kinds))}, which cannot be shared between processes: train it with"
                        " --devices 1, or with another backbone")


class Devices:
    """Device, precision and process group of one run.

    Parameters
    ----------
    args : Namespace
        Common flags `device gpu precision compile`, for training also `devices num_nodes strategy`.

    Attributes
    ----------
    device : torch.device
    precision : str
        `fp32` or `bf16`, with `auto` resolved.
    rank, world_size : int
        This process and the number of processes.
    """

    def __init__(self, args):
        keep_memory()
        self.device = choose_device(args.device, args.gpu)
        self.precision = args.precision
        if self.precision == "auto":
            has = torch.cuda.is_bf16_supported() if self.device.type == "cuda" else cpu_has_bf16()
            self.precision = "bf16" if has else "fp32"
        self.compile = args.compile
        self.rank, self.world_size, self.fabric = 0, 1, None
        if getattr(args, "devices", 1) * getattr(args, "num_nodes", 1) > 1:
            self._launch(args)

    def _launch(self, args) -> None:
        # Importing Fabric takes seconds, so only runs of several processes pay for it.
        from lightning.fabric import Fabric

        self.fabric = Fabric(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=args.devices,
            num_nodes=args.num_nodes,
            strategy=args.strategy,
            precision="32-true",
        )
        self.fabric.launch()
        self.rank, self.world_size = self.fabric.global_rank, self.fabric.world_size
        self.device = self.fabric.device

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None):
        """Move the model to the device (channels-last), make it parallel or compiled where asked; returns what to call."""
        model.to(self.device)
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self.fabric is not None:
            GlobalBatchNorm2d.convert(model)
            refuse_local_norms(model)
            parallel = self.fabric.setup_module(model)
            return parallel if optimizer is None else (parallel, self.fabric.setup_optimizers(optimizer))
        called = torch.compile(model) if self.compile else model
        return called if optimizer is None else (called, optimizer)

    def exact(self) -> Devices:
        """The same devices in fp32, as test.py scores by default: for statistics that scores are compared with."""
        other = copy.copy(self)
        other.precision = "fp32"
        return other

    def autocast(self):
        """Context in which the network computes."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass (averages gradients over processes where there are several)."""
        if self.fabric is not None:
            self.fabric.backward(loss)
        else:
            loss.backward()

    def agree(self, value: bool) -> bool:
        """The first process's value, on every process."""
        return value if self.fabric is None else bool(self.fabric.broadcast(value))

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.fabric is not None:
            self.fabric.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the processes."""
        return value if self.fabric is None else self.fabric.all_reduce(value, reduce_op="mean")

    def synchronise(self) -> None:
        """Wait for the device, so that a clock read afterwards counts the work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def describe(self) -> dict:
        """What goes into meta.json."""
        import platform

        about = {"device": str(self.device), "precision": self.precision, "processes": self.world_size}
        if self.device.type == "cuda":
            about["device_name"] = torch.cuda.get_device_name(self.device)
        else:
            about["device_name"] = f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        about["threads"] = torch.get_num_threads()
        return about
