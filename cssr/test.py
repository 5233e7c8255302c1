"""Evaluate a trained CSSR network in the open set: its three scores, their fusion, metrics of every unknown set.

    python cssr/test.py --save NAME                                  # the fused score on a run's own unknown classes
    python cssr/test.py --save NAME --score fused s0 s1 s2 msp --unknown omniglot noise
"""

from __future__ import annotations

import time

from common.arguments import ScriptParser, add_common_arguments, parse, run_script

PAPER = "cssr"
SCORE_NAMES = ("fused", "s0", "s1", "s2", "rre", "fm", "msp", "mls")


def get_args_parser() -> ScriptParser:
    from common.evaluation import add_evaluation_arguments

    parser = ScriptParser(description=__doc__.split("\n")[0])
    add_evaluation_arguments(parser, SCORE_NAMES, ["fused"])
    add_common_arguments(parser, train=False)
    return parser


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    import numpy as np

    from common.devices import Devices
    from common.errors import UserError
    from common.evaluation import Trained, parts_to_score, report
    from common.inference import outputs
    from cssr.model import CSSR
    from cssr.scoring import score_function, scored

    trained = Trained(args, PAPER)
    kind = trained.header["model"]["model"]
    if kind == "linear" and "rre" in args.score:
        raise UserError("--score rre needs auto-encoders: the linear baseline has no reconstruction error")
    if "s2" in args.score and not trained.tensors["statistics.gram_mean"].shape[1]:
        raise UserError("--score s2 needs Gram statistics: the run was trained with --without_gram")
    data = trained.data(args)
    model = CSSR(**trained.header["model"])
    trained.fill(model)
    devices = Devices(args)
    model = devices.setup(model).eval()
    begun = time.monotonic()
    function = score_function(model, trained.tensors, devices)
    arrays = outputs(function, parts_to_score(args, data), devices.device, args.batch_size)
    arrays["prediction"] = arrays["logits"].argmax(1)
    arrays["class_names"] = np.array(data.class_names)
    seconds = time.monotonic() - begun

    def method(name: str) -> str:
        return f"{kind}-{name}"

    report(args, trained, data, args.score, lambda name: scored(name, kind, arrays), seconds, argv, method)


if __name__ == "__main__":
    run_script(main)
