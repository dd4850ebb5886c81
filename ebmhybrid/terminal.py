"""How the command line meets a terminal: errors in one line, examples in the help, shared options, numbers, a bar."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from ebmhybrid.errors import EbmhybridError, ElsewhereError, UsageError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class OneLineErrors(click.Group):
    """A group whose errors are one line on stderr with status 1 (failed) or 2 (usage), without the usage text."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            hint = ""
            if isinstance(error, click.UsageError) and error.ctx is not None:
                hint = f" (see {error.ctx.command_path} --help)"
            click.echo(f"Error{_of_process()}: {_one_line(error.format_message())}{hint}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Error: interrupted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)


def _one_line(message: str) -> str:
    """Without line breaks, and without the control characters by which a name in a file could steer the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", " ".join(message.split()))


def _of_process() -> str:
    """Which of several processes speaks, where it is not the first."""
    return "" if is_main() else f" on process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}"


def is_main() -> bool:
    """Whether this process is alone, or the one of several that speaks."""
    return os.environ.get("WORLD_SIZE", "1") in ("0", "1") or os.environ.get("RANK", "0") == "0"


class WrongUsage(click.ClickException):
    """A name or value that the user typed and that cannot be used."""

    exit_code = 2


class Examples(click.Command):
    """A command whose help keeps the line breaks of its examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


class Number(click.ParamType):
    """A positive number or a fraction such as 8/255."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            above, slash, below = str(value).partition("/")
            number = float(above) / (float(below) if slash else 1.0)
        except (ValueError, ZeroDivisionError):
            number = -1.0
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is not a positive number or fraction such as 8/255", param, ctx)
        return number


class Numbers(click.ParamType):
    """A number or several with commas between them, such as 0.485,0.456,0.406."""

    name = "number[,number]..."

    def __init__(self, positive: bool = False) -> None:
        self.positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)) or (self.positive and min(numbers) <= 0):
            kind = "positive numbers" if self.positive else "numbers"
            self.fail(f"{value!r} is not {kind} such as 0.485,0.456,0.406", param, ctx)
        return numbers


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several click options as one decorator, shown in this order."""

    def decorate(command: F) -> F:
        for option in reversed(decorators):
            command = option(command)
        return command

    return decorate


strict_option = click.option(
    "--strict", is_flag=True, help="Fail at a picture that cannot be decoded, rather than skip and count it."
)
data_options = options(
    click.option(
        "--data-dir",
        default="data",
        show_default=True,
        envvar="EBMHYBRID_DATA",
        show_envvar=True,
        help="Where data sets lie.",
    ),
    click.option("--no-download", is_flag=True, help="Fail rather than fetch a missing data set."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
)


def guarded(work: Callable[[], T]) -> T:
    """Run a command's work; a user's mistake, a failed write or want of memory becomes one line and an exit status."""
    try:
        return work()
    except BrokenPipeError:  # the reader of a pipe has gone: click ends quietly
        raise
    except ElsewhereError:  # one process says what is wrong, not all
        sys.exit(1)
    except UsageError as error:
        raise WrongUsage(str(error)) from error
    except (EbmhybridError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        # torch raises plain RuntimeErrors, worded by each allocator; numpy a MemoryError that says how much.
        if not isinstance(error, MemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        size = re.search(r"allocate ([\d.]+ \w+)", str(error))
        asked = f": {size[1]} were asked for at once" if size else ""
        raise click.ClickException(f"not enough memory{asked}; ask for fewer images, or smaller batches") from error


_NO_MEMORY = "out of memory|not enough memory|can't allocate memory|Storage size calculation overflowed"


def bar(batches: Iterable[Any], text: str) -> Iterable[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    shown = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(batches, desc=text, file=sys.stderr, leave=False, disable=not shown)
