"""`python -m vggres`, for use where the package is not installed."""

from vggres.cli import app

app(prog_name="vggres")
