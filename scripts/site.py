"""What the documentation site is made of beside the pages in docs/: a hook of MkDocs (`mkdocs.yml`).

- A link from a page to a file of the repository outside docs/ leads to a page with that file's text, so that the site needs no other place.
- Short code is marked, so that it stays on one line.
- `{{ options }}` in a page becomes the options of every command, from the command line itself.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\((\.\./[^)#\s]+)\)")
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every file outside docs/ that a page links to. A file that is not there ends the build."""
    wanted = set()
    for path in Path(config["docs_dir"]).rglob("*.md"):
        wanted |= {posixpath.normpath(link).removeprefix("../") for link in OUTSIDE.findall(path.read_text())}
    for name in sorted(wanted):
        text = (ROOT / name).read_text()
        if not name.endswith(".md"):
            text = f"# {name}\n\n````{LANGUAGES.get(Path(name).suffix, 'text')}\n{text}````\n"
        head = "---\nsearch:\n  exclude: true\n---\n\n"
        files.append(File.generated(config, page_of(name), content=head + text))
    files.append(File.generated(config, "notebook.md", content=notebook(ROOT / "docs" / "notebook.ipynb")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leads links to files outside docs/ to their pages, and writes the options."""
    if page.file.src_uri.startswith("source/"):  # a file's own links lead elsewhere
        return re.sub(r"\]\((?!https?:)[^)]*\)", "]", markdown)
    markdown = OUTSIDE.sub(lambda match: f"]({page_of(posixpath.normpath(match[1]).removeprefix('../'))})", markdown)
    return (
        markdown.replace("{{ options }}", "\n".join(command_reference())) if "{{ options }}" in markdown else markdown
    )


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Keeps short code on one line: a browser would break `--auto` behind its dashes."""
    return re.sub(r"<code>([^<>\n]{1,28})</code>", r'<code class="short">\1</code>', html)


def notebook(path: Path) -> str:
    """The cells of a notebook as a page, without what they give."""
    cells = json.loads(path.read_text())["cells"]
    texts = [
        source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for cell in cells
        for source in ["".join(cell["source"])]
    ]
    return (
        "\n\n".join(texts)
        + "\n\nThe notebook itself: [notebook.ipynb](notebook.ipynb), to be opened in Jupyter or Colab.\n"
    )


def page_of(name: str) -> str:
    """The page of a file of the repository."""
    return f"source/{name.removesuffix('.md')}.md"


def command_reference() -> Iterator[str]:
    """Every command with its options, as Markdown, in the order in which `regcache --help` lists them."""
    from regcache_jax.cli.main import COMMANDS, cli

    context = click.Context(cli, info_name="regcache")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        own = click.Context(command, parent=context, info_name=name)
        usage = " ".join(["regcache", name, *command.collect_usage_pieces(own)])
        help_text = (command.help or "").replace("\b", "")
        yield from (f"### regcache {name}", "", help_text, "", "```text", usage, "```", "")
        options = [each for each in command.params if isinstance(each, click.Option)]
        if options:
            yield from ("| option | takes | default | meaning |", "|---|---|---|---|")
            yield from (row_of(each, own) for each in options)
            yield ""


def row_of(option: click.Option, context: click.Context) -> str:
    """One option as a row of a table."""
    record = option.to_info_dict()
    default = record["default"]
    shown = "required" if option.required else "" if option.is_flag or not option.show_default else f"`{default}`"
    takes = "" if option.is_flag else option.make_metavar(context)
    return f"| {', '.join(f'`{name}`' for name in option.opts)} | {cell(takes)} | {shown} | {cell(option.help or '')} |"


def cell(text: str) -> str:
    """A text that ends no cell of a table and is no HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;")
