"""Speed of the batch augmentation against Pillow, and against kornia and torchvision where installed.

    python benchmarks/augmentation.py [--images 512] [--size 32] [--seconds 0.3] [--threads N]

Prints images per second of this repository's code and how many times that is the rate of each of the others
(above 1: ours is faster), all in one run on the same images, so the ratios hold where times do not. Pillow
works image by image on one core, from array to array. kornia takes float images and a magnitude per image.
torchvision v2 takes uint8 images and ONE magnitude for the whole batch, which is less work. Half a minute.
"""

from __future__ import annotations

import argparse
import importlib.util
import time

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from common.datasets.augment import ColourJitter, Compose, Cutout, RandomFlip, RandomRotation, RandomShift
from common.datasets.batches import Draws, generator_for
from common.datasets.randaugment import LISTS, RandAugment

FACTOR, ANGLE, SHEAR = 1.4, 12.0, 0.2


def images_per_second(run, count: int, seconds: float) -> float:
    """Best rate of `run()`, which handles `count` images, over repetitions for `seconds` (at least two)."""
    run()
    best, end, repetitions = 0.0, time.perf_counter() + seconds, 0
    while repetitions < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = max(best, count / (time.perf_counter() - start))
        repetitions += 1
    return best


def pillow_flip_crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Mirror half of the images, then reflect-pad by 4 and crop."""
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded = Image.fromarray(np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect"))
    left, top = random.integers(0, 9, 2).tolist()
    return padded.crop((left, top, left + image.width, top + image.height))


def pillow_operations() -> dict:
    """Name of an operation -> Pillow's version of it, `operation(image, random) -> image`."""

    def transform(*matrix):
        return lambda image, random: image.transform(image.size, Image.Transform.AFFINE, matrix)

    return {
        "brightness": lambda image, random: ImageEnhance.Brightness(image).enhance(FACTOR),
        "saturation": lambda image, random: ImageEnhance.Color(image).enhance(FACTOR),
        "contrast": lambda image, random: ImageEnhance.Contrast(image).enhance(FACTOR),
        "sharpness": lambda image, random: ImageEnhance.Sharpness(image).enhance(FACTOR),
        "equalize": lambda image, random: ImageOps.equalize(image),
        "autocontrast": lambda image, random: ImageOps.autocontrast(image),
        "posterize": lambda image, random: ImageOps.posterize(image, 5),
        "solarize": lambda image, random: ImageOps.solarize(image, 128),
        "rotate": lambda image, random: image.rotate(ANGLE),
        "shear_x": transform(1, SHEAR, 0, 0, 1, 0),
    }


def pillow_recipe(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """CSSR's recipe: flip, shift, two operations of the list with probability one half, cutout."""
    image = pillow_flip_crop(image, random)
    operations = pillow_operations()
    pool = (
        "brightness",
        "saturation",
        "equalize",
        "posterize",
        "rotate",
        "sharpness",
        "shear_x",
        "shear_x",
        "solarize",
    )
    for _ in range(2):
        choice = random.integers(0, len(pool) + 1)  # the tenth entry leaves the image alone
        if random.random() < 0.5 and choice < len(pool):
            image = operations[pool[choice]](image, random)
    left, top = np.maximum(random.integers(0, image.width, 2) - image.width // 4, 0).tolist()
    side = image.width // 2
    image.paste(
        (127, 127, 127), (left, top, min(left + side + 1, image.width), min(top + side + 1, image.height))
    )
    return image


def our_cases(pixels: torch.Tensor) -> dict:
    """Name -> call without arguments, in this repository's code."""
    count, half = len(pixels), pixels.shape[3] // 2
    operations = {**LISTS["fixmatch"].entries, **LISTS["cssr"].entries}
    magnitudes = dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), FACTOR)
    magnitudes |= {"posterize": 5, "solarize": 128, "rotate": ANGLE, "shear_x": SHEAR}
    policies = {
        "flip": RandomFlip(),
        "flip + crop": Compose(RandomFlip(), RandomShift(4)),
        "rotate, bilinear": RandomRotation(ANGLE, "bilinear"),
        "colour jitter": ColourJitter(0.4, 0.4, 0.4, 0.1),
        "CSSR recipe": Compose(RandomFlip(), RandomShift(4), RandAugment(2, 10), Cutout(half)),
    }

    def with_policy(policy):
        return lambda: policy(pixels, Draws(generator_for(0), torch.arange(count), 0, device=pixels.device))

    def with_operation(name):
        magnitude = torch.full((count,), float(magnitudes.get(name, 0.0)), dtype=torch.float64)
        return lambda: operations[name].apply(pixels, magnitude)

    cases = {name: with_policy(policy) for name, policy in policies.items()}
    return cases | {name: with_operation(name) for name in pillow_operations()}


