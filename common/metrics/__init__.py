"""Every number that is reported, in pure NumPy and float64.

`evaluate` and `evaluate_file` return all of them under the names of `METRICS`; `docs/metrics.md` lists
formulas and the differences to other libraries. Convention everywhere: label -1 = unknown, larger
`unknown_score` = more likely unknown, accepted where the score is below the threshold, ties exact, NaN
where undefined.
"""

from common.metrics.calibration import ece, known_log_probabilities, nll
from common.metrics.classification_rate import OscrCurve, ccr_at_fpr, oscr, oscr_arpl, oscr_curve
from common.metrics.decisions import (
    F1AtThresholds,
    OpenF,
    OracleF1,
    confusion,
    decide,
    decide_argmax,
    f1_at_thresholds,
    macro_f1,
    macro_f1_oracle,
    open_f,
)
from common.metrics.intervals import (
    Interval,
    auroc_difference,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)
from common.metrics.operating import (
    SeenPrecision,
    fpr95_known_positive,
    fpr95_unknown_positive,
    seen_precision_point,
    threshold_accepting,
    tnr95_known_positive,
    unknown_recall_at_95_seen_precision,
    unknown_recall_at_95_seen_recall,
)
from common.metrics.per_class import ClassReport, OneVsRest, class_report, one_vs_rest
from common.metrics.ranking import aupr_known, aupr_unknown, auroc, detection_accuracy
from common.metrics.report import METRICS, by_unknown_source, closed_accuracy, evaluate, evaluate_file, thresholds

__all__ = [
    "METRICS",
    "ClassReport",
    "F1AtThresholds",
    "Interval",
    "OneVsRest",
    "OpenF",
    "OracleF1",
    "OscrCurve",
    "SeenPrecision",
    "aupr_known",
    "aupr_unknown",
    "auroc",
    "auroc_difference",
    "bootstrap_interval",
    "by_unknown_source",
    "ccr_at_fpr",
    "class_report",
    "closed_accuracy",
    "confusion",
    "decide",
    "decide_argmax",
    "detection_accuracy",
    "ece",
    "evaluate",
    "evaluate_file",
    "f1_at_thresholds",
    "fpr95_known_positive",
    "fpr95_unknown_positive",
    "known_log_probabilities",
    "macro_f1",
    "macro_f1_oracle",
    "mean_interval",
    "nll",
    "one_vs_rest",
    "open_f",
    "oscr",
    "oscr_arpl",
    "oscr_curve",
    "paired_difference",
    "seen_precision_point",
    "threshold_accepting",
    "thresholds",
    "tnr95_known_positive",
    "unknown_recall_at_95_seen_precision",
    "unknown_recall_at_95_seen_recall",
]
