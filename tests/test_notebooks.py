"""Each chapter is a pair: the .py that is edited and the .ipynb that `make chapters` built from it."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
# With no chapter, one that does not exist: every test below then fails instead of vanishing.
CHAPTERS = sorted({p.stem for p in NOTEBOOKS.glob("[0-9][0-9]_*") if p.suffix in {".py", ".ipynb"}}) or [
    "no chapters found"
]


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request):
    return request.param


@pytest.fixture(scope="module")
def built(chapter):
    path = NOTEBOOKS / f"{chapter}.ipynb"
    assert path.is_file(), f"{path.name} is missing: make chapters"
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def code(built):
    return [cell for cell in built.cells if cell.cell_type == "code"]


def test_notebook_is_built_from_its_source(chapter, built):
    path = NOTEBOOKS / f"{chapter}.py"
    assert path.is_file(), f"{path.name} is missing: a chapter is written there"

    def content(nb):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in nb.cells]

    source = jupytext.read(path)
    assert content(built) == content(source), "stale: make chapters"
    for cell in source.cells:
        assert "title" not in cell.metadata, f"text on the line of a cell's mark is lost: {cell.metadata['title']}"


def test_notebook_carries_nothing_of_the_machine(chapter, built):
    nbformat.validate(built)
    assert [cell.id for cell in built.cells] == [f"{chapter}-{i:02d}" for i in range(len(built.cells))]
    assert built.metadata == {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(set(cell.metadata) <= {"tags"} for cell in built.cells)
    for cell in copy.deepcopy(built.cells):
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # base64, in which any letters may occur
        assert not re.search(r"/(home|root|Users|work)/", json.dumps(cell)), cell.id


def test_every_cell_ran_once_in_order(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_no_cell_ended_in_an_error_or_kept_stderr(code):
    for cell in code:
        kinds = {output.output_type for output in cell.outputs} | {o.get("name") for o in cell.outputs}
        assert not kinds & {"error", "stderr"}, cell.id


def test_cells_are_short(code):
    long = {cell.id: n for cell in code if (n := len(cell.source.splitlines())) > 25}
    assert not long, "a cell holds one claim: move the rest into vggres"


def test_chapter_opens_with_its_title(built):
    first = built.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)


def test_tables_and_commands_keep_their_lines(built):
    for cell in built.cells:
        if cell.cell_type == "markdown":
            for line in re.sub(r"^```$.*?^```$", "", cell.source, flags=re.M | re.S).splitlines():
                flat = "```" in line or re.search(r"\S {3,}\S", line)
                assert not flat, f"{cell.id}: code runs on as prose: {line}"
                assert "| --- |" not in line or re.fullmatch(r"\|( -+:? \|)+", line), f"{cell.id}: a table: {line}"


def test_figures_are_pictures(code):
    for cell in code:
        for output in cell.outputs:
            data = output.get("data", {})
            if data.get("text/plain", "").startswith(("<Figure", "<IPython.core.display.Image")):
                assert "image/png" in data, f"{cell.id}: the name of a figure, without the figure"


def test_the_index_of_the_pages_links_to_every_chapter_and_to_nothing_that_is_not_there(tmp_path):
    spec = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    page = build.page(build.index(tmp_path))
    local = {link for link in re.findall(r'href="([^"#]+)"', page) if "://" not in link}
    chapters = {f"{chapter}.html" for chapter in CHAPTERS}
    assert chapters < local and all((tmp_path / link).exists() for link in local - chapters)
    assert 'src="data:image/png' in page


def test_every_paper_that_is_cited_is_listed():
    root = NOTEBOOKS.parent
    sources = [*NOTEBOOKS.glob("*.py"), *(root / "vggres").glob("*.py"), root / "README.md"]
    text = " ".join(" ".join(p.read_text(encoding="utf-8").replace("\n#", " ").split()) for p in sources)
    cited = set(re.findall(r"\b([A-Z][a-z]+)(?: et al\.| and [A-Z][a-z]+)?,? \(?((?:19|20)\d\d)\)?[a-z;,.):]", text))
    listed = (root / "REFERENCES.md").read_text(encoding="utf-8").splitlines()
    absent = {key for key in cited if not any(key[0] in line and f"({key[1]})" in line for line in listed)}
    assert len(cited) > 20 and not absent
