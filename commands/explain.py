"""What is wrong with a command line: found by walking the options given through the options there are.

The parser reports what each type of a nested option expected, level by level; a user wants the one option that is wrong, and
what there is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from commands.option_types import accepts, class_named, concrete, describe, item_type, object_types, options_of
from latent_tts.errors import UserError

_FILES = ("-c", "--config")
_SHOWN = 14  # names in a list of what there is


_INSTEAD = {"seed_everything": "every part that draws has its own seed, --model.seed and --data.seed"}


@dataclass(frozen=True)
class Given:
    """An option as it was given: its name in parts, and its value (a string from the command line, any YAML from a file)."""

    path: tuple[str, ...]
    value: Any
    flag: bool


class BadOptionError(UserError):
    """What a parser says; `explain` finds better words where it can."""

    def __init__(self, sentence: str, parser: ArgumentParser) -> None:
        super().__init__(sentence)
        self.parser = parser


class OneSentenceParser(ArgumentParser):
    """Raises what is wrong with an option instead of printing usage text; abbreviated options are unknown options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {"allow_abbrev": False}
        super().__init__(*args, **(defaults | kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split()).rstrip(".")
        raise BadOptionError(f"{text[0].upper()}{text[1:]}; --help lists the options.", self) from ex


def explain(
    parser: ArgumentParser, args: Sequence[str], names: Mapping[str, Sequence[str]] | None = None
) -> str | None:
    """One sentence on the first option that is wrong; None where none is found.

    Args:
        parser: The parser of the command or sub-command.
        args: The command line, without a sub-command's name.
        names: Of options whose value is an object, the names of the classes that are meant; by default all that fit.
    """
    options = [
        Given((key,), value, False) for file in parser.default_config_files for key, value in content(file).items()
    ]
    options += given_options(args)
    walk = Walk(options, names or {})
    for option in options:
        if option.value is None and option.flag:
            return f"Option --{'.'.join(option.path)} needs a value."
        if sentence := walk.problem(parser, option.path, option.value, "", option.flag):
            return sentence
    return walk.missing(parser)


def given_options(args: Sequence[str]) -> Iterator[Given]:
    """The options of a command line and of the files it names, in their order."""
    for name, text in words(args):
        if name in _FILES and text is not None:
            yield from (Given((key,), found, flag=False) for key, found in content(text).items())
        else:
            yield Given(tuple(name.lstrip("-").rstrip("+").split(".")), text, flag=True)


def given_files(args: Sequence[str]) -> list[str]:
    """The files of options that a command line names, in their order."""
    return [text for name, text in words(args) if name in _FILES and text is not None]


def refuse_empty_values(args: Sequence[str]) -> None:
    """Refuses an option with an empty text for its value, as a variable of the shell that is not set leaves it.

    It would stand for the working directory, or for an option that is not given.

    Raises:
        UserError: Names the first such option.
    """
    for name, text in words(args):
        if text is not None and not text.strip():
            raise UserError(
                f"Option {name} has an empty value: leave it out, or see whether a variable of the shell is unset."
            )


def words(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The options of a command line as they stand, each with its value if it has one."""
    rest = list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name.startswith("-"):
            yield name, value if equals else (rest.pop(0) if rest and not rest[0].startswith("--") else None)


def mentioned(args: Sequence[str]) -> Iterator[str]:
    """The texts of a command line: its arguments, and the contents of the files that it names."""
    for argument in args:
        yield argument
        path = Path(argument.rpartition("=")[2])
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def content(file: str | Path) -> dict[str, Any]:
    """What a file of options says.

    Raises:
        UserError: There is none, or it holds something else.
    """
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise UserError(f"--config {file} is not valid YAML: {reason}.") from error
    if not isinstance(found, dict | None):
        raise UserError(f"--config {file} must hold options by name, not a {type(found).__name__}.")
    return {str(key): value for key, value in (found or {}).items()}


class Walk:
    """Follows options into the classes that they name."""

    def __init__(self, options: Sequence[Given], names: Mapping[str, Sequence[str]]) -> None:
        self.offered = names
        self.named: dict[str, str] = {}  # the class that was named last for an option
        self.given: set[str] = set()
        for option in options:
            self._note(".".join(part for part in option.path if part != "init_args"), option.value)

    def _note(self, name: str, value: Any) -> None:
        self.given.add(name)
        if isinstance(value, dict):
            for key, inner in value.items():
                self._note(name if key == "init_args" else f"{name}.{key}", inner)
        elif isinstance(value, str):
            self.named[name.removesuffix(".class_path")] = value

    def problem(
        self, parser: ArgumentParser, path: Sequence[str], value: Any, above: str, flag: bool = False
    ) -> str | None:
        """What is wrong with an option of a parser, whose own options begin with `above`."""
        actions = {action.dest: action for action in parser._actions}
        for length in range(len(path), 0, -1):
            action = actions.get(".".join(path[:length]))
            if action is not None:
                break
        else:
            if isinstance(value, dict) and any(dest.startswith(".".join(path) + ".") for dest in actions):
                return self._first(parser, [((*path, key), inner) for key, inner in value.items()], above)
            return unknown(above + ".".join(path), [above + dest for dest in actions])
        name, rest = above + action.dest, list(path[length:])
        hint = getattr(action, "_typehint", None)
        if hint is None:
            if rest and any(dest.startswith(action.dest + ".") for dest in actions):
                return unknown(above + ".".join(path), [above + dest for dest in actions])
            group = [((*path, key), inner) for key, inner in value.items()] if isinstance(value, dict) else []
            return self._first(parser, group, above)
        if rest and rest[0] in ("class_path", "dict_kwargs", "help"):
            return self._unknown_class(name, hint, value) if rest[0] == "class_path" else None
        if rest:
            return self._inside(name, hint, action.default, [(tuple(r for r in rest if r != "init_args"), value)], flag)
        return self._value(name, hint, action.default, value, flag)

    def _first(self, parser: ArgumentParser, options: Sequence[tuple[tuple[str, ...], Any]], above: str) -> str | None:
        return next((s for path, value in options if (s := self.problem(parser, path, value, above))), None)

    def _value(self, name: str, hint: Any, default: Any, value: Any, flag: bool) -> str | None:
        if accepts(hint, value, flag):
            return None
        if isinstance(value, list):
            found = (self._value(f"{name}[{i}]", item_type(hint), None, entry, False) for i, entry in enumerate(value))
            return next(filter(None, found), None) or f"Option --{name} must be {describe(hint)}, got {value}."
        if isinstance(value, dict):
            if "class_path" in value and (sentence := self._unknown_class(name, hint, str(value["class_path"]))):
                return sentence
            cls = class_named(str(value.get("class_path")), hint) or self._object_class(name, hint, default)
            inner = value.get("init_args", {}) if "class_path" in value else value
            options = [
                ((key,), entry) for key, entry in dict(inner or {}).items() if key not in ("class_path", "init_args")
            ]
            return self._inside(name, hint, default, options, False, cls)
        if object_types(hint) and isinstance(value, str):
            return self._unknown_class(name, hint, value) or self._inside(name, hint, default, [], False)
        return f"Option --{name} must be {describe(hint)}, got {value}."

    def _inside(
        self, name: str, hint: Any, default: Any, options: Sequence[tuple[tuple[str, ...], Any]], flag: bool,
        cls: type | None = None,
    ) -> str | None:  # fmt: skip
        """What is wrong with options of the object that an option stands for."""
        cls = cls or self._object_class(name, hint, default)
        if cls is None:
            return None
        parser = options_of(cls)
        found = (self.problem(parser, path, value, f"{name}.", flag) for path, value in options)
        return next(filter(None, found), None)

    def _object_class(self, name: str, hint: Any, default: Any) -> type | None:
        """The class that an option's object has: the one named, that of the default, or the only one there is."""
        if name in self.named:
            return class_named(self.named[name], hint)
        path = default.get("class_path") if isinstance(default, dict) else getattr(default, "class_path", None)
        if path:
            return class_named(str(path), hint)
        types = object_types(hint)
        return types[0] if len(types) == 1 and not inspect.isabstract(types[0]) else None

    def _unknown_class(self, name: str, hint: Any, given: str) -> str | None:
        if class_named(given, hint) is not None:
            return None
        there_are = list(
            self.offered.get(name) or sorted({cls.__name__ for t in object_types(hint) for cls in concrete(t)})
        )
        module, _, short = given.rpartition(".")
        try:
            inside = [n for n, c in vars(import_module(module)).items() if inspect.isclass(c)] if module else []
        except (ImportError, ValueError):
            return f"Option --{name}: there is no module {module!r} to take {short} from."
        choice = alternatives(short, [name for name in there_are if name in inside] or there_are)
        return f"Option --{name}: there is no class {given!r}{choice}."

    def missing(self, parser: ArgumentParser) -> str | None:
        """A required option, of the command or of an object, that has no value."""
        for name, classes in self.offered.items():
            if name not in self.given:
                return f"Option --{name} has no value{alternatives('', classes)}."
        for action in parser._actions:
            hint = getattr(action, "_typehint", None)
            cls = None if hint is None else self._object_class(action.dest, hint, action.default)
            for option in options_of(cls)._actions if action.dest in self.named and cls is not None else []:
                if option.required and f"{action.dest}.{option.dest}" not in self.given:
                    return f"Option --{action.dest}.{option.dest} has no value: give it, or a --config that does."
        return None


def unknown(name: str, known: Sequence[str]) -> str:
    """That there is no such option, and which there are beside it."""
    above = name.rpartition(".")[0]
    while above and not any(option.startswith(f"{above}.") for option in known):
        above = above.rpartition(".")[0]
    beside = [option for option in known if option.startswith(f"{above}." if above else "")]
    short = [option.removeprefix(f"{above}.").partition(".")[0] for option in beside]
    if name in _INSTEAD:
        return f"There is no option --{name}: {_INSTEAD[name]}."
    names = [name for name in dict.fromkeys(short) if name not in ("help", "print_config", "==SUPPRESS==")]
    return f"There is no option --{name}{alternatives(name.removeprefix(f'{above}.'), names)}."


def alternatives(name: str, names: Sequence[str]) -> str:
    """`; did you mean X? There are: ...`, as far as there is something to say."""
    close = get_close_matches(name, names, n=1)
    there_are = f"; there {'is' if len(names) == 1 else 'are'}: {', '.join(names[:_SHOWN])}" if names else ""
    return "".join(f" (did you mean {found}?)" for found in close) + there_are + ", ..." * (len(names) > _SHOWN)
