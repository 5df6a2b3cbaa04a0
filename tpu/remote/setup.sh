#!/usr/bin/env bash
# Prepares one machine of a slice: code, Python, the package with the TPU's libraries, buckets as folders.
# Seconds when it has been done before.
#
#   setup.sh FOLDER [BUCKET...]      FOLDER holds code/; bucket B becomes the folder /mnt/gcs/B
set -euo pipefail

PYTHON_VERSION=3.11
VENV="$HOME/rlhf-venv"
folder=$1
shift

install_package() {
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [[ -x "$VENV/bin/python" ]] || uv venv --quiet --python "$PYTHON_VERSION" "$VENV"
    local stamp
    stamp="$folder $(sha256sum < "$folder/code/pyproject.toml")"
    if [[ ! -f "$VENV/installed" || "$(cat "$VENV/installed")" != "$stamp" ]]; then
        uv pip install --quiet --python "$VENV/bin/python" --editable "$folder/code[tpu]"
        echo "$stamp" > "$VENV/installed"
    fi
}

install_gcsfuse() {
    command -v gcsfuse > /dev/null && return
    local key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    # A new machine may still be updating itself.
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse > /dev/null
}

mount_bucket() {
    local bucket=$1 target="/mnt/gcs/$1"
    mountpoint -q "$target" && return
    install_gcsfuse
    sudo mkdir -p "$target"
    sudo chown "$(id -u)" "$target"
    # Checkpoints are finished by renaming a folder, which in a bucket is a copy of each file.
    if ! gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" "$target" > "$folder/gcsfuse.log" 2>&1; then
        echo "the bucket gs://$bucket could not be mounted:" >&2
        tail -n 3 "$folder/gcsfuse.log" >&2
        echo "give the machines' service account the role Storage Object Admin on it, or check its name." >&2
        exit 1
    fi
}

install_package
for bucket in "$@"; do
    mount_bucket "$bucket"
done
