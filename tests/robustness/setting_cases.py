"""Settings that make no sense, and some at the edge of what does."""

from functools import partial
from pathlib import Path

from case import Case, content, remove, replace, settings

of = partial(Case, "settings")
FILE = "settings.toml"

# What replaces what in settings.toml, and the words of the message.
EDITS = {
    "misspelled key": ("bank_size", "bank_sise", "self_label.bank_size", FILE),
    "misspelled table": ("self_label =", "self_lable =", "self_label", FILE),
    "unknown key": ("[views]", "[views]\ncolor = 3", "views.color", FILE),
    "text for a number": ("bank_size = 64", 'bank_size = "many"', "bank_size", "many", FILE),
    "fraction for a whole number": ("bank_size = 64", "bank_size = 6.5", "bank_size", "6.5"),
    "number for true or false": ("batch_norm = false", "batch_norm = 7", "freeze_batch_norm", "7"),
    "three numbers for two": ("[16, 32]", "[16, 32, 3]", "views.crop"),
    "no TOML": ("[views]", "[views", FILE, "line"),
    "key given twice": ("bank_size = 64", "bank_size = 64, bank_size = 65", FILE),
    "no output": ('output = "run"', ""),
    "no target": (' images = "target/images" ', "", "target", "images"),
    "unknown base": ('output = "run"', 'output = "run"\nbase = "other"', "other"),
    "crop larger than the image": ("crop = [16, 32]", "crop = [48, 80]"),
    "odd sizes": ("[32, 64]", "[33, 67]"),
    "smallest sizes": ("[32, 64]\ncrop = [16, 32]", "[16, 16]\ncrop = [16, 16]"),
    "a color for each class of Cityscapes": (
        'classes = ["road", "car", "sky"]',
        f'classes = ["cityscapes-19"]\npalette = {[[i, i, i] for i in range(19)]}',
    ),
}

# Options of the command line, and the words of the message.
OPTIONS = {
    "--warmup.iterations -5": ("command line", "warmup.iterations", "-5"),
    "--self-label.iterations 0": ("self_label.iterations", "0"),
    "--distill.batch-size 0": ("distill.batch_size", "0"),
    "--views.crop 0 32": ("views.crop", "0"),
    "--views.full-size -32 64": ("views.full_size", "-32"),
    "--views.scale 0 1": ("views.scale", "0"),
    "--views.width 0": ("views.width", "0"),
    "--self-label.temperature nan": ("self_label.temperature", "nan"),
    "--self-label.epsilon 0": ("self_label.epsilon", "0"),
    "--warmup.optimizer.learning-rate inf": ("warmup.optimizer.learning_rate", "inf"),
    "--self-label.teacher-momentum 1.5": ("self_label.teacher_momentum", "1.5"),
    "--checkpoint-every 0": ("checkpoint_every", "0"),
    "--workers -1": ("workers", "-1"),
    "--gradient-accumulation-steps 2 --source-only.batch-size 3": (
        "batch_size",
        "gradient_accumulation_steps",
    ),
    "--palette 1 2 3": ("palette", "3", "1"),
    "--palette 1 2 3 4 5 6 7 8 999": ("palette", "999"),
    "--classes road road sky": ("class", "road"),
    f"--classes {' '.join(map(str, range(300)))}": ("classes", "300"),
    "--classes": ("classes",),
    "--classes road": ("source/labels/",),
    "--model.network resnet_huge": ("model.network", "resnet_huge", "MODULE:FUNCTION"),
    "--source.dataset gta6": ("gta6", "gta5"),
    "--source.dataset gta5": ("source", "root"),
    "--output target/images/run": ("target/images/run", "target.images"),
    "--select-checkpoint best": ("select_checkpoint", "evaluate_every"),
    "--warmup.start no.pth": ("warmup.start", "no.pth", "pretrained"),
    "--warmup.start .": ("warmup.start",),
    "--init-from.warmup no.pkl": ("init_from.warmup", "no.pkl"),
    "--init-from.warmup source": ("init_from.warmup", "source"),
    "--model.weights no.pth": ("model.weights", "no.pth"),
    "--no-such-option 1": ("no-such-option",),
    "--config no.toml": ("no.toml", "miniature"),
}

SETTINGS = [
    *(of(name, settings(old, new), tuple(names)) for name, (old, new, *names) in EDITS.items()),
    *(of(option[:40], (), names, act=f"adapt {option}") for option, names in OPTIONS.items()),
    of("not UTF-8", content(FILE, b"\xff\xfe\x00"), FILE),
    of("settings are missing", remove(FILE), FILE),
    of("folder in place of the settings", replace(FILE, Path.mkdir), FILE),
    of("unknown command", (), ("adopt", "adapt"), act="adopt"),
]
