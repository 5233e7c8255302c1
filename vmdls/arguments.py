"""The flags of vmdls/main.py, and a preset for every command that the release's README prints."""

from __future__ import annotations

from common.arguments import ScriptParser, add_common_arguments, non_negative, parse, positive_int, share

PAPER = "vmdls"
ENCODERS = ("mnist-conv", "vgg", "resnet18", "resnet34", "resnet50", "densenet", "wresnet", "small", "speednet")
TRANSFORMS = ("mnist", "cifar", "cifar_test", "blob", "none", "shift1", "flip+shift4", "alternating-flip+shift2")
# The README's commands, with the growth of B_s that the paper's supplement describes and the release leaves out.
CIFAR = {
    "known_dataset": "cifar10", "data_transforms": "cifar", "latent_dim": 32, "max_epochs": 500, "generation_epoch": 0,
    "validation_share": 0.0,
}  # fmt: skip
FINE_TUNED = CIFAR | {"finetune": True, "finetune_lr": 0.01, "lr": 0.001, "margins_epoch": 40, "sample_count": 20}

PRESETS = {
    # scikit-learn's digits: what the demo runs.
    "digits": {
        "known_dataset": "digits", "split": "first-6", "enc_type": "small", "latent_dim": 16, "data_transforms": "none",
        "max_epochs": 20, "batch_classes": 6, "sample_count": 16, "opt": "adam", "lr": 0.003, "schedule": "linear",
        "generation_epoch": 5,
    },
    # MNIST, ten known classes, the paper's CNN at a third of its width.
    "mnist": {
        "known_dataset": "mnist", "split": "all", "enc_type": "mnist-conv", "width": 32, "latent_dim": 32,
        "max_epochs": 12, "sample_count": 16, "opt": "adam", "lr": 0.001, "schedule": "linear", "generation_epoch": 4,
        "init": "kaiming",
    },
    # CIFAR-10 on two CPU cores: the net of baseline_openmax's laptop preset, fine-tuned as the paper's WRN-28-10.
    "laptop": {
        "known_dataset": "cifar10", "split": "cssr-a", "enc_type": "speednet", "latent_dim": 32,
        "data_transforms": "alternating-flip+shift2", "weights": "baseline-cifar10-cssr-a-speednet", "finetune": True,
        "finetune_epochs": 1, "finetune_lr": 0.04, "max_epochs": 4, "batch_classes": 6, "sample_count": 20,
        "opt": "speed", "lr": 0.575, "schedule": "linear", "generation_epoch": 1, "precision": "auto",
    },
    "cifar10-vgg": CIFAR | {
        "enc_type": "vgg", "opt": "adam", "lr": 0.001, "margins_epoch": 10, "batch_classes": 8, "sample_count": 8,
        "sample_count_final": 40, "batch_size": 64,
    },
    "cifar10-resnet18": CIFAR | {
        "enc_type": "resnet18", "lr": 0.01, "margins_epoch": 10, "sample_count": 8, "sample_count_final": 40,
        "batch_size": 400,
    },
    "cifar10-resnet34": CIFAR | {"enc_type": "resnet34", "lr": 0.005, "margins_epoch": 10, "sample_count": 8},
    "cifar10-densenet": CIFAR | {
        "enc_type": "densenet", "lr": 0.1, "margins_epoch": 30, "sample_count": 8, "sample_count_final": 40,
        "batch_size": 420,
    },
    # 150 epochs as in the supplement; the README's command says 500 with a decay every 100.
    "cifar10-wresnet": FINE_TUNED | {
        "enc_type": "wresnet", "weights": "finetuning_wideresnet.tar", "max_epochs": 150, "step_size": 64, "batch_size": 640,
    },
    # Rate of the README's command; the supplement's table says 1e-4.
    "cifar100-densenet": FINE_TUNED | {
        "known_dataset": "cifar100", "split": "all", "enc_type": "densenet", "weights": "checkpoint_100.pth.tar",
        "latent_dim": 64, "max_epochs": 150, "step_size": 64, "margin_max_distance": 64.0, "batch_classes": 20, "batch_size": 400,
    },
    "mnist-cnn": {
        "known_dataset": "mnist", "enc_type": "mnist-conv", "data_transforms": "mnist", "latent_dim": 32,
        "max_epochs": 500, "generation_epoch": 0, "opt": "adam", "lr": 1e-4, "margins_epoch": 1, "sample_count": 16,
        "sample_count_final": 64, "batch_size": 400, "validation_share": 0.0,
    },
}  # fmt: skip


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description="Train VMDLS.")
    data = parser.add_argument_group("data")
    data.add_argument("--known_dataset", default="mnist", help="data set of the known classes; own images: folder:PATH@SIZE")
    data.add_argument("--class_num", type=positive_int, help="known classes K, the first ones; else 10, or --split's")
    data.add_argument("--split", help="known classes instead: a named split (cssr-a, first-6), all, or 0-5,8")
    data.add_argument("--data_transforms", choices=TRANSFORMS, default="mnist",
                      help="augmentation and normalisation of the training images; cifar_test, blob: only normalise")
    data.add_argument("--input_height", type=positive_int, help="image size in pixels, checked against the data")
    data.add_argument("--unknown_dataset", default="omniglot",
                      help="unknown images of the monitoring line of every epoch; nothing is chosen by it; when not given,"
                           " the split's own unknown classes where it has any")
    model = parser.add_argument_group("model")
    model.add_argument("--enc_type", choices=ENCODERS, default="resnet18", help="encoder")
    model.add_argument("--enc_out_dim", type=positive_int, metavar="K", help="width of the encoder's output, checked")
    model.add_argument("--latent_dim", type=positive_int, default=256, help="width d of the latent space")
    model.add_argument("--width", type=positive_int,
                       help="channels of mnist-conv (else 100), vgg (64), small (32), speednet (64)")
    model.add_argument("--first_conv", action="store_true", help="ResNets: 7x7 stem of stride 2, not 3x3 of stride 1")
    model.add_argument("--maxpool1", action="store_true", help="ResNets: 3x3 max-pool of stride 2 after the stem")
    model.add_argument("--init", choices=("released", "kaiming"), default="released",
                       help="encoder's start: the library's or the net's own, as released, or He et al.'s for ReLU")
    model.add_argument("--released_slices", action="store_true",
                       help="vgg, mnist-conv: layers of the ensemble as released, one too early; else as in the paper")
    model.add_argument("--dropout_at_test", action="store_true", help="wresnet: keep dropout at inference, as released")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--euclidean", action="store_true",
                      help="distances of the embeddings as they are; else L2-normalised first")
    loss.add_argument("--margin_max_distance", type=float, default=32.0, help="largest distancing margin M_d")
    loss.add_argument("--margin_jumps", "--margin_jump", type=non_negative, default=1.0, metavar="STEP",
                      help="growth of the margin an epoch")
    loss.add_argument("--margins_epoch", "--margin_epochs", type=int, default=0, help="first epoch of its growth")
    loss.add_argument("--kl_coeff", type=non_negative, default=0.1, help="weight of the Kullback-Leibler term")
    loss.add_argument("--kl_samples", type=int, choices=(0, 1), default=0,
                      help="0: closed form; 1: one sample, as released")
    loss.add_argument("--generation_epoch", type=int, default=20,
                      help="first epoch with that term; at least 1 is sensible: in epoch 0 all class means are 0")
    loss.add_argument("--lower_bound", type=share, default=0.05,
                      help="quantile of the training likelihood below which the log counts an image as rejected;"
                           " the README's .95 would reject 95 %% of them")
    batch = parser.add_argument_group("batches")
    batch.add_argument("--batch_classes", type=positive_int, default=10, help="classes a batch B_c")
    batch.add_argument("--sample_count", type=positive_int, default=40, help="samples of each B_s, at the start")
    batch.add_argument("--sample_count_final", type=positive_int, metavar="B_s",
                       help="B_s later on (paper: 5 times --sample_count); else it never grows")
    batch.add_argument("--sample_count_epoch", type=int, default=150, help="first epoch of --sample_count_final")
    batch.add_argument("--batch_size", type=positive_int, default=256,
                       help="images at a time in evaluation; training has B_c x B_s")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--max_epochs", type=positive_int, default=1000,
                              help="passes over the training part, all phases together")
    optimisation.add_argument("--opt", choices=("sgd", "adam", "speed"), default="sgd",
                              help="speed: the parameter groups of common/recipes.py, the heads in their own")
    optimisation.add_argument("--lr", type=non_negative, default=1e-4,
                              help="learning rate at the start of the whole network's phase; speed: per 1,024 images")
    optimisation.add_argument("--head_lr", type=non_negative, default=0.02,
                              help="speed: effective learning rate of the heads")
    optimisation.add_argument("--schedule", choices=("step", "linear", "constant"), default="step",
                              help="course of the learning rate")
    optimisation.add_argument("--step_size", type=positive_int, default=100, help="step: epochs between decays")
    optimisation.add_argument("--step_gamma", type=non_negative, default=0.1, help="step: factor of a decay")
    start = parser.add_argument_group("start and fine-tuning")
    start.add_argument("--weights", metavar="WHERE",
                       help="start the encoder from a baseline_openmax run, checkpoint, manifest name, or a torch file")
    start.add_argument("--checkpoint_path", metavar="WHERE",
                       help="start the whole network from a VMDLS run or checkpoint, the margin at M_d")
    start.add_argument("--finetune", action="store_true", help="train the heads alone first")
    start.add_argument("--finetune_lr", type=non_negative, default=1e-4, help="learning rate of that phase")
    start.add_argument("--finetune_epochs", type=positive_int, default=20,
                       help="its epochs; the release runs 22; as many as --max_epochs: nothing but the heads")
    ignored = parser.add_argument_group("accepted without effect")
    ignored.add_argument("--num_workers", type=int, default=8, help="images are on the device, no process loads them")
    ignored.add_argument("--offline", action="store_true", help="nothing is ever sent anywhere")
    # Of default None, so that runs begun before these flags existed can be resumed.
    for flag in ("--ae_features", "--log_tsne", "--thresholding"):
        ignored.add_argument(flag, action="store_true", default=None, help="of test.py")
    for flag in ("--cov_scaling", "--recon_weight", "--gen_weight"):
        ignored.add_argument(flag, type=float, help="without effect in the release too")
    add_common_arguments(parser, PRESETS)
    return parser


