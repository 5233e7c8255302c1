"""The flags of OpenMax in evaluation scripts, the settings they give, and how a score's name says them."""

from __future__ import annotations

from collections.abc import Mapping

from common.arguments import ScriptParser, positive_int


def add_openmax_arguments(parser: ScriptParser, **defaults):
    """Add the flags of OpenMax; `defaults` replace those of Bendale and Boult's program. Returns the argument group."""
    group = parser.add_argument_group("OpenMax (Bendale and Boult 2016)")
    group.add_argument("--tail_size", type=positive_int, nargs="+", default=[20],
                       help="largest distances per class in the fit (eta); several give a score each")
    group.add_argument("--alpha", "--alpha_rank", dest="alpha", type=positive_int, default=10,
                       help="number of top classes that are revised")
    group.add_argument("--distance", choices=("eucos", "euclidean", "cosine"), default="eucos",
                       help="distance to the mean; eucos = Euclidean/200 + cosine")
    group.add_argument("--alpha_rule", choices=("code", "paper"), default="code",
                       help="rank weights: (alpha+1-i)/alpha as released, (alpha-i)/alpha as printed")
    group.add_argument("--translation", type=float, default=1.0, help="where the smallest tail distance is moved to")
    group.add_argument("--softmax", choices=("after", "before"), default="after", help="revise logits, or probabilities")
    group.add_argument("--clip", choices=("none", "zero"), default="none", help="negative contributions to unknown: keep or 0")
    group.add_argument("--weibull", choices=("newton", "libmr"), default="newton", help="fitter of the tails")
    group.add_argument("--sweep", nargs="+", metavar="NAME=V,V",
                       help="OpenMax over a grid, e.g. tail_size=20,50,100 distance=eucos,euclidean: table and figure")
    parser.set_defaults(**defaults)
    return group


def openmax_settings(args, classes: int, name: str = "openmax") -> dict[str, dict]:
    """Constructor arguments of `OpenMax` for every `--tail_size`, by score name: `openmax`, or `openmax-tail20` of several.

    Alpha is reduced to the number of classes, which is said in one line when it changes something.
    """
    if args.alpha > classes:
        print(f"note: --alpha {args.alpha} exceeds the {classes} classes; {classes} is used")
    settings = {
        "alpha": min(args.alpha, classes),
        "distance": args.distance,
        "alpha_rule": args.alpha_rule,
        "translation": args.translation,
        "softmax": args.softmax,
        "clip": args.clip,
        "backend": args.weibull,
    }
    several = len(args.tail_size) > 1
    # A dry run scores too few images for the tails; two distances a class show that it runs.
    tails = {tail: 2 if args.dry_run else tail for tail in args.tail_size}
    return {f"{name}-tail{t}" if several else name: {"tail_size": tails[t], **settings} for t in args.tail_size}


def record_method(name: str, settings: Mapping[str, dict], classes: int, **defaults) -> str:
    """Name of a score in records: OpenMax says its tail and every setting that is not its default, or that of `defaults`."""
    if name not in settings:
        return name
    from common.openmax import OpenMax

    chosen, default = settings[name], OpenMax().settings | defaults
    default["alpha"] = min(default["alpha"], classes)
    differing = [f"{key}_{value}" for key, value in chosen.items() if key != "tail_size" and value != default[key]]
    return "-".join([f"{name.partition('-tail')[0]}-tail{chosen['tail_size']}", *differing])
