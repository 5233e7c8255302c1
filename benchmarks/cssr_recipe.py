"""CSSR's augmentation, evaluation and (with a GPU) training step against the usual ways, as ratios measured in one run.

    python benchmarks/cssr_recipe.py [--quick] [--out results/benchmarks/cssr.json]

Augmentation: images a second of the released recipe, from uint8 images to network input, on the batch, against Pillow
image by image in a DataLoader with `--loader_workers` processes; the two take turns. Evaluation: training statistics
and every score of training and test images, against one plain forward pass over the same images. With a GPU also the
whole training step (WRN-40-4, augmentation included, bfloat16) against the same network in float32 fed by Pillow and
the loader's processes, and the share that it reaches of the GPU's own bfloat16 rate, taken from products of large
matrices. Two idle cores: four minutes.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.arguments import ScriptParser, positive_int, run_script
from common.backbones import Normalise
from common.datasets.augment import Compose, RandomFlip, RandomShift
from common.datasets.batches import Batches, generator_for
from common.devices import Devices
from common.inference import apply_batched
from cssr.augmentation import augmentation
from cssr.model import CSSR
from cssr.optimisation import build_optimizer
from cssr.scoring import collect_statistics, score_function, scored

SIZE, BATCH, CLASSES = 32, 128, 6
# Batch sizes of the augmentation: the release's, and the laptop preset's.
BATCHES = (BATCH, 512)
MEAN, STD = [0.5] * 3, [0.25] * 3
SCORES = ("fused", "s0", "s1", "s2", "rre", "fm", "msp", "mls")
GREY = (127, 127, 127)


def best_rate(functions: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Largest rate of each function, in what it returns a second; they take turns, so other load meets all of them."""
    rates = dict.fromkeys(functions, 0.0)
    for _ in range(repeats):
        for name, function in functions.items():
            begun = time.perf_counter()
            count = function()
            rates[name] = max(rates[name], count / (time.perf_counter() - begun))
    return rates


class PillowRecipe(torch.utils.data.Dataset):
    """The released training images, one at a time with Pillow: flip, reflected crop, reduced list, cutout, contrast."""

    def __init__(self, pixels: torch.Tensor, flip_and_crop_only: bool):
        self.arrays = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.short = flip_and_crop_only
        self.random = None

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index: int):
        if self.random is None:
            self.random = np.random.default_rng(torch.initial_seed() % 2**32)  # its own in each process
        image = self._flipped_and_cropped(Image.fromarray(self.arrays[index]))
        if not self.short:
            image = self._cut_out(self._two_of_the_list(image))
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
        if self.short:
            return pixels, 0
        normalised = (pixels.float() / 255 - MEAN[0]) / STD[0]
        return normalised * self.random.uniform(0.1, 2), 0

    def _flipped_and_cropped(self, image):
        if self.random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        padding = SIZE // 8
        border = ((padding, padding), (padding, padding), (0, 0))
        padded = Image.fromarray(np.pad(np.asarray(image), border, mode="reflect"))
        left, top = self.random.integers(0, 2 * padding + 1, 2).tolist()
        return padded.crop((left, top, left + SIZE, top + SIZE))

    def _two_of_the_list(self, image):
        for _ in range(2):
            choice, level = int(self.random.integers(0, 10)), int(self.random.integers(1, 10))
            if self.random.random() < 0.5:
                image = LIST[choice](image, level, 1 if self.random.random() < 0.5 else -1)
        return image

    def _cut_out(self, image):
        side = SIZE // 2
        left, top = (int(max(0, start)) for start in self.random.uniform(0, SIZE, 2) - side / 2)
        image.paste(GREY, (left, top, min(SIZE, left + side + 1), min(SIZE, top + side + 1)))
        return image


def _sheared(image, x: float, y: float):
    return image.transform(image.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0))


LIST = (
    lambda image, level, sign: ImageEnhance.Brightness(image).enhance(0.18 * level + 0.1),
    lambda image, level, sign: ImageEnhance.Color(image).enhance(0.09 * level + 0.05),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: image,
    lambda image, level, sign: ImageOps.posterize(image, int(0.4 * level) + 4),
    lambda image, level, sign: image.rotate(sign * int(1.5 * level)),
    lambda image, level, sign: ImageEnhance.Sharpness(image).enhance(0.18 * level + 0.05),
    lambda image, level, sign: _sheared(image, sign * 0.03 * level, 0),
    lambda image, level, sign: _sheared(image, 0, sign * 0.03 * level),
    lambda image, level, sign: ImageOps.solarize(image, 256 - int(25.6 * level)),
)


