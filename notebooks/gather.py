"""Compute from an evaluated run what its scores files lack and the notebooks show; see `evidence.py`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.inference import TEST, TRAIN, apply_batched, outputs
from common.plots.parts import subsample
from common.results import read_scores
from common.sweep import combinations

# Arrays that an evidence file rounds, and to how many steps of their largest value.
FINE = 32767
LEVELS = {"logits": 4000, "w": 4000, "known_probabilities": 1000, "own_logit": 4000, "own_distance": 4000, "distance": 4000,
          "maps": FINE, "latent": FINE, "features_plane": FINE, "snapshots": FINE, "plane_through_training": FINE}  # fmt: skip
TAILS = (20, 100, 200, 500, 1000, 2000, 4000)
DISTANCES = ("euclidean", "eucos", "cosine")
PER_CLASS = 1500
SHOWN_EPOCHS = 4
REBUILT = " (rebuilt)"


def unknown_sets(directory: Path) -> list[str]:
    """Names of the unknown sets that the run was evaluated on, as `--unknown` takes them."""
    scores = read_scores(directory / "scores.npz")
    used = np.unique(scores["source"][(scores["target"] < 0) & (scores["split"] == TEST)])
    names = [str(scores["sources"][code]).removesuffix(REBUILT) for code in used]
    return ["rest" if name.endswith("-unknown") else name for name in names]


def prepared(module, paper: str, directory: Path, data_of=None, unknown: list[str] | None = None):
    """Checkpoint, data (with the run's first unknown set) and devices of a run, as its test script would have them."""
    from common.arguments import parse
    from common.devices import Devices
    from common.evaluation import Trained

    argv = ["--run_dir", str(directory), "--device", "cpu"]
    args = parse(module.get_args_parser(), [*argv, "--unknown", *(unknown or unknown_sets(directory)[:1])])
    trained = Trained(args, paper)
    return trained, (data_of(trained, args) if data_of else trained.data(args)), Devices(args)


def test_parts(data, train: bool = False) -> list[tuple]:
    """Parts to run the network over: test, unknown and held-out images, and the training part when asked."""
    from common.inference import evaluation_parts

    return evaluation_parts(data, train)


def crosr(directory: Path) -> dict[str, np.ndarray]:
    """Activation vectors' statistics, w-scores, training distances, the study of settings, and one outlier's walk."""
    from crosr import test as module
    from crosr.features import forward, statistics_of, stored_statistics
    from crosr.findings import evaluated_run
    from crosr.model import DHRNet
    from crosr.scores import Variant, fit
    from crosr.sweep import sweep

    trained, data, devices = prepared(module, "crosr", directory)
    name = {"rest": f"{data.dataset}-unknown"}
    source = next(iter(data.unknown.values())).name or name.get(*data.unknown)
    one, score = evaluated_run(directory, None, source)
    settings = _stored_settings(directory, score)
    model = DHRNet(**trained.header["model"])
    trained.fill(model)
    model = devices.setup(model).eval()
    arrays = outputs(forward(model, devices), test_parts(data, train=True), devices.device)
    arrays |= {"prediction": arrays["logits"].argmax(1), "class_names": np.array(data.class_names)}
    train, test = arrays["split"] == TRAIN, arrays["split"] == TEST
    network = {key: arrays[key] for key in arrays if key == "logits" or key.startswith("latents_")}
    labels = arrays["target"][train]
    statistics = statistics_of({key: value[train] for key, value in network.items()}, labels, largest=max(TAILS))
    variant = Variant(settings.pop("features"), settings.pop("pooling"), settings)
    tails = [tail for tail in TAILS if tail <= statistics["used"].min()]
    other = "after" if variant.settings["softmax"] == "before" else "before"
    grid = {"features": ["logits", "logits+latents"], "distance": list(DISTANCES), "tail_size": tails}
    asked = [chosen | {"softmax": variant.settings["softmax"]} for chosen in combinations(grid)]
    asked += [{"features": variant.features, "distance": "euclidean", "tail_size": tail, "softmax": other} for tail in tails]
    rows = []
    for chosen in asked:
        # A tail of equal distances has no Weibull fit (cosine distances of saturated logits): that setting has no row.
        with contextlib.suppress(UserError):
            rows += sweep(arrays, statistics, variant, {key: [value] for key, value in chosen.items()}, data.class_names)
    kept = ("features", "distance", "tail_size", "softmax", "true_positives", "false_positives", "accuracy", "f1_unknown",
            "auroc", "macro_f1_argmax")  # fmt: skip

    fitted = fit(stored_statistics(trained.tensors), variant, data.class_names)
    vectors = variant.vectors(network)
    predicted = arrays["logits"].argmax(1)
    distance = np.linalg.norm(vectors - fitted.means[predicted], axis=1)
    right = np.flatnonzero(train & (predicted == arrays["target"]))
    drawn = _with_tails(distance[right], predicted[right], variant.settings["tail_size"])
    chosen = walk_image(one)
    images = np.concatenate([data.test.pixels, next(iter(data.unknown.values())).pixels])
    settings_text = [variant.settings["tail_size"], variant.settings["softmax"], variant.features, variant.pooling, source]
    return {
        "target": one.target.astype(np.int16), "class_names": np.array(one.class_names),
        "settings": np.array(settings_text, str),
        "known_probabilities": one.probabilities[:, :-1], "p_unknown": one.p_unknown.astype(np.float32),
        "one_minus_known": (1 - one.probabilities[:, :-1].max(1)).astype(np.float32), "logits": one.logits, "w": one.w,
        "means": fitted.means, "max_logit": np.stack(one.max_logit),
        "tails": np.array(one.tails or [], np.int64).reshape(-1, 3),
        "distance": distance[test], "train_label": predicted[right][drawn].astype(np.int16),
        "own_distance": distance[right][drawn], "own_logit": arrays["logits"].max(1)[right][drawn],
        "study": np.array([[str(row[key]) for key in kept] for row in rows]), "study_columns": np.array(kept),
        "walk_index": np.array(chosen), "walk_pixels": images[chosen], "walk_vector": vectors[np.flatnonzero(test)[chosen]],
    }  # fmt: skip


def _stored_settings(directory: Path, score: str) -> dict:
    import json

    settings = dict(json.loads((directory / "calibration_info.json").read_text())["scores"][score])
    settings.pop("weibull")
    return settings


def _with_tails(distance: np.ndarray, label: np.ndarray, tail: int) -> np.ndarray:
    """At most `PER_CLASS` images of each class, at random, and the `tail` farthest of it."""
    found = []
    for one in np.unique(label):
        members = np.flatnonzero(label == one)
        far = members[np.argsort(-distance[members])[:tail]]
        found += [far, members[subsample(np.ones(len(members), bool), PER_CLASS)]]
    return np.unique(np.concatenate(found))


def walk_image(one) -> int:
    """The outlier to walk through: of the class that most outliers fall into, not flagged, with the smallest w of all.

    Among equal w the median p(unknown); without such an image the first unknown one.
    """
    unknown, predicted = np.flatnonzero(one.unknown), one.predicted
    most = np.bincount(predicted[unknown], minlength=len(one.class_names)).argmax()
    of_class = unknown[(predicted[unknown] == most) & (one.probabilities[unknown].argmax(1) == most)]
    if not len(of_class):
        return int(unknown[0])
    w = one.w_predicted[of_class]
    lowest = of_class[w <= max(w.min(), 0.01)]
    return int(lowest[np.argsort(one.p_unknown[lowest])[len(lowest) // 2]])


def cssr(directory: Path) -> dict[str, np.ndarray]:
    """Images of known and unknown classes with the error of every class's auto-encoder at every position."""
    import torch

    from cssr import test as module
    from cssr.pretrained import build_network

    trained, data, devices = prepared(module, "cssr", directory, module.open_set_data_of)
    model = build_network(trained.header["model"])
    trained.fill(model)
    model.eval()
    unknown = next(iter(data.unknown.values()))
    pixels, labels = data.test.pixels[:2000], data.test.labels[:2000]
    right = apply_batched(lambda images: {"logits": model(images)}, pixels, devices.device)["logits"].argmax(1) == labels
    known = [int(np.flatnonzero(right & (labels == k))[0]) for k in range(min(len(data.class_names), 6))]
    other = np.linspace(0, len(unknown) - 1, 6).astype(int)
    pixels = np.concatenate([data.test.pixels[known], unknown.pixels[other]])
    with torch.no_grad():
        feature_map = model.feature_map(torch.from_numpy(pixels))
        logits = model.logit_map(feature_map.float())
        chosen = model(torch.from_numpy(pixels)).argmax(1)
    maps = logits / model.head.scale if trained.header["model"]["model"] != "linear" else logits
    return {"pixels": pixels, "maps": maps.numpy(), "predicted": chosen.numpy(), "kind": np.array(model.kind),
            "label": np.r_[np.arange(len(known)), np.full(len(other), -1)],
            "class_names": np.array(data.class_names)}  # fmt: skip


def baseline_openmax(directory: Path) -> dict[str, np.ndarray]:
    """Logits, a plane of the features, what OpenMax is fitted to, and how the network meets pure noise."""
    from baseline_openmax import test as module
    from baseline_openmax.model import mirrored
    from baseline_openmax.network import build_network
    from common.openmax import OpenMax
    from common.plots.embedding import tsne_coordinates

    trained, data, devices = prepared(module, "baseline_openmax", directory)
    model = build_network(trained.header["model"])
    trained.fill(model)
    model = devices.setup(model).eval()
    mirror = trained.header["mirror_test"]

    def function(images):
        with devices.autocast():
            return {"logits": mirrored(model, images) if mirror else model(images), "features": model.features(images)}

    arrays = outputs(function, test_parts(data, train=True), devices.device)
    train = arrays["split"] == TRAIN
    kept = np.sort(np.r_[np.flatnonzero(~train), subsample(train, 3000)])
    labels, logits = arrays["target"][train], arrays["logits"][train]
    found = {"used": None}
    for distance in DISTANCES:
        calibration = OpenMax(distance=distance).calibrate(logits, labels, logits, 1000)
        found[f"largest_{distance}"] = calibration.distances[:, : calibration.used.max()].astype(np.float32)
    found |= {"means": calibration.means, "used": calibration.used, "labelled": calibration.labelled}
    test = np.flatnonzero(arrays["split"] == TEST)
    sides = arrays["target"][test] >= 0
    shown = np.sort(np.r_[test[subsample(sides, 900)], test[subsample(~sides, 600)]])
    plane, _ = tsne_coordinates(arrays["features"][shown].reshape(len(shown), -1))
    return found | {
        "logits": arrays["logits"][kept], "target": arrays["target"][kept].astype(np.int16), "split": arrays["split"][kept],
        "class_names": np.array(data.class_names), "features_plane": plane,
        "plane_target": arrays["target"][shown].astype(np.int16),
        **against_noise(model, data.test.pixels[:512]),
    }  # fmt: skip


def against_noise(model, known: np.ndarray) -> dict[str, np.ndarray]:
    """What the network's BatchNorm layers and logits do on known images and on uniform noise of the same shape.

    `layer_spread (2, L)`: standard deviation of what each BatchNorm layer gives out before its scale and shift, on known
    images (about 1: that is what its running statistics are for) and on noise. `noise_logits`: with the running statistics, as
    in every evaluation. `noise_logits_own`: the same weights, noise normalised by the statistics of the noise itself.
    """
    import torch

    noise = np.random.default_rng(0).integers(0, 256, known.shape, dtype=np.uint8)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    spread: list[list[float]] = []

    def record(module, inputs, output):
        size = (1, -1) + (1,) * (inputs[0].ndim - 2)
        scale = (module.running_var + module.eps).rsqrt().view(size)
        spread[-1].append(float(((inputs[0] - module.running_mean.view(size)) * scale).square().mean().sqrt()))

    hooks = [layer.register_forward_hook(record) for layer in layers]
    found = {}
    with torch.no_grad():
        for name, images in (("known", known), ("noise", noise)):
            spread.append([])
            found[f"{name}_logits"] = model(torch.from_numpy(images)).float().numpy()
        for hook in hooks:
            hook.remove()
        stored = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
        for layer in layers:
            layer.train()
            layer.momentum, layer.usual = 0.0, layer.momentum
        found["noise_logits_own"] = model(torch.from_numpy(noise)).float().numpy()
        for layer, (mean, variance) in zip(layers, stored):
            layer.eval()
            layer.running_mean, layer.running_var, layer.momentum = mean, variance, layer.usual
    return found | {"layer_spread": np.array(spread), "noise_pixels": noise[:1], "known_pixels": known[:1]}


def vmdls(directory: Path) -> dict[str, np.ndarray]:
    """Latent means of test images with the class Gaussians, snapshots of training, and reconstruction weights."""
    from common.plots.embedding import tsne_coordinates
    from vmdls import test as module
    from vmdls.model import VMDLS
    from vmdls.scores import reconstruction_error, unpack
    from vmdls.scoring import features_of

    trained, data, devices = prepared(module, "vmdls", directory)
    model = VMDLS(**trained.header["model"])
    trained.fill(model)
    model = devices.setup(model).eval()
    arrays = outputs(features_of(model, devices), test_parts(data), devices.device)
    test = np.flatnonzero(arrays["split"] == TEST)
    target = arrays["target"][test]
    shown = np.sort(np.r_[test[subsample(target >= 0, 1500)], test[subsample(target < 0, 1000)]])
    width = model.dimensions["mean"]
    latent = arrays["features"][shown, -width:]
    covariance = unpack(trained.tensors["statistics.latent_covariance"], width).numpy()
    images = np.concatenate([data.test.pixels, next(iter(data.unknown.values())).pixels])[shown - test[0]]
    rebuilt, kind = reconstructed(model, trained.header, devices, data.train.pixels, images)
    layers = {}
    for name in ("t1", "t2", "t3"):
        pair = [apply_batched(_layer(model, name), pixels, devices.device)["layer"] for pixels in (images, rebuilt)]
        layers[f"weight_{name}"] = reconstruction_error(*pair).astype(np.float32)
    return {
        "latent": latent, "target": arrays["target"][shown].astype(np.int16), "index": shown - test[0],
        "weight_kind": np.array(kind), "class_names": np.array(data.class_names),
        "mean": trained.tensors["statistics.latent_mean"].numpy(),
        "covariance": covariance.astype(np.float32), "plane": tsne_coordinates(latent)[0], **layers, **snapshots(directory),
    }  # fmt: skip


def _layer(model, name: str):
    return lambda images: {"layer": getattr(model.ensemble(images), name)}


def reconstructed(model, header, devices, train: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, str]:
    """Reconstructions of images by the network's auto-encoder, else by a linear one; and which it was, in words."""
    from vmdls.weighting import Rebuilder, load_autoencoder

    try:
        autoencoder, name = load_autoencoder(None, header)
    except UserError:
        words = "principal components of the training images with 90 % of their variance (a linear auto-encoder, as no other"
        return linear_reconstruction(train, images), f"{words} is trained for these data)"
    rebuilder = Rebuilder(model, autoencoder, devices)
    found = apply_batched(lambda batch: {"images": rebuilder.reconstruct(batch)}, images, devices.device)["images"]
    return found, f"the auto-encoder `{Path(name).name}`"


def linear_reconstruction(train: np.ndarray, images: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Images `(N, C, H, W)` rebuilt from the principal components that hold `share` of the training images' variance, uint8."""
    flat = train[subsample(np.ones(len(train), bool), 4000)].reshape(-1, train[0].size).astype(np.float64)
    mean = flat.mean(0)
    _, size, components = np.linalg.svd(flat - mean, full_matrices=False)
    kept = components[: int(np.searchsorted(np.cumsum(size**2) / (size**2).sum(), share)) + 1]
    rebuilt = (images.reshape(len(images), -1) - mean) @ kept.T @ kept + mean
    return np.clip(np.rint(rebuilt), 0, 255).astype(np.uint8).reshape(images.shape)


def snapshots(directory: Path) -> dict[str, np.ndarray]:
    """Latent means of the same test images after `SHOWN_EPOCHS` of the epochs, where the run kept them; t-SNE of each."""
    from common.plots.embedding import tsne_coordinates

    files = sorted((directory / "latents").glob("epoch-*.npz"))
    if not files:
        return {}
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, SHOWN_EPOCHS).round().astype(int))]
    stored = [np.load(file, allow_pickle=False) for file in chosen]
    points = np.stack([one["mean"].astype(np.float32) for one in stored])
    return {"snapshots": points, "snapshot_target": stored[-1]["target"],
            "snapshot_epochs": np.array([int(file.stem.removeprefix("epoch-")) for file in chosen]),
            "plane_through_training": np.stack([tsne_coordinates(one)[0] for one in points])}  # fmt: skip


OF = {"crosr": crosr, "cssr": cssr, "vmdls": vmdls, "baseline_openmax": baseline_openmax}
