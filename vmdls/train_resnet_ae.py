"""Train the auto-encoder of CIFAR-10 or CIFAR-100 (Dinari and Freifeld 2022, supplement, section 8), for --ae_features.

    python vmdls/train_resnet_ae.py --preset laptop                # small network: a quarter of an hour on two CPU cores
    python vmdls/train_resnet_ae.py --preset cifar100              # ResNet-18: a GPU
    python vmdls/train_resnet_ae.py --dataset cifar10 --enc_type resnet18 --enc_out_dim 512 --latent_dim 256 --lr 0.0001
"""

from __future__ import annotations

from common.arguments import run_script
from vmdls.ae_training import train


def main(argv=None) -> None:
    train("train_resnet_ae.py", argv)


if __name__ == "__main__":
    run_script(main)
