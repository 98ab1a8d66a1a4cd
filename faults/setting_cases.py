"""Settings that make no sense, and some at the edge of it."""

from pathlib import Path

from case import (
    Break,
    Case,
    adapt,
    content,
    in_place_of,
    nothing,
    remove,
    settings,
)


def setting_cases() -> list[Case]:
    """Returns the cases."""

    def of(name: str, breaks: Break, *says: str) -> Case:
        return Case("settings", name, breaks, adapt(), says)

    def option(name: str, *words: str, says: tuple[str, ...]) -> Case:
        title = f"{name.removeprefix('--')} {' '.join(words)}".strip()
        return Case("settings", title, nothing, adapt(name, *words), says)

    return [
        of(
            "misspelled key",
            settings("bank_size", "bank_sise"),
            r"self_label\.bank_size",
            "settings.toml",
        ),
        of(
            "misspelled table",
            settings("[self_label]", "[self_lable]"),
            r"self_label\.iterations",
            "settings.toml",
        ),
        of(
            "unknown key",
            settings("[views]", "[views]\ncolour = 3"),
            "views.colour",
            "settings.toml",
        ),
        of(
            "word in the place of a number",
            settings("bank_size = 64", 'bank_size = "many"'),
            "bank_size",
            "many",
            "settings.toml",
        ),
        of(
            "fraction in the place of a whole number",
            settings("bank_size = 64", "bank_size = 6.5"),
            "bank_size",
            "6.5",
        ),
        of(
            "word in the place of true or false",
            settings("freeze_batch_norm = false", "freeze_batch_norm = 7"),
            "freeze_batch_norm",
            "7",
        ),
        of("three numbers in the place of two", settings("[16, 32]", "[16, 32, 3]"), "3|crop"),
        of(
            "no TOML",
            settings("[views]", "[views"),
            "settings.toml is not a TOML file",
            r"line \d+",
        ),
        of(
            "key given twice",
            settings("bank_size = 64", "bank_size = 64\nbank_size = 65"),
            "settings.toml is not a TOML file",
        ),
        of(
            "no UTF-8",
            content("settings.toml", b"\xff\xfe\x00"),
            "settings.toml is not a TOML file",
        ),
        of("no file of settings", remove("settings.toml"), "settings.toml cannot be read"),
        of(
            "folder in the place of settings",
            in_place_of("settings.toml", Path.mkdir),
            "settings.toml cannot be read",
        ),
        of("no output", settings('output = "run"', ""), "--output", "settings.toml"),
        of("no target", settings('images = "target/images"', ""), "target: .*needs `images`"),
        option(
            "--warmup.iterations",
            "-5",
            says=("warmup.iterations must be 1 or more, got -5", "settings.toml"),
        ),
        option(
            "--self-label.iterations", "0", says=("self_label.iterations must be 1 or more, got 0",)
        ),
        option("--distill.batch-size", "0", says=("distill.batch_size must be 1 or more",)),
        option("--views.crop", "0", "32", says=("views.crop must be 16 or more, got 0",)),
        option(
            "--views.full-size", "-32", "64", says=("views.full_size must be 16 or more, got -32",)
        ),
        option("--views.scale", "0", "1", says=("views.scale must be above 0, got 0",)),
        option("--views.width", "0", says=("views.width must be 1 or more",)),
        option(
            "--self-label.temperature",
            "nan",
            says=("self_label.temperature must be above 0, got nan",),
        ),
        option("--self-label.epsilon", "0", says=("self_label.epsilon must be above 0",)),
        option(
            "--warmup.learning-rate", "inf", says=("warmup.learning_rate must be above 0, got inf",)
        ),
        option(
            "--self-label.teacher-momentum",
            "1.5",
            says=("self_label.teacher_momentum must be 0 to 1, got 1.5",),
        ),
        option("--checkpoint-every", "0", says=("checkpoint_every must be 1 or more",)),
        option("--workers", "-1", says=("workers must be 0 or more",)),
        option("--accumulate", "2", says=("warmup.batch_size 1 must be a multiple of processes",)),
        option(
            "--palette", "1", "2", "3", says=("palette: 3 classes need as many colours, got 1",)
        ),
        option(
            "--palette",
            *["1", "2", "3", "4", "5", "6", "7", "8", "999"],
            says=("palette must be 0 to 255, got 999",),
        ),
        option("--classes", "road", "road", "sky", says=("class names must differ", "road")),
        option("--classes", *[str(i) for i in range(300)], says=("1 to 255 classes, got 300",)),
        option("--classes", says=("classes",)),
        option("--classes", "road", says=("unknown id", "source/labels/")),
        option("--model.backbone", "resnet_huge", says=("resnet_huge", "resnet101")),
        option("--source.dataset", "gta6", says=("gta6", "gta5")),
        option("--source.dataset", "gta5", says=("source: .*needs `root`",)),
        option(
            "--output",
            "target/images/run",
            says=("output target/images/run lies in target.images", "another --output"),
        ),
        option("--hand-on", "best", says=("evaluate_every above 0",)),
        option(
            "--warmup.start",
            "no.pth",
            says=("warmup.start: there is no file no.pth, nor is it one of imagenet",),
        ),
        option("--warmup.start", ".", says=("warmup.start: there is no file [.]",)),
        option("--given.warmup", "no.pkl", says=("given.warmup: there is no file no.pkl",)),
        option("--given.warmup", "source", says=("given.warmup: there is no file source",)),
        option(
            "--model.imagenet-file",
            "no.pth",
            says=("model.imagenet_file: there is no file no.pth",),
        ),
        option("--no-such-option", "1", says=("no-such-option",)),
        of("crop larger than the image as a whole", settings("crop = [16, 32]", "crop = [48, 80]")),
        of("images at odd sizes", settings("[32, 64]", "[33, 67]")),
        of(
            "the smallest sizes there are",
            settings(
                "full_size = [32, 64]\ncrop = [16, 32]", "full_size = [16, 16]\ncrop = [16, 16]"
            ),
        ),
        of(
            "a colour for each of Cityscapes' classes",
            settings(
                'classes = ["road", "car", "sky"]', f"palette = {[[i, i, i] for i in range(19)]}"
            ),
        ),
    ]
