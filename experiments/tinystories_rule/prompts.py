"""Writes story openings as prompts: the first sentence of each paragraph that begins like a story.

python experiments/tinystories_rule/prompts.py TINY_STORIES.txt runs/tinystories_prompts.jsonl
"""

import argparse
import json
import re
from pathlib import Path

OPENING = re.compile(r"^(?:Once upon a time|One day|There was once)[^.!?\n]{10,120}\.", re.MULTILINE)


def main() -> None:
    """Reads the stories, writes one prompt a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path, help="a text file of stories")
    parser.add_argument("prompts", type=Path, help="the JSONL file to write")
    arguments = parser.parse_args()
    openings = dict.fromkeys(OPENING.findall(arguments.stories.read_text(encoding="utf-8")))
    arguments.prompts.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"prompt": opening}, ensure_ascii=False) for opening in openings)
    arguments.prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(openings)} prompts in {arguments.prompts}")


if __name__ == "__main__":
    main()
