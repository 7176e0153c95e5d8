# SPDX-License-Identifier: GPL-3.0-or-later
"""A report's HTML page: what stands on it, what mail cannot do to it, and how it behaves in a real Chromium."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Optional

import pytest

from gatepost.admin.report_model import COMPLETE, Group, Job, ReportType, Row, Summary
from gatepost.admin.report_page import render

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium-headless-shell")

JOB = Job(
    job_id="6f1c8e0a",
    title="Before the switch",
    type=ReportType.NON_ACCEPTED_DOMAIN,
    status="Done",
    status_description=COMPLETE,
    progress=100,
    rows=3,
    submitted=datetime(2026, 11, 22, 6, 14),
    completed=datetime(2026, 11, 22, 6, 15),
    start=datetime(2026, 11, 19),
    end=datetime(2026, 11, 22),
    sender_addresses=("*@contoso.com",),
)
GROUP = Group(
    client="192.0.2.5",
    helo="crm.contoso.com",
    sender_domain="vendor.example",
    header_from=("contoso.com", "contoso.de"),
    organization="contoso",
    messages=1100,
    recipients=1204,
    problem="Condition 1 failed: the P1 domain vendor.example is not accepted.",
    remedies=("Declare vendor.example.", "Use a certificate."),
)
SUMMARY = Summary(
    sentence="1,109 messages rely on P2.",
    messages=1109,
    recipients=1213,
    by_day=(("2026-11-19", 9), ("2026-11-20", 0), ("2026-11-21", 1100)),
    by_client=(("192.0.2.5", 1100), ("2001:db8::9", 9)),
    by_domain=(("vendor.example", 1100), ("", 9)),
    groups=(GROUP,),
)
ROWS: list[Row] = [
    ("2026-11-20", "", "head office", "b.example", 100, "<1@b.example>"),
    ("2026-11-19", "", "head office", "a10.example", 9, "<2@a.example>"),
    ("2026-11-21", "", "branch", "a9.example", 1000, "<3@A.example>"),
]
NOTHING = Summary("Not affected.", 0, 0, (("2026-11-19", 0), ("2026-11-20", 0), ("2026-11-21", 0)), (), (), ())
HOSTILE = '</title></td><script>document.title = "owned"</script><img src=x onerror="document.title = \'owned\'">'


def text_of(page: str) -> str:
    """Return what a person reads on *page*, with single spaces."""
    body = re.sub("<(style|script)>.*?</(style|script)>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", body)).split())


def hostile_page() -> str:
    group = replace(
        GROUP,
        client=HOSTILE,
        helo=HOSTILE,
        sender_domain=HOSTILE,
        header_from=(HOSTILE,),
        problem=HOSTILE,
        remedies=(HOSTILE,),
    )
    counts = ((HOSTILE, 1109),)
    summary = replace(SUMMARY, sentence=HOSTILE, by_client=counts, by_domain=counts, groups=(group,))
    job = replace(JOB, title=HOSTILE, sender_addresses=(HOSTILE,), recipient_addresses=(HOSTILE,))
    return render(job, summary, [("2026-11-20", "", HOSTILE, HOSTILE, 1, '=HYPERLINK("http://evil.example")')])


class Nesting(HTMLParser):
    """Notes every element that is closed out of turn or not at all."""

    VOID = frozenset({"meta", "input", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, Optional[str]]] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.attributes += attrs

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def parse(page: str) -> Nesting:
    parser = Nesting()
    parser.feed(page)
    parser.close()
    return parser


def test_page_begins_with_title_sentence_terms_and_facts_in_this_order() -> None:
    assert text_of(render(JOB, SUMMARY, ROWS)).startswith(
        "Before the switch Before the switch 1,109 messages rely on P2. "
        "P1 is the envelope sender (MAIL FROM), where bounces go; P2 is the From header, which people see. "
        "Report NonAcceptedDomain: mail through a connector whose P1 is in no accepted domain "
        "Time asked for 2026-11-19 00:00 to 2026-11-22 00:00 UTC, end not included Only from *@contoso.com "
        "Found 1,109 messages to 1,213 recipients Made 2026-11-22 06:15 UTC by gatepost, job 6f1c8e0a "
        "Messages by day"
    )


def test_group_names_host_domain_p2_problem_and_every_remedy() -> None:
    assert (
        "What to do 1,100 messages to 1,204 recipients Host 192.0.2.5 , P1 domain vendor.example "
        "P2 domain contoso.com, contoso.de, HELO crm.contoso.com, organization contoso "
        "Condition 1 failed: the P1 domain vendor.example is not accepted. "
        "Any one of these is enough Declare vendor.example. Use a certificate. In detail"
    ) in text_of(render(JOB, SUMMARY, ROWS))


def test_groups_that_need_no_change_have_no_remedies() -> None:
    page = text_of(render(JOB, replace(SUMMARY, groups=(replace(GROUP, remedies=()),)), ROWS))
    assert "Who sent it" in page
    assert "enough" not in page


def test_chart_is_described_in_words() -> None:
    page = text_of(render(JOB, SUMMARY, ROWS))
    assert "2026-11-19 to 2026-11-21; most on 2026-11-21: 1,100. A list follows." in page
    assert "192.0.2.5: 1,100; 2001:db8::9: 9;" in page


def test_null_sender_has_a_name() -> None:
    assert "<> (null sender)" in text_of(render(JOB, SUMMARY, ROWS))


def test_chart_of_many_hosts_shows_twelve_and_sums_the_others() -> None:
    clients = tuple((f"192.0.2.{100 + place}", 30 - place) for place in range(15))
    page = render(JOB, replace(SUMMARY, by_client=clients, groups=()), ROWS)
    assert "192.0.2.111" in page
    assert "192.0.2.112" not in page
    assert "3 others 51" in text_of(page)


def test_long_name_is_shortened_in_the_middle_and_stands_in_full_beside() -> None:
    domain = "newsletters.a-very-long-marketing-provider.example"
    page = render(JOB, replace(SUMMARY, by_domain=((domain, 1),), groups=()), [])
    assert ">newsletters.a-very-…g-provider.example</text>" in page
    assert f"<title>{domain}: 1</title>" in page


@pytest.mark.parametrize(("days", "room"), [(7, "none"), (21, "phone"), (90, "screen")])
def test_every_day_has_its_number_where_there_is_room(days: int, room: str) -> None:
    by_day = tuple((f"2026-{8 + day // 28:02}-{1 + day % 28:02}", 100) for day in range(days))
    page = render(JOB, replace(SUMMARY, by_day=by_day), ROWS)
    assert f'class="room-{room}"' in page
    assert page.count('class="middle"') == 1
    assert page.count('class="middle value"') == days - 1


def test_only_fifty_groups_are_on_the_page() -> None:
    page = text_of(render(JOB, replace(SUMMARY, groups=(GROUP,) * 53), ROWS))
    assert page.count("Any one of these is enough") == 50
    assert "Not shown: 3 smaller groups of host and P1 domain." in page


def test_table_has_two_thousand_rows_and_says_where_the_others_are() -> None:
    page = render(JOB, SUMMARY, ROWS * 1000)
    assert page.count("<tr><td") == 2000
    where = "These are the first 2,000 rows; gatepost report export 6f1c8e0a --format csv has 1,000 more."
    assert where in text_of(page)


def test_column_that_is_empty_in_every_row_is_named_but_not_shown() -> None:
    page = render(JOB, SUMMARY, [("2026-11-20", "contoso", "", "b.example", 0, ""), ("2026-11-21", "", "", "", 5, "")])
    assert "Empty in every row, so not shown: connector_id, message_ids." in text_of(page)
    assert page.count("<th scope") == 4
    assert page.count("<td") == 8


def test_report_without_results_is_calm() -> None:
    page = render(JOB, NOTHING, [])
    assert "Not affected. P1 is" in text_of(page)
    assert not re.search("<(svg|table|main|section|input)", page)


def test_page_without_title_is_called_after_its_type() -> None:
    assert "<title>NonAcceptedDomain</title>" in render(replace(JOB, title=""), NOTHING, [])


@pytest.mark.parametrize("page", [render(JOB, SUMMARY, ROWS), render(JOB, NOTHING, []), hostile_page()])
def test_page_is_well_formed(page: str) -> None:
    parser = parse(page)
    assert (parser.open, parser.wrong) == ([], [])
    assert len(parser.ids) == len(set(parser.ids))


def test_page_loads_nothing_and_links_nowhere() -> None:
    page = render(JOB, SUMMARY, ROWS)
    assert not re.search(r"https?:|url\(|@import|//\w", page.replace("// ", ""))
    assert {"src", "href", "srcset", "style", "xlink:href"} & {name for name, _ in parse(page).attributes} == set()


@pytest.mark.parametrize("element", ["style", "script"])
def test_policy_allows_exactly_the_pages_own_style_and_script(element: str) -> None:
    page = render(JOB, SUMMARY, ROWS)
    (text,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    assert f"{element}-src '{source_hash(text)}';" in page
    assert "content=\"default-src 'none'; " in page


def test_markup_from_mail_is_text_wherever_it_stands() -> None:
    page = hostile_page()
    assert page.count("<script") == 1
    assert "<img" not in page
    assert [name for name, _ in parse(page).attributes if name.startswith("on")] == []
    places = ["title", "h1", "sentence", "from", "to", *("desc", "bar") * 2]
    places += ["client", "helo", "P1", "P2", "problem", "remedy", "cell", "cell"]
    assert text_of(page).count("<img src=x onerror=") == len(places)


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\x1b", "\x00", "\n", "\x85", "\udcff", "\ufeff"])
def test_character_that_could_act_on_the_screen_becomes_a_question_mark(character: str) -> None:
    page = render(JOB, replace(SUMMARY, by_domain=((f"a{character}b", 1),)), [(f"a{character}b", "", "", "", 1, "")])
    assert '<td dir="auto">a?b</td>' in page
    assert ">a?b</text>" in page
    assert page.encode("utf-8")


def test_right_to_left_text_keeps_to_its_cell() -> None:
    assert '<td dir="auto">שלום@דוגמה</td>' in render(JOB, SUMMARY, [("", "", "", "שלום@דוגמה", 1, "")])


def source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def browse(folder: Path, page: str, script: str, width: int = 1280) -> Any:
    """Return what *script*, a function body, returns in Chromium on *page*, whose policy stays in force but for it."""
    driver = f"document.body.dataset.seen = JSON.stringify((() => {{ {DRIVER} {script} }})());"
    allowed = page.replace("script-src '", f"script-src '{source_hash(driver)}' '", 1)
    assert allowed != page
    (folder / "page.html").write_text(allowed.replace("</body>", f"<script>{driver}</script></body>"), encoding="utf-8")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
        *(f"--user-data-dir={folder}/profile", f"--window-size={width},800"),
        *("--dump-dom", (folder / "page.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (seen,) = re.findall('<body data-seen="([^"]*)"', done.stdout)
    return json.loads(html.unescape(seen))


DRIVER = """
const heads = [...document.querySelectorAll("th")];
const click = (name) => heads.find((head) => head.textContent === name).querySelector("button").click();
const type = (text) => {
  const box = document.querySelector("#filter");
  box.value = text;
  box.dispatchEvent(new Event("input"));
  return document.querySelector("#count").textContent;
};
const shown = (column) => [...document.querySelectorAll("tbody tr")].filter((row) => row.checkVisibility())
  .map((row) => row.cells[column].textContent);
