"""Train the auto-encoder of MNIST or other small grey images (Dinari and Freifeld 2022, supplement), for --ae_features.

    python vmdls/mnist_ae.py --preset mnist                        # a third of the paper's width, on two CPU cores
    python vmdls/mnist_ae.py --preset mnist-cnn                    # the paper's width: a GPU
    python vmdls/mnist_ae.py --preset digits                       # scikit-learn's digits 0-5, seconds
"""

from __future__ import annotations

from common.arguments import run_script
from vmdls.ae_training import train


def main(argv=None) -> None:
    train("mnist_ae.py", argv)


if __name__ == "__main__":
    run_script(main)
