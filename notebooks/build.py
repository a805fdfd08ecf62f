"""Execute the chapters, NN_*.py, into notebooks that are the same on every machine.

python notebooks/build.py              authors: rewrite notebooks/*.ipynb in place
python notebooks/build.py --out build  readers: executed copies and HTML pages there, and the README as their index
python notebooks/build.py 01 03        only these chapters
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from vggres.files import write_atomically

HERE = Path(__file__).resolve().parent
# The kernelspec stays: without it Jupyter asks the reader to choose a kernel at every opening.
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(source: Path) -> NotebookNode:
    """The chapter, executed in notebooks/, without timings, stderr or metadata of this machine."""
    nb = jupytext.read(source)
    nb.nbformat, nb.nbformat_minor = 4, 5
    for i, cell in enumerate(nb.cells):
        cell.id = f"{source.stem}-{i:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})

    running = 0

    def note(cell, cell_index):
        nonlocal running
        running = cell_index

    client = NotebookClient(
        nb,
        kernel_name="python3",
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        on_cell_start=note,
        extra_arguments=["--log-level=ERROR"],  # ipykernel warns at every start about its transport
        resources={"metadata": {"path": str(HERE)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellControlSignal, DeadKernelError) as error:
        what = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        sys.exit(f"{source.name}, cell {running}:\n\n{nb.cells[running].source}\n\n{what.strip()}")

    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    nbformat.validate(nb)
    return nb


def page(nb: NotebookNode) -> str:
    """The chapter as one HTML file with its images inside. Changes nb."""
    title = nb.cells[0].source.partition("\n")[0].lstrip("# ")
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            # nbconvert embeds images from below `path` only, and the chapters show ../figures.
            cell.source = re.sub(r"(!\[[^]]*\]\()\.\./", r"\1", cell.source)
    resources = {"metadata": {"name": title, "path": str(HERE.parent)}}
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(nb, resources)
    wrapped = "<style>.highlight pre { white-space: pre-wrap; }</style>"  # a page has no room for 120 columns
    return html.replace("</head>", f"{wrapped}</head>", 1)


def index(out: Path) -> NotebookNode:
    """The README, with links to the pages in `out` in the place of those to the notebooks."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(notebooks/(\w+)\.ipynb\)", r"](\1.html)", text)
    # Images are embedded by `page`, from where they lie.
    here = os.path.relpath(HERE.parent, out)
    text = re.sub(r"(?<!!)(\[[^]]*\])\((?!https?:|\w+\.html)", rf"\1({here}/", text)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the chapters.")
    parser.add_argument("chapters", nargs="*", help="how a chapter's name begins, such as 01; default: all")
    parser.add_argument("--out", type=Path, help="write copies and HTML pages here, not notebooks/*.ipynb")
    args = parser.parse_args()

    sources = sorted(HERE.glob("[0-9][0-9]_*.py"))
    for name in args.chapters:
        if not any(source.name.startswith(Path(name).name) for source in sources):
            parser.error(f"no chapter is called {name}; there are {', '.join(s.stem for s in sources)}")
    if args.chapters:
        wanted = tuple(Path(name).name for name in args.chapters)
        sources = [source for source in sources if source.name.startswith(wanted)]

    os.environ.pop("MPLBACKEND", None)  # which the kernels would inherit, and keep figures out of the notebook
    out = args.out or HERE
    out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        start = time.perf_counter()
        nb = execute(source)
        write_atomically(out / f"{source.stem}.ipynb", f"{nbformat.writes(nb)}\n".encode())
        if args.out:
            write_atomically(out / f"{source.stem}.html", page(nb).encode())
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    if args.out:
        write_atomically(out / "index.html", page(index(out)).encode())


if __name__ == "__main__":
    main()
