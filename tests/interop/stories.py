"""What is told here: `python -m tests.interop.stories` lists it."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Story:
    """A test with the real Synapse."""

    module: str
    name: str
    is_told_from_both_sides: bool
    """Once with the room on each server; of what has no sides, both do their part in it."""

    def __str__(self) -> str:
        """As a sentence."""
        sides = "" if self.is_told_from_both_sides else " (told once)"
        return f"{self.module}: {self.name.replace('_', ' ')}{sides}"


def all_stories() -> Iterator[Story]:
    """By module, in their order there."""
    for file in sorted(_HERE.glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_"):
                fixtures = {argument.arg for argument in node.args.args}
                yield Story(file.stem.removeprefix("test_"), node.name.removeprefix("test_"), "host" in fixtures)


def main() -> None:
    """Print them."""
    stories = list(all_stories())
    lines = [str(story) for story in stories]
    both = sum(story.is_told_from_both_sides for story in stories)
    lines.append(f"{len(stories)} stories, {both} of them from both sides")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
