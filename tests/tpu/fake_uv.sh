#!/bin/sh
# Acts as uv: `uv venv … FOLDER` makes a folder with a python in it, `uv pip install …` notes what it was asked.
case $1 in
    venv)
        for folder; do :; done
        mkdir -p "$folder/bin"
        ln -s "$(command -v python3)" "$folder/bin/python"
        ;;
    pip) echo "$@" >> "$HOME/installed.txt" ;;
esac
