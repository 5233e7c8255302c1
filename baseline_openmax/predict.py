"""Judge own pictures: class or "unknown", score, threshold, and calibrated confidence.

    python baseline_openmax/predict.py --checkpoint cifar10-a photo.jpg folder/
"""

from __future__ import annotations

from common.arguments import ScriptParser, run_script


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of pictures")
    parser.add_argument("--checkpoint", required=True, help="run, weights file, or name in checkpoints/MANIFEST.json")
    parser.add_argument("--score", help="unknown score; else the run's own head, else mls")
    parser.add_argument("--threshold", type=float, help="unknown from this score on; else that of the run's last evaluation")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    from baseline_openmax.api import Detector
    from common.own_images import read_images, verdict_lines

    detector = Detector(args.checkpoint, args.score, args.device)
    threshold = detector.threshold() if args.threshold is None else args.threshold
    names, pixels = read_images(args.images, tuple(detector.trained.header["model"]["shape"]))
    unknown_score, probabilities = detector(pixels), detector.probabilities(pixels)
    lines = verdict_lines(names, probabilities.argmax(1), unknown_score, threshold, detector.class_names, detector.score)
    for line, confidence in zip(lines, probabilities.max(1)):
        print(f"{line}  confidence {confidence:.3f}")


if __name__ == "__main__":
    run_script(main)
