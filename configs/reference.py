"""The reference of the fields, from `configs/retina.py` and its comments.

python -m configs.reference > docs/config.md
"""

import re
from pathlib import Path

from configs import phantom, retina
from jaxdet.runs.config import FREE, fields

INTRO = """\
# Every field of a config

Made of `configs/retina.py` by `python -m configs.reference > docs/config.md`. Defaults are those of
`configs/retina.py`, and of `configs/phantom.py` where it has another. A field is set on the command
line by `--config.SECTION.FIELD=VALUE`, a tuple as `--config.model.levels='(3,4,5)'`.

A run keeps its config. Fields with a star may differ when it is evaluated, used or continued, and
`train.steps` may grow; any other that differs is refused.
"""


def comments() -> dict[str, str]:
    """What the source says of each field and section, in its order: behind it, or above.

    A comment above holds for all fields that follow and have none of their own.
    """
    sections, found, above = {"config": ""}, {}, ""
    lines = Path(retina.__file__).read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if comment := re.match(r" +# (.*)", line):
            above = f"{above} {comment[1]}" if re.match(" +# ", before) else comment[1]
        elif alias := re.match(r" +(\w+) = (\w+)\.(\w+) = ConfigDict\(\)(?:  # (.*))?", line):
            name, parent, section, behind = alias.groups()
            sections[name], above = f"{sections[parent]}{section}.", ""
            found[sections[name]] = behind or ""
        elif field := re.match(r" +(\w+)\.(\w+) = .*?(?:  # (.*))?$", line):
            section, name, behind = field.groups()
            above = above if behind is None else ""
            found[sections[section] + name] = behind or above
    return found


def reference() -> str:
    """The text of `docs/config.md`."""
    said, texts = comments(), [INTRO]
    default, other = (dict(fields(c.get_config())) for c in (retina, phantom))
    for section in ["", *(name for name in said if name.endswith("."))]:
        note = said.get(section, "")
        texts.append(f"\n## {f'`{section[:-1]}`' if section else 'At the top'}\n\n")
        texts.append(f"{note[0].upper()}{note[1:]}.\n\n" if note else "")
        texts.append("| field | default | `phantom.py` | |\n|---|---|---|---|\n")
        for name in said:
            if name.endswith(".") or name.rpartition(".")[0] != section[:-1]:
                continue
            star = "*" if name.startswith(FREE) or name == "train.steps" else ""
            differs = f"`{other[name]!r}`" if other[name] != default[name] else ""
            cells = [f"`{name}`{star}", f"`{default[name]!r}`", differs, said[name]]
            texts.append("| " + " | ".join(cells) + " |\n")
    return "".join(texts)


if __name__ == "__main__":
    print(reference(), end="")
