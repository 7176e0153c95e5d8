# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check --batch`: thousands of questions from CSV or JSON lines, a row of the answer for each recipient."""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Optional, TextIO

import click

from gatepost.admin.check_command import QuestionError, check_question, circumstances
from gatepost.admin.check_model import Answer, Question
from gatepost.admin.configuration import complain, printable, unreadable
from gatepost.admin.report_export import safe_cell
from gatepost.admin.report_model import Cell

COLUMNS = ("ip", "helo", "certificate", "authenticated", "mail_from", "header_from", "rcpt")
"""Those of the questions: the names of the options."""
REQUIRED = ("mail_from", "rcpt")
OUTPUT = (
    *("line", "ip", "mail_from", "rcpt", "verdict", "reason", "organization", "connector", "action", "reply"),
    *("failed", "remedy", "mail_from_afterwards", "upstream"),
)
_YES, _NO = ("true", "yes", "1"), ("", "false", "no", "0")


class BatchError(Exception):
    """The batch as a whole can't be read; the text says why."""


def run(path: Path, file: str, requirements: Optional[str], at: Optional[datetime], *, as_json: bool) -> int:
    """Print an answer for each recipient of each question in *file*; return the exit status.

    A line that is no question is told on standard error, and the others are answered.
    """
    asked = circumstances(path, requirements, at)
    write = _json_writer() if as_json else _csv_writer()
    name = "standard input" if file == "-" else file
    refused = wrong = False
    with _opened(file) as stream:
        try:
            for number, values in _lines(stream):
                try:
                    question = _question(values)
                    check_question(question)
                except QuestionError as error:
                    complain(f"{name}: line {number}: {error.name}: {error}")
                    wrong = True
                    continue
                for answer in asked.ask(question).answers:
                    refused = refused or answer.refused
                    write(dict(zip(OUTPUT, _cells(number, question, answer))))
        except BatchError as error:
            complain(f"{name}: {error}")
            return os.EX_DATAERR
    if wrong:
        return os.EX_DATAERR
    return 1 if refused else os.EX_OK


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """Open *file*, "-" for standard input: UTF-8, or UTF-16 with its byte order mark, as spreadsheets write it."""
    try:
        descriptor = sys.stdin.fileno() if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        unreadable(file, error)
    with open(descriptor, "rb", closefd=file != "-") as octets:
        encoding = "utf-16" if octets.peek(2)[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
        with TextIOWrapper(octets, encoding=encoding, errors="replace", newline="") as stream:
            yield stream


def _lines(stream: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield each question's values, by their columns, with the number of its line. Raises BatchError, QuestionError."""
    number, first = next(((n, line) for n, line in enumerate(stream, start=1) if line.strip()), (0, ""))
    rest = itertools.chain([first], stream)
    return _json(rest, number) if first.lstrip().startswith("{") else _csv(rest, number)


def _json(lines: Iterable[str], begin: int) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(lines, start=begin):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise BatchError(f"line {number}: is no JSON object; each line has one, whole") from None
        if not isinstance(values, dict):
            raise BatchError(f"line {number}: is no JSON object")
        _check_columns(values, f"line {number}: ")
        yield number, values


def _csv(lines: Iterable[str], begin: int) -> Iterator[tuple[int, Mapping[str, object]]]:
    lines = iter(lines)
    header = next(lines)
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().replace("-", "_") for name in next(reader, [])]
        _check_columns(columns, "")
        for cells in reader:
            if not any(cells):
                continue
            number = begin + reader.line_num - 1
            if len(cells) != len(columns):
                raise BatchError(f"line {number}: has {len(cells)} cells, and the header {len(columns)}")
            yield number, dict(zip(columns, cells))
    except csv.Error as error:
        raise BatchError(f"line {begin + reader.line_num - 1}: {error}") from None


def _check_columns(given: Iterable[str], where: str) -> None:
    names = list(given)
    for name in names:
        if name not in COLUMNS:
            raise BatchError(f'{where}"{printable(name)}" is no column; there are: {", ".join(COLUMNS)}')
        if names.count(name) > 1:
            raise BatchError(f'{where}column "{name}" is there twice')
    for name in REQUIRED:
        if name not in names:
            raise BatchError(f'{where}column "{name}" is missing')


def _question(values: Mapping[str, object]) -> Question:
    """Return the question in *values*, text of CSV or what JSON has. Raises QuestionError."""
    header_from = values.get("header_from")
    recipients = _texts(values, "rcpt")
    if not recipients:
        raise QuestionError("rcpt", "has no address")
    return Question(
        ip=_text(values, "ip") or None,
        helo=_text(values, "helo") or None,
        certificate_names=_texts(values, "certificate"),
        authenticated=_truth(values, "authenticated"),
        mail_from=_text(values, "mail_from"),
        header_from=_texts(values, "header_from") if isinstance(header_from, list) else (_text(values, "header_from"),),
        recipients=recipients,
    )


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise QuestionError(name, f"{json.dumps(value)} is no text")
    return (value or "").strip()


def _texts(values: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = values.get(name)
    if not isinstance(value, list):
        return tuple(_text(values, name).split())
    if not all(isinstance(item, str) for item in value):
        raise QuestionError(name, f"{json.dumps(value)} is no list of texts")
    return tuple(value)


def _truth(values: Mapping[str, object], name: str) -> bool:
    value = values.get(name)
    if isinstance(value, bool):
        return value
    text = _text(values, name).lower()
    if text not in (*_YES, *_NO):
        raise QuestionError(name, f'"{printable(text)}" is neither yes nor no')
    return text in _YES


def _cells(number: int, question: Question, answer: Answer) -> tuple[Cell, ...]:
    verdict = answer.judgement.verdict
    return (
        number,
        question.ip or "",
        answer.before.mail_from or "<>",
        answer.before.rcpt,
        "refuse" if answer.refused else verdict.result.value,
        answer.reason,
        verdict.organization.name if verdict.organization else "",
        verdict.connector.name if verdict.connector else "",
        answer.outcome,
        answer.reply,
        answer.failed,
        " ".join((*answer.remedies[:1], *answer.also[:1])),
        (answer.envelope.mail_from or "<>") if answer.envelope else "",
        answer.upstream,
    )


def _json_writer() -> Callable[[Mapping[str, Cell]], object]:
    return lambda row: click.echo(json.dumps(row))


def _csv_writer() -> Callable[[Mapping[str, Cell]], object]:
    """Return what writes a row to standard output, the header before the first."""
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_ALL)
    headers = iter([OUTPUT])

    def write(row: Mapping[str, Cell]) -> None:
        writer.writerows(headers)
        writer.writerow([safe_cell(cell) for cell in row.values()])

    return write
