"""Fills in tpu/kubernetes/jobset.yaml: the manifest of a JobSet that runs a program on TPU slices of a GKE cluster.

tpu/kubernetes/render pilot --type v5e-16 --image IMAGE -- rlhf ppo --config … --output gs://bucket/pilot | kubectl apply -f -
"""

import argparse
import hashlib
import json
import re
import shlex
import sys
from pathlib import Path
from string import Template

from launcher.environment import SEVERAL_RUNS
from launcher.job import BUCKET, MOUNTS
from launcher.problems import LaunchError
from launcher.slices import parse_slice

TEMPLATE = Path(__file__).resolve().parents[1] / "kubernetes" / "jobset.yaml"
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # what the names of its pods leave room for


def manifest(
    name: str,
    type_name: str,
    image: str,
    program: list[str],
    *,
    slices: int,
    spot: bool,
    restarts: int,
    service_account: str,
) -> str:
    """The YAML of a JobSet.

    Args:
        name: of the JobSet.
        type_name: chips of a slice, as v5e-16.
        image: container image with the program.
        program: its words; `gs://BUCKET/...` in them becomes a folder of the pod.
        slices: how many.
        spot: whether on chips that may be taken away.
        restarts: how often all is started again after a machine was lost.
        service_account: of Kubernetes, with access to the buckets.

    Raises:
        LaunchError: a name or type that cannot be.
    """
    if not NAME.fullmatch(name):
        raise LaunchError(
            f"{name!r} is no name for a JobSet", fix="use at most 40 lower-case letters, digits and -, a letter first."
        )
    if not program:
        raise LaunchError("no program is given", fix="write it after --, as in: -- rlhf ppo --config FILE")
    piece = parse_slice(type_name)
    buckets = sorted(set(BUCKET.findall(" ".join(program))))
    volumes = [
        {
            "name": f"bucket-{index}",
            "csi": {
                "driver": "gcsfuse.csi.storage.gke.io",
                "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs,rename-dir-limit=100000"},
            },
        }
        for index, bucket in enumerate(buckets)
    ]
    mounts = [{"name": f"bucket-{index}", "mountPath": f"{MOUNTS}/{bucket}"} for index, bucket in enumerate(buckets)]
    # The same experiment has the same id, so that applying the manifest again goes on in the same wandb run.
    run_id = hashlib.sha256(shlex.join([name, *program]).encode()).hexdigest()[:12]
    several = any(word in SEVERAL_RUNS for word in program[:2])
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        image=image,
        command=json.dumps([BUCKET.sub(rf"{MOUNTS}/\1", word) for word in program], ensure_ascii=False),
        slices=slices,
        hosts=piece.hosts,
        chips_per_host=piece.chips // piece.hosts,
        accelerator=piece.kubernetes_name,
        topology=piece.topology,
        restarts=restarts,
        service_account=service_account,
        spot_selector='cloud.google.com/gke-spot: "true"' if spot else "",
        run_id="" if several else f'- {{name: WANDB_RUN_ID, value: "{run_id}"}}',
        mounts=json.dumps(mounts),
        volumes=json.dumps(volumes),
    )
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def main(words: list[str]) -> int:
    """The command tpu/kubernetes/render; returns the exit status."""
    position = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        "tpu/kubernetes/render",
        description="Print the manifest of a JobSet; nothing is run. Give the program after --.",
    )
    parser.add_argument("name", metavar="NAME", help="of the JobSet")
    parser.add_argument("--type", required=True, help="chips of a slice, as v5e-16")
    parser.add_argument("--image", required=True, help="container image; tpu/kubernetes/Dockerfile makes one")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices (default: 1)")
    parser.add_argument("--spot", action="store_true", help="on chips that may be taken away")
    parser.add_argument("--restarts", type=int, default=20, metavar="K", help="after a lost machine (default: 20)")
    parser.add_argument(
        "--service-account", default="default", metavar="ACCOUNT", help="of Kubernetes (default: default)"
    )
    options = parser.parse_args(words[:position])
    try:
        text = manifest(
            options.name,
            options.type,
            options.image,
            words[position + 1 :],
            slices=options.slices,
            spot=options.spot,
            restarts=options.restarts,
            service_account=options.service_account,
        )
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
