"""The options of `in21k preprocess raw-tar` and `in21k preprocess folder`."""

from __future__ import annotations

import click

from .options import PATH, Command, json_option, overwrite_option, workers_option

_OPTIONS = (
    click.option(
        "--rare-threshold",
        type=int,
        help="Keep the classes with more images than this.  [default: 500; 0 for folders of your own]",
    ),
    click.option("--classes", metavar="FILE|fall11p|winter21p|in12k", help="Keep exactly these classes instead."),
    click.option(
        "--drop-subtree",
        metavar="WNID",
        multiple=True,
        help="Drop a synset and all below it; repeatable.",
    ),
    click.option("--exclude", type=PATH, help="A file of images to leave out: keys, paths or checksums, one a line."),
    click.option(
        "--val-per-class",
        type=int,
        help="Validation images of each class, the first by file name; 0: no validation split.  [default: 50; a tenth "
        "for folders of your own; the split of SOURCE where it has train/ and val/]",
    ),
    click.option("--val-list", type=PATH, help="A file of the validation images instead: keys or paths."),
    click.option(
        "--resize",
        type=click.Choice(["squish", "short-edge", "none"]),
        help="squish: to size x size; short-edge: the shorter side to size; none. Smaller images keep their size.  "
        "[default: squish; none for the processed archive]",
    ),
    click.option("--size", type=int, help="Size in pixels.  [default: 224; at most the median of folders of your own]"),
    click.option(
        "--resizer",
        type=click.Choice(["pillow", "opencv"]),
        default="pillow",
        show_default=True,
        help="pillow: antialiased bilinear; opencv: the reference scripts' cv2 steps, pixel for pixel.",
    ),
    click.option("--quality", default=95, show_default=True, help="JPEG quality of the stored images."),
    click.option(
        "--max-reject-rate",
        default=0.01,
        show_default=True,
        help="Fail when a larger share of the kept classes' members is rejected.",
    ),
    click.option(
        "--tree",
        type=PATH,
        help="A tree.json or the published imagenet21k_miil_tree.pth: keep exactly its classes, with its parents.",
    ),
    click.option("--parents", type=PATH, help="A parents.csv (child,parent[,name]) that places classes of your own."),
    click.option(
        "--inner-classes/--no-inner-classes",
        default=None,
        help="Add ancestors at which branches meet, as classes without images.  [default: where --parents is given]",
    ),
    click.option("--wordnet", type=PATH, help="A folder of WordNet noun files.  [default: the WordNet 3.0 of in21k]"),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="local: worker processes here; ray: the nodes of a Ray cluster, which all see SOURCE and OUT.",
    ),
    click.option("--ray-address", help="Address of a running Ray cluster.  [default: start one here]"),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Estimate what is kept, the disk space and the hours, and stop; exit code 1: too little space.",
    ),
    workers_option,
    overwrite_option,
    json_option,
)


def preprocess_options(command: Command) -> Command:
    """Add the options that both layouts take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
