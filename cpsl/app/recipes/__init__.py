"""`cpsl recipes`: the recipes that come with the package, as TOML files beside this module."""


def main(arguments: list[str]) -> None:
    """Runs `cpsl recipes`."""
    from cpsl.app.command_line import CommandParser, list_recipes, read_layers, recipe, recipe_names
    from cpsl.app.settings import UsageError, to_toml

    parser = CommandParser("recipes", "Lists the recipes, or prints one.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to print")
    parser.add_argument(
        "--complete", action="store_true", help="print all settings, not only the differences"
    )
    options = parser.parse_args(arguments)
    if options.name not in (None, *recipe_names()):
        raise UsageError(f"there is no recipe {options.name}; {list_recipes(options.name)}")
    if options.name is None:
        for name in recipe_names():
            first = recipe(name).read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:24}{first.lstrip('# ')}")
    elif options.complete:
        print(to_toml(read_layers([str(recipe(options.name))])), end="")
    else:
        print(recipe(options.name).read_text(encoding="utf-8"), end="")
