"""``adapters-pl report``: runs and studies as one page, with figures and tables."""

from __future__ import annotations

from argparse import Namespace

from adapters_pl.answers import protocol_named
from adapters_pl.inputs.errors import UserError
from adapters_pl.reports.collect import find_all
from adapters_pl.reports.drawing import require_matplotlib
from adapters_pl.reports.page import write_report


def main(options: Namespace, debug: bool = False) -> int:
    """Write the report, and say where."""
    if options.rows < 0:
        raise UserError(f"--rows is {options.rows}; it must be at least 0.")
    if options.protocol is not None:
        protocol_named(options.protocol)
    found = find_all(options.names, options.root, options.protocol)
    require_matplotlib()
    print(f"report: {write_report(found, options.out, options.rows)}")
    return 0
