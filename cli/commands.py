"""The commands of `in21k`: by job, each with its summary; and the examples that stand in their help."""

from __future__ import annotations

# Title of a section -> {command: its summary, which fits a line of 80 columns}.
SECTIONS = {
    "Data": {
        "sample-data": "Draw a small raw archive to try in21k with",
        "preprocess": "Prune, split and resize raw images into a prepared data set",
        "shard": "Shuffle a prepared data set into WebDataset shards",
        "verify": "Check a prepared data set or shards against the manifest",
    },
    "Training": {
        "config": "Show recipes, and the settings of a training",
        "train": "Train a network on shards, on one GPU or on many",
        "finetune": "Train a pretrained network on other data",
        "average": "Average the weights of several trained networks",
    },
    "Using a model": {
        "validate": "Measure a network on validation images",
        "predict": "Predict what images show, from general to particular",
        "features": "Write the features of every image of a split",
        "knn": "Classify features by their nearest neighbours",
        "probe": "Fit linear classifiers to features, and measure them",
        "retrieve": "Find the images whose features are nearest to a query's",
        "export": "Write a network for timm and the Hugging Face hub",
    },
    "Looking": {
        "tree": "Show or export a semantic tree",
        "browse": "Draw a contact sheet of what each loader hands out",
        "report": "Write an HTML page about data sets and runs",
        "models": "List networks, and published ImageNet-21K weights",
        "bench-loader": "Measure how fast each loader is on this machine",
        "bench-model": "Measure how large and how fast networks are",
        "doctor": "Show what is installed, accelerated, or missing",
    },
}

# Words of a command -> lines that a user can copy, of at most 74 columns.
EXAMPLES = {
    "": (
        "in21k sample-data raw.tar",
        "in21k preprocess raw-tar raw.tar prepared/ --rare-threshold 30",
        "in21k shard prepared/ shards/",
        "in21k verify shards/",
        "in21k train --data shards/ --out run/ --recipe tiny",
        "in21k validate run/ --data shards/",
        "in21k predict run/ photo.jpg",
    ),
    "sample-data": ("in21k sample-data raw.tar", "in21k sample-data odd.tar --classes 12 --oddities"),
    "preprocess raw-tar": (
        "in21k preprocess raw-tar fall11_whole.tar prepared/ --dry-run",
        "in21k preprocess raw-tar fall11_whole.tar prepared/",
        "in21k preprocess raw-tar winter21_whole.tar.gz p/ --classes winter21p",
        "in21k preprocess raw-tar - prepared/ < fall11_whole.tar",
    ),
    "preprocess folder": (
        "in21k preprocess folder photos/ prepared/",
        "in21k preprocess folder photos/ prepared/ --parents parents.csv",
        "in21k preprocess folder labels.csv prepared/ --resize short-edge",
    ),
    "shard": ("in21k shard prepared/ shards/", "in21k shard prepared/ shards/ --shard-bytes 100000000"),
    "verify": (
        "in21k verify shards/ --deep",
        "in21k verify prepared/ --release fall11",
    ),
    "config list": ("in21k config list",),
    "config show": ("in21k config show modern --explain", "in21k config show tiny --set epochs=3"),
    "train": (
        "in21k train --data shards/ --out run/ --recipe modern --dry-run",
        "in21k train --data shards/ --out run/ --recipe tiny --set epochs=3",
        "torchrun --nproc-per-node 8 --no-python \\\n    in21k train --data shards/ --out run/ --recipe modern",
    ),
    "finetune": (
        "in21k finetune --init run/ --data photos/ --out tuned/",
        "in21k finetune --init run/ --data torchvision:CIFAR100:cifar/ \\\n"
        "    --out cifar-run/ --recipe finetune-cifar100",
    ),
    "average": ("in21k average run/checkpoints/step-*.pt averaged/",),
    "validate": (
        "in21k validate run/ --data shards/",
        "in21k validate run/ --data shards/ --weights ema --per-class classes.parquet",
        "in21k validate run/ --imagenet1k imagenet/val/",
    ),
    "predict": (
        "in21k predict run/ photo.jpg --picture labels.png",
        "in21k predict run/ photos/ --jsonl > predictions.jsonl",
    ),
    "features": (
        "in21k features run/ val.parquet --data shards/",
        "in21k features resnet50 train.npy --data shards/ --split train",
    ),
    "knn": ("in21k knn train.parquet val.parquet --k 20",),
    "probe": (
        "in21k probe train.parquet val.parquet --no-linear",
        "in21k probe train.parquet val.parquet --shots 5 --tree shards/",
    ),
    "retrieve": (
        "in21k retrieve val.parquet n01440764_10026",
        "in21k retrieve val.parquet photo.jpg --model run/ --data shards/ \\\n    --picture nearest.png",
    ),
    "export": ("in21k export run/ exported/", "in21k export run/ exported/ --weights ema --onnx"),
    "tree show": ("in21k tree show shards/", "in21k tree show shards/ goldfish"),
    "tree export": ("in21k tree export shards/ tree.csv --format csv",),
    "browse": ("in21k browse shards/ sheet.png --augment miil --images 12",),
    "report": (
        "in21k report prepared/ prepared.html",
        "in21k report run/ other-run/ runs.html --data shards/",
    ),
    "models": ("in21k models", "in21k models resnet50 --data shards/"),
    "bench-loader": (
        "in21k bench-loader shards/",
        "in21k bench-loader shards/ --backend opencv --backend dali_cpu --sweep",
        "in21k bench-loader shards/ --model resnet50 --plot loaders.png",
    ),
    "bench-model": ("in21k bench-model resnet50 vit_small_patch16_224", "in21k bench-model run/ --precision bf16"),
    "doctor": ("in21k doctor",),
}
