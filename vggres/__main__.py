"""`python -m vggres`, for where it is not installed."""

from vggres.cli import app

app(prog_name="vggres")
