"""The reference of the fields, from their declarations in `configs/retina.py`.

python -m configs.reference > docs/config.md
"""

from configs import phantom, retina
from jaxdet.runs.config import flatten
from jaxdet.runs.fields import values_of

INTRO = """\
# Every field of a config

Made of `configs/retina.py` by `python -m configs.reference > docs/config.md`. Defaults are those of
`configs/retina.py`, and of `configs/phantom.py` where it has another. A field is set on the command
line by `--config.SECTION.FIELD=VALUE`, a tuple as `--config.model.levels='(3,4,5)'`.

A run keeps its config. Fields with a star may differ when it is evaluated, used or continued, and
`train.steps` may grow; any other that differs is refused. A run that is older than a field has what
was done before there was the field.
"""
NOTES = {
    "augment": "What is applied to the images of a step, with their boxes. A normal film that is "
    "given a finding (paste_findings) counts as abnormal in that step; `data.normal_share` is of "
    "the films as they were drawn.",
    "inference.tta": "Test-time augmentation: further looks at each image.",
}


def reference() -> str:
    """The text of `docs/config.md`."""
    fields, other = retina.get_fields(), dict(flatten(phantom.get_config()))
    texts, last = [INTRO], None
    for name, field in fields.items():
        section = name.rpartition(".")[0]
        if section != last:
            texts.append(f"\n## {f'`{section}`' if section else 'At the top'}\n\n")
            texts.append(f"{NOTES[section]}\n\n" if section in NOTES else "")
            texts.append("| field | default | `phantom.py` | values | |\n|---|---|---|---|---|\n")
            last = section
        star = "" if field.changes == "never" else "*"
        differs = f"`{other[name]!r}`" if other[name] != field.default else ""
        cells = [
            f"`{name}`{star}",
            f"`{field.default!r}`",
            differs,
            values_of(field),
            field.meaning,
        ]
        texts.append("| " + " | ".join(cells) + " |\n")
    return "".join(texts)


if __name__ == "__main__":
    print(reference(), end="")
