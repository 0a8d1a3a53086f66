"""``adapters-pl data``: which datasets there are, where their files lie, and whether they are whole."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters_pl.data import SETS, SUITES, set_named, sets_of
from adapters_pl.data.files import read_rows
from adapters_pl.data.published import (
    MissingFile,
    Source,
    blob_sha1,
    cached_path,
    download,
    find_file,
    local_path,
    sources,
)
from adapters_pl.inputs.errors import UserError, did_you_mean, first_line
from adapters_pl.inputs.tables import print_table


def main(given: Namespace, debug: bool = False) -> int:
    """Run one of the four actions; 1 if a file is missing or is not what it should be."""
    if given.action == "list":
        return _list(given.root)
    if given.action == "fetch":
        return _fetch(_files_of(given.names))
    if given.action == "verify":
        return _verify(given.root, _files_of(given.names) if given.names else list(sources().values()), given.names)
    for single in sets_of([given.name]):
        _show(given.root, single, given.split, given.rows)
    return 0


def _files_of(names: Sequence[str]) -> list[Source]:
    """The registered files of datasets and suites; a training set brings the sets it is judged on."""
    relative: list[str] = []
    for name in names:
        if name in SUITES:
            relative += [file for single in sets_of([name]) if (file := set_named(single).spec.test)]
            continue
        kind = set_named(name)
        if not (kind.spec.train or kind.spec.test):
            raise UserError(f"{name} is generated or your own; it has no published files.")
        judged = [set_named(single).spec.test for single in kind.spec.judged_on]
        relative += [file for file in (kind.spec.train, kind.spec.test, *judged) if file]
    return [sources()[file] for file in dict.fromkeys(relative)]


def _where(root: str | None, source: Source) -> tuple[Path, str] | None:
    """The file at hand, and whether it lies in the root or in the cache."""
    local = local_path(root, source.path)
    if local.is_file():
        return local, "local"
    cached = cached_path(source.path)
    return (cached, "cache") if cached.is_file() else None


def _list(root: str | None) -> int:
    table = Table(title="Datasets", title_justify="left")
    for heading in ("name", "class", "kind", "split"):
        table.add_column(heading)
    table.add_column("rows", justify="right")
    for heading in ("at hand", "licence", "judged on"):
        table.add_column(heading)
    for name, kind in sorted(SETS.items(), key=lambda item: (not item[1].spec.test, item[0].lower())):
        for split, file in (("train", kind.spec.train), ("test", kind.spec.test)):
            if file is None:
                continue
            source = sources()[file]
            found = _where(root, source)
            judged = next((suite for suite, sets in SUITES.items() if sets == kind.spec.judged_on), "")
            table.add_row(
                name,
                kind.__name__,
                kind.kind,
                split,
                f"{source.rows:,}" if source.rows else "?",
                found[1] if found else "-",
                source.licence or source.shared_under,
                judged if split == "train" else "",
            )
    print_table(table)
    for suite, sets in SUITES.items():
        print(f"{suite}: {', '.join(sets)}")
    return 0


def _fetch(files: Sequence[Source]) -> int:
    """Every file that is not in the cache yet; a failure does not keep the others from coming."""
    failed = 0
    for source in files:
        target = cached_path(source.path)
        if target.is_file() and blob_sha1(target) == source.sha1:
            print(f"{source.path}: in the cache")
            continue
        try:
            # A root given to train with is not asked: what is fetched is the published file.
            print(f"{source.path}: {download(source, target, announce=print)}")
        except UserError as error:
            failed += 1
            print(f"{source.path}: {error}")
    if failed:
        raise UserError(f"{failed} of {len(files)} files were not fetched; try again, or put them below --root.")
    return 0


def _verify(root: str | None, files: Sequence[Source], named: Sequence[str]) -> int:
    table = Table(title="Files against the registry", title_justify="left")
    for heading in ("file", "where", "rows", "verdict"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    wrong = []
    for source in files:
        found = _where(root, source)
        if found is None:
            if named:
                wrong.append(source.path)
                table.add_row(source.path, "-", "-", "missing")
            continue
        path, where = found
        rows = ""
        if (sha1 := blob_sha1(path)) == source.sha1:
            verdict = "as published"
            rows = "?" if source.rows is None else f"{source.rows:,}"
        else:
            wrong.append(source.path)
            verdict = f"another file: SHA-1 {sha1[:12]}, not {source.sha1[:12]}"
            if source.size is not None and path.stat().st_size < source.size:
                verdict += f" (cut: {path.stat().st_size:,} of {source.size:,} bytes)"
        table.add_row(source.path, where, rows, verdict)
    if not table.row_count:
        raise UserError("No published file is at hand: pass --root, set ADAPTERS_PL_DATA, or run: data fetch NAME")
    print_table(table)
    if wrong:
        raise UserError(
            f"{len(wrong)} of {table.row_count} files are not as published: {', '.join(wrong)}. Copy them, or run "
            "'adapters-pl data fetch NAME'."
        )
    return 0


def _show(root: str | None, name: str, split: str | None, count: int) -> None:
    if count < 0:
        raise UserError(f"data show --rows is {count}; it must be at least 0.")
    kind = set_named(name)
    files = {key: file for key, file in (("train", kind.spec.train), ("test", kind.spec.test)) if file}
    if split is not None and split not in files:
        raise UserError(f"{name} has no split '{split}': {did_you_mean(split, files)}")
    console = Console(highlight=False)
    console.print(f"[bold]{name}[/bold] ({kind.__name__}): {first_line(Exception(kind.__doc__ or ''))}", soft_wrap=True)
    for key, file in files.items():
        source = sources()[file]
        found = _where(root, source)
        console.print(f"{key}: {found[0] if found else 'not at hand'}", soft_wrap=True)
        held = f" of {', '.join(source.columns)}" if source.columns else ""
        console.print(f"  {source.rows or '?'} rows{held}, SHA-1 {source.sha1}", soft_wrap=True)
        console.print(f"  {source.url}", soft_wrap=True)
        licence = f"{source.licence}, " if source.licence else ""
        console.print(f"  {licence}shared under {source.shared_under}; {source.citation}", soft_wrap=True)
    if kind.spec.judged_on:
        console.print(f"judged on: {', '.join(kind.spec.judged_on)}", soft_wrap=True)
    if kind.spec.drawn_from:
        console.print(f"drawn from: {', '.join(kind.spec.drawn_from)}", soft_wrap=True)
    chosen = split or ("test" if "test" in files else "train")
    if not count or chosen not in files:
        return
    try:
        path = find_file(root, files[chosen], name)
    except MissingFile as error:
        raise MissingFile(f"{error} (--root for this command.)") from error
    for number, row in enumerate(read_rows(path, kind.spec.columns if chosen == "train" else None)[:count], start=1):
        table = Table(title=f"{chosen} row {number}", title_justify="left", show_header=False)
        for field, value in row.items():
            if value is not None:
                table.add_row(field, Text(str(value)))
        print_table(table)