const order = () => heads.map((head) => head.getAttribute("aria-sort"));
"""


@in_chromium
def test_click_on_a_header_sorts_numbers_as_numbers_and_a_second_one_turns_them_round(tmp_path: Path) -> None:
    script = 'click("count"); const up = [shown(3), order()]; click("count"); return [up, [shown(3), order()]];'
    assert browse(tmp_path, render(JOB, SUMMARY, ROWS), script) == [
        [["9", "100", "1000"], [None, None, None, "ascending", None]],
        [["1000", "100", "9"], [None, None, None, "descending", None]],
    ]


@in_chromium
def test_text_sorts_with_the_numbers_inside_it_and_only_one_column_is_marked(tmp_path: Path) -> None:
    script = 'click("count"); click("sender_domain"); return [shown(2), order()];'
    assert browse(tmp_path, render(JOB, SUMMARY, ROWS), script) == [
        ["a9.example", "a10.example", "b.example"],
        [None, None, "ascending", None, None],
    ]


@in_chromium
def test_filter_matches_any_one_cell_in_either_case_and_counts(tmp_path: Path) -> None:
    script = """
      const before = type("");
      return [before, type("HEAD"), shown(3), type("a.example"), shown(3), type("officeb"), type(" "), shown(3)];
    """
    assert browse(tmp_path, render(JOB, SUMMARY, ROWS), script) == [
        "3 rows",
        *("2 of 3 rows", ["100", "9"]),
        *("2 of 3 rows", ["9", "1000"]),
        "0 of 3 rows",
        *("3 rows", ["100", "9", "1000"]),
    ]


@in_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_only_the_table_is_wider_than_the_window(tmp_path: Path, width: int) -> None:
    script = """
      const root = document.documentElement;
      const scroll = document.querySelector(".scroll");
      return [root.scrollWidth <= innerWidth, scroll.scrollWidth > scroll.clientWidth];
    """
    name = ".".join(["vendor" * 9] * 4)
    group = replace(GROUP, client=name, sender_domain=name, header_from=(name,), problem=name, remedies=(name,))
    page = render(replace(JOB, title=name), replace(SUMMARY, sentence=name, groups=(group,)), [(name,) * 6])
    assert browse(tmp_path, page, script, width) == [True, True]


@in_chromium
def test_markup_from_mail_does_nothing(tmp_path: Path) -> None:
    script = """
      click("sender_domain"); type("formula");
      const count = (selector) => document.querySelectorAll(selector).length;
      return [document.title.startsWith("</title>"), count("img"), count("a"), count("script")];
    """
    assert browse(tmp_path, hostile_page(), script) == [True, 0, 0, 2]


@in_chromium
@pytest.mark.parametrize(
    "markup",
    ["<script>document.title = 'owned'</script>", "<svg onload=\"document.title = 'owned'\"></svg>"],
)
def test_script_that_were_not_escaped_would_not_run_either(tmp_path: Path, markup: str) -> None:
    page = render(JOB, SUMMARY, ROWS).replace("<main>", f"<main>{markup}")
    assert browse(tmp_path, page, "return [document.title, shown(3).length];") == ["Before the switch", 3]


@in_chromium
def test_page_without_results_raises_no_error(tmp_path: Path) -> None:
    assert browse(tmp_path, render(JOB, NOTHING, []), "return document.querySelector('.sentence').textContent;") == (
        "Not affected."
    )
