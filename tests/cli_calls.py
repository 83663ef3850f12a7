"""Calls of the command line inside the test process, and what every answer of it must look like."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from restorelcc.cli import cli


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def succeed(*arguments: Any) -> dict[str, Any]:
    """Run a verb with --json; the whole of stdout must be one JSON object."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output + repr(result.exception)
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def refuse(*arguments: Any, words: str) -> None:
    """The run must end with exit code 2 and one line on stderr that contains `words`; stdout stays empty."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stderr.startswith("restorelcc: error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr
    assert result.stdout == ""
