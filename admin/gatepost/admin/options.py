# SPDX-License-Identifier: GPL-3.0-or-later
"""What several subcommands' options have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import click

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


def as_path(config: str) -> Path:
    """Return the path of a file that the command line names."""
    from pathlib import Path

    return Path(config)


def _day(context: click.Context, option: click.Parameter, value: Optional[str]) -> Optional[datetime]:
    from datetime import datetime

    if value is None:
        return None
    try:
        return datetime.strptime(value, "%Y-%m-%d")
    except ValueError:
        raise click.BadParameter(f'"{value}" is no date (YYYY-MM-DD)', context, option) from None


at = click.option("--at", metavar="YYYY-MM-DD", callback=_day, help="Judge as on that day (UTC), not today.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