def parse_arguments(argv):
    """Parse flags, resolve data set names and the split, refuse wrong combinations."""
    from common.datasets import class_count, find_split, resolve_name
    from common.datasets.catalogue import REST_OF, fold

    parser = get_args_parser()
    args = parse(parser, argv, PRESETS)
    args.known_dataset = resolve_name(args.known_dataset)
    watched = args.known_dataset if args.unknown_dataset == "rest" else REST_OF.get(fold(args.unknown_dataset))
    if watched is None and resolve_name(args.unknown_dataset) == args.known_dataset:
        parser.error(f"--unknown_dataset {args.unknown_dataset} is the known data set: name another one")
    if watched not in (None, args.known_dataset):
        parser.error(f"--unknown_dataset {args.unknown_dataset} means the other classes of {watched}, but"
                     f" --known_dataset is {args.known_dataset}")
    if args.split is None:
        wanted = args.class_num or 10
        args.split = "all" if wanted == class_count(args.known_dataset) else f"first-{wanted}"
    known = len(find_split(args.known_dataset, args.split).known)
    if args.class_num not in (None, known):
        parser.error(f"--class_num {args.class_num}, but --split {args.split} of {args.known_dataset} has {known}")
    args.class_num = known
    if watched and known == class_count(args.known_dataset):
        parser.error(f"--unknown_dataset {args.unknown_dataset} needs --class_num below {known}: no class is unknown")
    if args.init != "released" and (args.weights or args.checkpoint_path):
        parser.error(f"--init {args.init} goes with a fresh encoder, not with --weights or --checkpoint_path")
    if args.weights and args.checkpoint_path:
        parser.error("--weights (starts the encoder) and --checkpoint_path (the whole network) exclude each other")
    if args.finetune and not (args.weights or args.checkpoint_path):
        parser.error("--finetune needs --weights or --checkpoint_path: heads alone learn nothing on a random encoder")
    if args.finetune and args.finetune_epochs > args.max_epochs:
        parser.error(f"--finetune_epochs {args.finetune_epochs} exceeds --max_epochs {args.max_epochs}")
    return args
