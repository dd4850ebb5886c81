"""The pages in headless Chromium: no errors, tables that sort, figures that fit, as wide as a desk and as a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_suite import fake_suite

from ebmhybrid.evaluate.compare_runs import compare_results
from ebmhybrid.evaluate.files import dumps

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH"
)
WIDTHS = (1280, 390)

# Put first into the page, so that it hears of everything that goes wrong later.
LISTEN = """<script>
window.wrong = [];
addEventListener("error", (event) => wrong.push("error: " + event.message));
addEventListener("unhandledrejection", (event) => wrong.push("rejection: " + event.reason));
for (const name of ["error", "warn"]) console[name] = (...words) => wrong.push(name + ": " + words.join(" "));
</script>"""

# What the wrapper asks the page in its frame.
LOOK = """
const view = frame.contentWindow, page = frame.contentDocument;
const boxes = [...page.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect());
const text = [...page.querySelectorAll("p, td, th, dd, dt, summary, figcaption, a, h1, h2, h3, caption")];
const sort = (table) => {
  const column = (i) => [...table.tBodies].map((body) => [...body.rows].map((row) => {
    const cell = row.cells[i];
    return [cell.dataset.value ?? null, cell.textContent.trim()];
  }));
  return [...table.tHead.rows[0].cells].map((head, i) => {
    const button = head.querySelector("button");
    const states = [[head.getAttribute("aria-sort"), column(i)]];
    if (!button) return { button: false, states };
    button.focus();
    const focused = page.activeElement === button;
    for (let click = 0; click < 3; click++) {
      button.click();
      states.push([head.getAttribute("aria-sort"), column(i)]);
    }
    return { button: true, focused, kind: head.dataset.kind, states };
  });
};
for (const details of page.querySelectorAll("details")) details.open = true;
const tables = [...page.querySelectorAll("table")].map(sort);
const outside = [...page.querySelectorAll("main *")].filter((node) => !node.closest(".scroll, pre, svg")
  && node.getBoundingClientRect().right > view.innerWidth + 0.5).map((node) => node.outerHTML.slice(0, 80));
return {
  wrong: view.wrong,
  width: view.innerWidth,
  wide: page.scrollingElement.scrollWidth,
  outside,
  figures: boxes.map((box) => [box.left, box.right, box.height]),
  loaded: view.performance.getEntriesByType("resource").map((entry) => entry.name),
  colours: [...new Set(text.map((node) => view.getComputedStyle(node).color))],
  backgrounds: ["body", ".card", ".scroll"].map((name) => page.querySelector(name))
    .filter(Boolean).map((node) => view.getComputedStyle(node).backgroundColor),
  tables,
  hint: page.getElementById("sorting").checkVisibility(),
};
"""


def look(page: Path, widths: tuple[int, ...], folder: Path, *flags: str) -> list[dict[str, Any]]:
    """Show a page in frames of some widths, as Chromium's window cannot be below 500 pixels, and look at each."""
    inner = html.escape(page.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTEN}", 1))
    frames = (
        f'<iframe style="width: {width}px; height: 3000px; border: 0" srcdoc="{inner}"></iframe>' for width in widths
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f"""<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
        <body style="margin: 0">
        {"".join(frames)}
        <pre id="found"></pre>
        <script>
        const look = (frame) => {{ {LOOK} }};
        addEventListener("load", () => {{
          const frames = [...document.querySelectorAll("iframe")];
          let found;
          try {{ found = frames.map(look); }} catch (error) {{ found = String(error); }}
          frames.forEach((frame) => frame.remove());
          document.getElementById("found").textContent = JSON.stringify(found);
        }});
        </script>""",
        encoding="utf-8",
    )
    base = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *base, "--window-size=1400,3000", *flags, "--dump-dom", "--virtual-time-budget=20000"]
    done = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    found = json.loads(html.unescape(match.group(1)))
    assert isinstance(found, list), found
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, Path]:
    first = fake_suite("a much longer name of a model " * 4, 1, 3.0).save(folder / "first")
    (folder / "second.json").write_text(dumps(fake_suite("b", 0).as_dict()), encoding="utf-8")
    compared = compare_results([first, folder / "second.json"]).save(folder)
    return {"report": first / "report.html", "compare": compared}


@pytest.fixture(scope="module")
def looks(pages: dict[str, Path], folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: look(page, WIDTHS, folder) for name, page in pages.items()}