def smooth_images(count: int) -> torch.Tensor:
    """Images uint8 `(count, 3, 32, 32)` without the flat histogram of noise."""
    coarse = torch.rand(count, 3, 6, 6, generator=generator_for(0))
    return (functional.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def loader_of(pixels: torch.Tensor, workers: int, flip_and_crop_only: bool = False):
    """A shuffled DataLoader over the Pillow recipe whose processes stay."""
    return torch.utils.data.DataLoader(
        PillowRecipe(pixels, flip_and_crop_only), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )


def compare_augmentation(images: int, workers: int, repeats: int) -> dict:
    """Rates of the whole recipe and of flip + crop (uint8 to uint8), ours and Pillow's."""
    pixels = smooth_images(images)
    labels, found = torch.zeros(images, dtype=torch.int64), {}
    policies = {
        "recipe": augmentation("strong", 0, 0, SIZE, Normalise(MEAN, STD)),
        "flip + crop": Compose(RandomFlip(0.5), RandomShift(SIZE // 8, "reflect")),
    }
    for name, policy in policies.items():
        loader = loader_of(pixels, workers, name != "recipe")
        functions = {"Pillow": lambda loader=loader: sum(len(batch) for batch, _ in loader)}
        for size in BATCHES:
            batches = Batches(pixels, labels, size, augment=policy)
            functions[f"batch of {size}"] = lambda batches=batches: sum(len(batch) for _, batch, _ in batches.epoch(0))
        for function in functions.values():
            function()  # starts the processes
        rates = best_rate(functions, repeats)
        ratios = {case: rate / rates["Pillow"] for case, rate in rates.items() if case != "Pillow"}
        for case, ratio in ratios.items():
            print(f"{name:12} {case} {rates[case]:9,.0f} images/s, Pillow with {workers} processes {rates['Pillow']:9,.0f}:"
                  f" {ratio:.1f}x", flush=True)  # fmt: skip
        found[name] = {"images_per_second": rates, "ratios": ratios}
    return found


def compare_evaluation(backbones: dict[str, int], repeats: int) -> dict:
    """Time of statistics and all scores over that of a plain forward pass, by backbone; value: images of each part."""
    devices = Devices(Namespace(device="auto", gpu=None, precision="fp32", compile=False))
    found = {}
    for backbone, count in backbones.items():
        torch.manual_seed(0)
        model = devices.setup(CSSR("pcssr", backbone, CLASSES, (3, SIZE, SIZE), MEAN, STD)).eval()
        train, test = smooth_images(2 * count).split(count)

        def evaluation(model=model, train=train, test=test) -> int:
            statistics = collect_statistics(model, train.numpy(), devices)
            function = score_function(model, statistics, devices)
            arrays = apply_batched(function, test.numpy(), devices.device)
            arrays["prediction"] = arrays["logits"].argmax(1)
            for name in SCORES:
                scored(name, model.kind, arrays)
            return len(train) + len(test)

        def plain(model=model, train=train, test=test) -> int:
            for part in (train, test):
                apply_batched(lambda images: {"logits": model(images)}, part.numpy(), devices.device)
            return len(train) + len(test)

        rates = best_rate({"evaluation": evaluation, "plain": plain}, repeats)
        more = rates["plain"] / rates["evaluation"] - 1
        print(f"evaluation   {backbone}: {rates['evaluation']:,.0f} images/s, one plain forward pass"
              f" {rates['plain']:,.0f}: {more:+.1%} of its time", flush=True)  # fmt: skip
        found[backbone] = {"images_per_second": rates, "extra_share": more}
    return found


def compare_training(device: str, backbone: str, images: int, workers: int, repeats: int) -> dict:
    """Rates of the training step with everything on the device in bfloat16, and of float32 fed by Pillow."""
    precisions = {"ours": "bf16", "Pillow": "fp32"}
    pixels, labels, steps, flops = smooth_images(images), torch.arange(images) % CLASSES, {}, 0
    for name, precision in precisions.items():
        devices = Devices(Namespace(device=device, gpu=None, precision=precision, compile=False))
        torch.manual_seed(0)
        model = CSSR("pcssr", backbone, CLASSES, (3, SIZE, SIZE), MEAN, STD)
        optimizer = build_optimizer(model, Namespace(
            method="cssr", optimizer="sgd", rate=0.4, momentum=0.0, weight_decay=5e-4, batch_size=BATCH), 1)  # fmt: skip
        called, stepper = devices.setup(model, optimizer)

        def step(batch, targets, devices=devices, called=called, stepper=stepper):
            with devices.autocast():
                loss = functional.nll_loss(called(batch), targets)
            stepper.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()

        if name == "ours":
            policy = augmentation("strong", 0, 0, SIZE, model.normalise)
            there = devices.device
            batches = Batches(pixels.to(there), labels.to(there), BATCH, augment=policy, drop_last=True)
            source = lambda batches=batches: (item[1:] for item in batches.epoch(0))  # noqa: E731
            flops = flops_of(lambda step=step, source=source: step(*next(iter(source()))))
        else:
            loader = loader_of(pixels, workers)
            there = devices.device
            source = lambda loader=loader, there=there: (  # noqa: E731
                (batch.to(there), torch.zeros(len(batch), dtype=torch.int64, device=there)) for batch, _ in loader
            )

        def epoch(source=source, step=step, devices=devices) -> int:
            count = 0
            for batch, targets in source():
                step(batch, targets)
                count += len(batch)
            devices.synchronise()
            return count

        epoch()
        steps[name] = epoch
    rates = best_rate(steps, repeats)
    peak = matrix_rate(device)
    reached = rates["ours"] * flops / BATCH / peak
    print(f"training     {backbone}: {rates['ours']:,.0f} images/s, float32 fed by Pillow with {workers} processes"
          f" {rates['Pillow']:,.0f}: {rates['ours'] / rates['Pillow']:.1f}x; {reached:.1%} of this device's"
          f" {peak / 1e12:.1f} Tflop/s in bfloat16", flush=True)  # fmt: skip
    return {"images_per_second": rates, "ratio": rates["ours"] / rates["Pillow"], "bf16_share": reached, "bf16_rate": peak}


def flops_of(step: Callable[[], None]) -> int:
    """Floating-point operations of convolutions and matrix products in a training step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_rate(device: str, side: int = 8192) -> float:
    """Operations a second of bfloat16 products of large square matrices, the best of several."""
    devices = Devices(Namespace(device=device, gpu=None, precision="bf16", compile=False))
    side = side if devices.device.type == "cuda" else 512
    one, other = (torch.randn(side, side, device=devices.device, dtype=torch.bfloat16) for _ in range(2))

    def product() -> int:
        for _ in range(10):
            one @ other
        devices.synchronise()
        return 10 * 2 * side**3

    product()
    return best_rate({"product": product}, 5)["product"]


def main(argv=None) -> None:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images and one repeat: to see that it runs")
    parser.add_argument("--images", type=positive_int, default=12_800, help="images of the augmentation and training cases")
    parser.add_argument("--repeats", type=positive_int, default=3, help="turns of each case; the best one counts")
    parser.add_argument("--loader_workers", type=positive_int, help="processes with Pillow; else 2, for the GPU 16")
    parser.add_argument("--training", metavar="DEVICE", help="measure training on this device; else on cuda where there is one")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    images, repeats = (512, 1) if args.quick else (args.images, args.repeats)
    found = {"augmentation": compare_augmentation(images, args.loader_workers or 2, repeats)}
    found["evaluation"] = compare_evaluation({"speednet": 32 if args.quick else 2048, "wideresnet40-4": 8 if args.quick else 256},
                                             repeats)  # fmt: skip
    device = args.training or ("cuda" if torch.cuda.is_available() else None)
    if device:
        backbone = "wideresnet40-4" if device != "cpu" else "speednet"
        found["training"] = compare_training(device, backbone, images, args.loader_workers or 16, repeats)
    else:
        print("training     not measured: no GPU here")
    if args.out:
        from common.files import write_json
        from common.run import code_version

        about = {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
        if torch.cuda.is_available():
            about["gpu"] = torch.cuda.get_device_name()
        write_json(args.out, {"command": "python benchmarks/cssr_recipe.py", "code_version": code_version(), "machine": about,
                              "torch": torch.__version__, **found})  # fmt: skip


if __name__ == "__main__":
    run_script(main)