def pillow_cases(pixels: torch.Tensor) -> dict:
    """The same names with Pillow, from array to array."""
    arrays = list(pixels.permute(0, 2, 3, 1).contiguous().numpy())
    cases = {
        "flip": lambda image, random: ImageOps.mirror(image) if random.random() < 0.5 else image,
        "flip + crop": pillow_flip_crop,
        "rotate, bilinear": lambda image, random: image.rotate(ANGLE, Image.Resampling.BILINEAR),
        **pillow_operations(),
        "CSSR recipe": pillow_recipe,
    }

    def loop(operation):
        random = np.random.default_rng(0)
        return lambda: np.stack([np.asarray(operation(Image.fromarray(array), random)) for array in arrays])

    return {name: loop(operation) for name, operation in cases.items()}


def torchvision_cases(pixels: torch.Tensor) -> dict:
    """torchvision's transforms v2, one magnitude for the batch."""
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    padded_crop = v2.RandomCrop(pixels.shape[2:], padding=4, padding_mode="reflect")
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return {
        "flip": lambda: functional.horizontal_flip(pixels),
        "flip + crop": lambda: padded_crop(functional.horizontal_flip(pixels)),
        "rotate, bilinear": lambda: functional.rotate(pixels, ANGLE, v2.InterpolationMode.BILINEAR),
        "colour jitter": lambda: jitter(pixels),
        "brightness": lambda: functional.adjust_brightness(pixels, FACTOR),
        "saturation": lambda: functional.adjust_saturation(pixels, FACTOR),
        "contrast": lambda: functional.adjust_contrast(pixels, FACTOR),
        "sharpness": lambda: functional.adjust_sharpness(pixels, FACTOR),
        "equalize": lambda: functional.equalize(pixels),
        "autocontrast": lambda: functional.autocontrast(pixels),
        "posterize": lambda: functional.posterize(pixels, 5),
        "solarize": lambda: functional.solarize(pixels, 128),
        "rotate": lambda: functional.rotate(pixels, ANGLE),
    }


def kornia_cases(pixels: torch.Tensor) -> dict:
    """kornia, float images from uint8 and back to uint8, a magnitude for each image."""
    import kornia.augmentation as augmentation
    from kornia import enhance
    from kornia.geometry.transform import rotate

    count, size = len(pixels), tuple(pixels.shape[2:])
    factor, angle = torch.full((count,), FACTOR), torch.full((count,), ANGLE)
    flip = augmentation.RandomHorizontalFlip(p=0.5)
    padded_crop = augmentation.RandomCrop(size, padding=4, padding_mode="reflect", cropping_mode="slice")
    jitter = augmentation.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0)
    cases = {
        "flip": flip,
        "flip + crop": lambda images: padded_crop(flip(images)),
        "rotate, bilinear": lambda images: rotate(images, angle),
        "colour jitter": jitter,
        "brightness": lambda images: enhance.adjust_brightness_accumulative(images, factor),
        "saturation": lambda images: enhance.adjust_saturation_with_gray_subtraction(images, factor),
        "contrast": lambda images: enhance.adjust_contrast_with_mean_subtraction(images, factor),
        "sharpness": lambda images: enhance.sharpness(images, factor),
        "equalize": enhance.equalize,
        "posterize": lambda images: enhance.posterize(images, torch.full((count,), 5)),
        "solarize": lambda images: enhance.solarize(images, torch.full((count,), 0.5)),
        "rotate": lambda images: rotate(images, angle, mode="nearest"),
    }

    def through_floats(operation):
        return lambda: operation(pixels.float() / 255).mul_(255).to(torch.uint8)

    return {name: through_floats(operation) for name, operation in cases.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512, help="images per batch (default 512)")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (default 32)")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="time for each measurement (default 0.3 s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (options.images, 3, options.size, options.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator_for(0))
    others = {"Pillow": pillow_cases(pixels)}
    for name, cases in {"torchvision": torchvision_cases, "kornia": kornia_cases}.items():
        if importlib.util.find_spec(name):
            others[name] = cases(pixels)
    print(f"{options.images} images of {options.size} x {options.size} x 3, {options.threads} CPU threads")
    print(f"{'':18}{'images/s':>12}" + "".join(f"{'/ ' + name:>15}" for name in others))
    for name, run in our_cases(pixels).items():
        rate = images_per_second(run, options.images, options.seconds)
        line = f"{name:18}{rate:12,.0f}"
        for cases in others.values():
            if name in cases:
                line += f"{rate / images_per_second(cases[name], options.images, options.seconds):15.1f}"
            else:
                line += f"{'-':>15}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