@pytest.fixture(params=[(name, width) for name in ("report", "compare") for width in WIDTHS], ids=str)
def seen(
    request: pytest.FixtureRequest, looks: dict[str, list[dict[str, Any]]], pages: dict[str, Path]
) -> dict[str, Any]:
    name, width = request.param
    found = looks[name][WIDTHS.index(width)]
    return found | {"asked": width, "source": pages[name].read_text(encoding="utf-8")}


def test_nothing_goes_wrong_and_nothing_is_loaded(seen: dict[str, Any]) -> None:
    assert seen["wrong"] == []
    assert seen["loaded"] == []


def test_the_page_is_no_wider_than_the_window(seen: dict[str, Any]) -> None:
    assert seen["width"] == seen["asked"]
    assert seen["wide"] <= seen["width"]
    assert seen["outside"] == []


def test_every_figure_is_there_and_fits(seen: dict[str, Any]) -> None:
    assert len(seen["figures"]) == seen["source"].count("<svg") > 5
    for left, right, height in seen["figures"]:
        assert left >= 0
        assert right <= seen["width"]
        assert right - left >= 290  # at less, its text could not be read
        assert height >= 60


def _in_order(body: list[Any], direction: str, kind: str) -> bool:
    """By number with the rest last; of texts only plain words, which every order of words agrees on, are looked at."""
    down = direction == "descending"
    if kind == "number":
        numbers = [float(number) for number, _ in body if number is not None]
        return all(number is None for number, _ in body[len(numbers) :]) and numbers == sorted(numbers, reverse=down)
    words = [text for _, text in body if re.fullmatch("[a-z]+", text)]
    return words == sorted(words, reverse=down)


def test_every_table_sorts_by_every_column(seen: dict[str, Any]) -> None:
    assert seen["hint"]
    sorted_tables = 0
    for table in seen["tables"]:
        for column in table:
            bodies = column["states"][0][1]
            assert column["button"] == any(len(body) > 1 for body in bodies)
            if not column["button"]:
                continue
            sorted_tables += 1
            assert column["focused"]
            assert [state for state, _ in column["states"]] == [None, "ascending", "descending", None]
            assert column["states"][3][1] == bodies  # as it was
            for direction, after in column["states"][1:3]:
                for body, before in zip(after, bodies, strict=True):
                    assert sorted(map(str, body)) == sorted(map(str, before))  # the same rows, means among themselves
                    assert _in_order(body, direction, column["kind"])
    assert sorted_tables > 20


def _contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two opaque colours, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_in_dark(
    looks: dict[str, list[dict[str, Any]]], pages: dict[str, Path], folder: Path
) -> None:
    light = looks["report"][0]
    (dark,) = look(pages["report"], WIDTHS[:1], folder, "--blink-settings=preferredColorScheme=0")
    assert light["backgrounds"][0] != dark["backgrounds"][0]
    for found in (light, dark):
        for colour in found["colours"]:
            for background in found["backgrounds"]:
                assert _contrast(colour, background) >= 4.5, (colour, background)


def test_infinities_equal_numbers_and_dashes_sort(tmp_path: Path, pages: dict[str, Path]) -> None:
    """A table of every hard case, under the report's own script."""
    values = ["2", "Infinity", None, "10", "-Infinity", "2", "1e-09", "-3"]
    rows = "".join(
        f"<tr><th scope=row>{i}</th><td{'' if value is None else f' data-value={value}'}>{value}</td></tr>"
        for i, value in enumerate(values)
    )
    (script,) = re.findall(r"<script>.*?</script>", pages["report"].read_text(encoding="utf-8"), re.DOTALL)
    page = tmp_path / "page.html"
    page.write_text(
        f"""<!DOCTYPE html><html><head></head><body><p id="sorting" hidden>hint</p><main><table><caption>c</caption>
        <thead><tr><th data-kind="text">i</th><th data-kind="number">v</th></tr></thead><tbody>{rows}</tbody></table>
        </main>{script}</body></html>"""
    )
    (found,) = look(page, (500,), tmp_path)
    assert found["wrong"] == []
    states = found["tables"][0][1]["states"]
    assert [text for _, text in states[1][1][0]] == ["-Infinity", "-3", "1e-09", "2", "2", "10", "Infinity", "None"]
    assert [text for _, text in states[2][1][0]] == ["Infinity", "10", "2", "2", "1e-09", "-3", "-Infinity", "None"]
