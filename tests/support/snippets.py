"""The blocks of code of a page in Markdown."""

import re
import textwrap

_BLOCK = r"^(?P<indent> *)```{language}(?P<flag>[^\n]*)\n(?P<source>.*?)^(?P=indent)```"


def blocks(text: str, language: str = "python") -> list[tuple[str, bool]]:
    """The blocks of a page, each with whether it runs; padded, so that its line numbers are the page's."""
    found = []
    for match in re.finditer(_BLOCK.format(language=language), text, re.MULTILINE | re.DOTALL):
        flag = match["flag"].strip()
        if flag not in ("", "no-run"):
            raise ValueError(f"A block opens with '```{language} {flag}'; the only flag is 'no-run'.")
        line = text.count("\n", 0, match.start("source"))
        found.append(("\n" * line + textwrap.dedent(match["source"]), not flag))
    return found
