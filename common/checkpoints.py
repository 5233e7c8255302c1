"""Checkpoints: safetensors weights with a JSON header, verified before loading; nothing in a file is ever executed.

    python -m common.checkpoints list | verify | add RUN NAME | download NAME... [--base_url URL]

`--checkpoint_path` and its like take a run directory, a file, or a name in `checkpoints/MANIFEST.json`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError, nearest
from common.files import atomic, sha256, write_json

FOLDER = ROOT / "checkpoints"
SHARD_BYTES = 24_000_000
FORMAT = "osr-checkpoint-1"


def read_manifest(folder: Path = FOLDER) -> dict[str, dict]:
    """Entries of `MANIFEST.json` by name; empty when there is none."""
    path = folder / "MANIFEST.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save_weights(path: Path, tensors: Mapping, header: Mapping) -> None:
    """Write tensors (dict of name to Tensor) and a header of small JSON values to one safetensors file, atomically."""
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, **{key: json.dumps(value) for key, value in header.items()}}
    with atomic(path) as partial:
        save_file(stored, str(partial), metadata=metadata)


def read_header(path: Path) -> dict:
    """Header of one file of a checkpoint, without its tensors; a `UserError` where it is not one of ours."""
    return _read_file(path, tensors=False)[1]


def _read_file(path: Path, tensors: bool = True) -> tuple[dict, dict]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as source:
            metadata = source.metadata() or {}
            found = {name: source.get_tensor(name) for name in source.keys()} if tensors else {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors checkpoint ({error}); train again or restore the file"
        ) from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this repository: expected format {FORMAT} in its header")
    return found, {key: json.loads(value) for key, value in metadata.items() if key != "format"}


def continuation(directory: Path) -> str:
    """The command that goes on with a run: its own, as meta.json has it, with `--resume`; empty if there is none."""
    meta = Path(directory) / "meta.json"
    if not meta.exists():
        return ""
    words = shlex.split(json.loads(meta.read_text())["command"])
    named = [] if {"--save", "--run_dir"} & {word.partition("=")[0] for word in words} else ["--run_dir", str(directory)]
    again = [] if "--resume" in words else ["--resume"]
    return shlex.join([word for word in words if word != "--overwrite"] + named + again)


def is_torch_file(where: str | Path) -> bool:
    """Whether a path is a file that `torch.save` wrote, not one of this repository's."""
    path = Path(where)
    if not path.is_file() or path.suffix == ".safetensors":
        return False
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def find(where: str | Path, folder: Path = FOLDER, trained_by: str = "main.py") -> list[Path]:
    """Files of a checkpoint given as run directory, file, or manifest name; a manifest entry is verified first.

    Raises
    ------
    UserError
        Nothing there (says what trains it), or a file differs from the manifest's SHA-256.
    """
    path = Path(where)
    if path.is_dir():
        path = path / "weights.safetensors"
        if not path.exists():
            raise UserError(f"run {where} has no weights.safetensors yet: finish it with"
                            f" {continuation(path.parent) or trained_by + ' --resume'}")
    if path.is_file():
        return [path]
    manifest = read_manifest(folder)
    if str(where) not in manifest:
        hint = nearest(str(where), manifest)
        raise UserError(f"no run, file or checkpoint {str(where)!r}{hint}; {trained_by} trains one")
    files = []
    for part in manifest[str(where)]["files"]:
        file = folder / part["file"]
        if not file.exists():
            raise UserError(f"checkpoint {where}: {file.name} ({part['size']} bytes, sha256 {part['sha256']}) is missing"
                            f" in {folder}; python -m common.checkpoints download {where} --base_url URL fetches it")
        if sha256(file) != part["sha256"]:
            raise UserError(f"checkpoint {where}: {file.name} is corrupt, expected sha256 {part['sha256']},"
                            f" got {sha256(file)}; restore it from the repository")
        files.append(file)
    return files


def load_weights(where: str | Path, *, paper: str, classes: int | None = None, folder: Path = FOLDER):
    """Load a checkpoint of this repository.

    Parameters
    ----------
    where : str or Path
        Run directory, file, or manifest name.
    paper : str
        Folder whose `main.py` must have written it.
    classes : int, optional
        Number of known classes that is expected.

    Returns
    -------
    (tensors, header)
        Tensors by name, half precision turned into float32; header of plain values.

    Raises
    ------
    UserError
        Missing, corrupt, of another paper, or of another number of classes.
    """
    tensors, header = {}, {}
    for file in find(where, folder, f"python {paper}/main.py"):
        part, header = _read_file(file)
        tensors |= part
    if header.get("paper") != paper:
        raise UserError(f"{where} is a checkpoint of {header.get('paper')!r}, expected one of {paper!r}")
    if classes is not None and len(header["class_names"]) != classes:
        raise UserError(f"{where} knows {len(header['class_names'])} classes, expected {classes}")
    return {name: t.float() if t.is_floating_point() and t.itemsize == 2 else t for name, t in tensors.items()}, header


