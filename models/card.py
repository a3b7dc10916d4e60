"""The model card that lies in an exported folder as README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .export import SEVERAL_LABELS

_CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, in21k]
license: {license}
---
# {architecture}, {num_classes:,} {kinds}

{architecture} with {num_parameters:.1f} M parameters, {origin} [in21k](https://pypi.org/project/in21k/). {weights}

## How to use it

```python
{code}
```

`hf-hub:USER/NAME` on the Hugging Face hub; `local-dir:FOLDER` where this folder lies on a disk. {labels} {onnx}

## Images

{images}

## Data

{data}

## Metrics

{metrics}

## Training

{training}
{notes}
## Terms

Where the images were ImageNet's: ImageNet does not own their copyright; access to them is given to researchers for
non-commercial research and educational use, under the terms of access at <https://image-net.org/download>. Whoever uses
weights that were trained on them has to find out what those terms mean for that use. Images of another source have the
terms of that source.

The licence of these weights is named at the top of this card; `other` says that their publisher has chosen none yet.
Names of WordNet's classes, and the tree over them, come from WordNet 3.0, Copyright 2006 by Princeton University. All
rights reserved. The WordNet licence allows use, copying, modification and distribution for any purpose and without fee,
with its notice kept: <https://wordnet.princeton.edu/license-and-commercial-use>.
"""

_CODE = """\
import timm
from PIL import Image
{imports}
model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
logits = model(transform(Image.open("photo.jpg").convert("RGB")).unsqueeze(0))
config = model.pretrained_cfg
{answer}"""
_ONE_LABEL = """\
label = config["label_names"][int(logits{image_classes}.argmax())]
print(label, config["label_descriptions"][label])"""
_SEVERAL_LABELS = """\
for label, probability in zip(config["label_names"], logits.sigmoid()[0].tolist()):
    if probability >= 0.5:
        print(config["label_descriptions"][label], probability)"""

_OF_TREE = """\
`label_names` are the classes in the order of the outputs{wordnet}, `label_descriptions` their names; `tree.json` is the
semantic tree over them, by which `in21k predict FOLDER IMAGE` answers from general to particular."""
_OF_LABELS = """\
`label_names` are the labels in the order of the outputs, `label_descriptions` their names. An image has any number of
them: the probability of each is the sigmoid of its logit."""

_OVERLAP = """\
It was distilled from the teacher `{teacher}`. Where the teacher has seen the images of this validation split (published
ImageNet-21K weights were trained on splits of their own, or on all images), the metrics above are higher than on
images that neither has seen.
"""


def render_model_card(
    *,
    config: Mapping[str, Any],
    num_parameters: int,
    weights: str,
    label_space: str | None,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    metrics: Sequence[tuple[str, str]],
    teacher: str | None,
    notes: Sequence[str],
    license_id: str,
    with_onnx: bool,
) -> str:
    """Return the card's Markdown.

    config:      the content of `config.json` (`timm_config`).
    weights:     a sentence that says which weights these are.
    label_space: the name of the known label space that the classes are, if any.
    data:        facts of the data set: num_samples per split, and what else there is.
    settings:    the training settings to list; empty for published weights, whose settings are unknown here.
    metrics:     titles and values measured with these weights; may be empty.
    teacher:     of a distilled network.
    notes:       paragraphs.
    """
    prepared: Mapping[str, Any] = config["pretrained_cfg"]
    architecture: str = config["architecture"]
    size: int = prepared["input_size"][-1]
    ours = architecture == "ofa_flops_595m_s"
    multi_label = SEVERAL_LABELS in prepared.get("notes", ())
    in_wordnet = all(re.fullmatch(r"n\d{8}", label) for label in prepared["label_names"])
    kinds = "labels" if multi_label else "classes"
    num_image_classes = config.get("num_image_classes")
    first = f"[:, :{num_image_classes}]" if num_image_classes else ""
    whole = f"the whole image, stretched to {size} x {size} pixels"
    middle = (
        f"the middle {size} x {size} pixels of the image, its shorter side resized to {size / prepared['crop_pct']:.0f}"
    )
    rows = [f"| {title} | {value} |" for title, value in metrics]
    paragraphs = [*([_OVERLAP.format(teacher=teacher)] if teacher else []), *(f"{note}\n" for note in notes)]
    return _CARD.format(
        license=license_id,
        architecture=architecture,
        num_classes=config["num_classes"],
        num_parameters=num_parameters / 1e6,
        origin="trained with" if settings else "with published weights, in a folder that was written by",
        weights=weights,
        code=_CODE.format(
            imports="\nimport in21k.models  # makes the architecture known to timm\n" if ours else "",
            answer=_SEVERAL_LABELS if multi_label else _ONE_LABEL.format(image_classes=first),
        ),
        kinds=kinds,
        labels=_OF_LABELS if multi_label else _OF_TREE.format(wordnet=", WordNet 3.0's" if in_wordnet else ""),
        onnx="`model.onnx` takes `images` (batch, 3, height, width) and gives `logits`." if with_onnx else "",
        images=f"RGB, {whole if prepared['crop_mode'] == 'squash' else middle} (bilinear); pixels 0..1 less the mean "
        f"{prepared['mean']}, over the standard deviation {prepared['std']}.",
        data="\n".join(
            [
                f"- {config['num_classes']:,} {kinds}{f': those of {label_space}' if label_space else ''}",
                *([f"- the first {num_image_classes:,} have images, the others are their ancestors"] if first else []),
                *(f"- {count:,} {split} images" for split, count in data.get("num_samples", {}).items()),
                *([f"- shards: fingerprint {data['shards']}"] if "shards" in data else []),
            ]
        ),
        metrics="\n".join(["| metric | value |", "|---|---:|", *rows])
        if rows
        else "Nothing was measured of these weights.",
        training=_training(settings),
        notes="\n## Notes\n\n" + "\n".join(paragraphs) if paragraphs else "",
    )


def _training(settings: Mapping[str, Any]) -> str:
    if not settings:
        return "These weights were not trained by in21k; their publishers say how they were."
    lines = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    return f"{lines}\n\nAll settings: `config.yaml`; what they mean: `in21k config show --explain`."