def add(run_dir: Path, name: str, folder: Path = FOLDER) -> dict:
    """Store a run's weights in half precision under `name`, in shards below 25 MB, and enter them in the manifest.

    Statistics (tensors under `statistics.`) and BatchNorm buffers keep their precision: scores depend on them exactly.
    The manifest names the training run's own file (`trained_sha256`) and what its records hold (`expected`): record first.
    A fitted OpenMax beside the weights (`openmax.safetensors`) and the thresholds of `metrics.json` are stored with them.
    """
    import torch

    tensors, header = _read_file(find(run_dir)[0])
    fitted = Path(run_dir) / "openmax.safetensors"
    if fitted.exists():
        statistics, its_header = _read_file(fitted)
        tensors, header = tensors | statistics, header | its_header
    evaluated = Path(run_dir) / "metrics.json"
    if evaluated.exists():
        header["thresholds"] = json.loads(evaluated.read_text()).get("thresholds", {})
    stored = {}
    for key, tensor in tensors.items():
        exact = key.startswith("statistics.") or "running_" in key or not tensor.is_floating_point()
        stored[key] = tensor if exact else tensor.to(torch.float16)
    shards, size = [{}], 0
    for key, tensor in stored.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    files = []
    for number, shard in enumerate(shards):
        suffix = "" if len(shards) == 1 else f"-{number + 1}of{len(shards)}"
        path = folder / f"{name}{suffix}.safetensors"
        save_weights(path, shard, header)
        files.append({"file": path.name, "size": path.stat().st_size, "sha256": sha256(path)})
    meta = json.loads((Path(run_dir) / "meta.json").read_text())
    trained = sha256(find(run_dir)[0])
    entry = {"paper": header["paper"], "dtype": "float16", "files": files, "trained_by": meta["command"],
             "trained_sha256": trained, "expected": expected_metrics(trained)}  # fmt: skip
    manifest = read_manifest(folder) | {name: entry}
    write_json(folder / "MANIFEST.json", dict(sorted(manifest.items())))
    return entry


def expected_metrics(trained: str) -> dict[str, dict]:
    """Accuracy and AUROC that the records of a trained run hold, by record and unknown set."""
    from common.results import by_source, read_records

    found = {}
    for record in read_records():
        if trained in record["checkpoint_sha256"]:
            values = {source: {name: metrics[name] for name in ("closed_accuracy", "auroc")}
                      for source, metrics in by_source(record["metrics"]).items()}  # fmt: skip
            found[Path(record["path"]).stem] = values
    return found


def origin(where: str | Path, folder: Path = FOLDER) -> str:
    """SHA-256 of the weights file that training itself wrote, for what `find` takes; a manifest entry remembers it."""
    files = find(where, folder)
    for entry in read_manifest(folder).values():
        if files[0].parent.resolve() == folder.resolve() and files[0].name in {file["file"] for file in entry["files"]}:
            return entry["trained_sha256"]
    return sha256(files[0])


def fetch(name: str, base_url: str | None = None, folder: Path = FOLDER) -> bool:
    """Download the files of a manifest entry that are not here or damaged.

    Parameters
    ----------
    name : str
        Name in the manifest.
    base_url : str, optional
        Any web server that has the files of the manifest in one folder; else `$OSR_CHECKPOINT_URL`.
    folder : Path
        Where the manifest is and the files go.

    Returns
    -------
    bool
        True if a file was fetched, False if all were here.

    Raises
    ------
    UserError
        Unknown name, or a file that did not come: file, size, SHA-256, address, and where to put it by hand.
    """
    from common.download import download

    manifest = read_manifest(folder)
    if name not in manifest:
        raise UserError(f"no checkpoint {name!r} in {folder / 'MANIFEST.json'}{nearest(name, manifest)}")
    base = (base_url or os.environ.get("OSR_CHECKPOINT_URL", "")).rstrip("/")
    fetched = False
    for part in manifest[name]["files"]:
        urls = [f"{base}/{part['file']}"] if base else []
        try:
            fetched |= download(folder / part["file"], urls, f"sha256:{part['sha256']}", part["size"])
        except UserError as error:
            hint = "" if base else "; --base_url or $OSR_CHECKPOINT_URL name a web server that has it"
            raise UserError(f"checkpoint {name}: {error}{hint}") from error
    return fetched


def _presence(entry: dict, folder: Path = FOLDER) -> str:
    """Say how many files of an entry are here, by name and size."""
    here = sum((folder / p["file"]).is_file() and (folder / p["file"]).stat().st_size == p["size"] for p in entry["files"])
    return "here" if here == len(entry["files"]) else f"{here} of {len(entry['files'])} files" if here else "missing"


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m common.checkpoints", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="action", required=True, parser_class=ScriptParser)
    commands.add_parser("list", help="names, sizes, which are here, and the command that trained each")
    commands.add_parser("verify", help="check every file against its SHA-256; exit code 1 when one differs")
    adding = commands.add_parser("add", help="store the weights of a run in half precision")
    adding.add_argument("run", type=Path, help="run directory")
    adding.add_argument("name", help="name in the manifest")
    commands.add_parser("expect", help="enter anew which metrics each must give, from the records that are here")
    getting = commands.add_parser("download", help="fetch files that are not here from a web server, verified")
    getting.add_argument("names", nargs="+", metavar="NAME", help="names in the manifest")
    getting.add_argument("--base_url", metavar="URL", help="folder on a web server; else $OSR_CHECKPOINT_URL")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.action == "add":
        entry = add(args.run, args.name)
        print(f"{args.name}: {sum(part['size'] for part in entry['files'])} bytes in {len(entry['files'])} file(s)")
        return
    if args.action == "expect":
        manifest = read_manifest()
        known = {name: entry | {"expected": expected_metrics(entry["trained_sha256"])} for name, entry in manifest.items()}
        write_json(FOLDER / "MANIFEST.json", known)
        print(f"{sum(known[name] != entry for name, entry in manifest.items())} of {len(known)} changed")
        return
    if args.action == "download":
        for name in args.names:
            print(f"{name}: {'downloaded' if fetch(name, args.base_url) else 'already here'}", flush=True)
        return
    broken = 0
    for name, entry in read_manifest().items():
        size = sum(part["size"] for part in entry["files"]) / 1e6
        if args.action == "list":
            print(f"{name:48} {size:7.2f} MB  {_presence(entry):12}  {entry['trained_by']}")
            continue
        try:
            find(name)
            print(f"{name}: ok")
        except UserError as error:
            broken += 1
            print(error)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    run_script(main)
