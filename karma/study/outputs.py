"""What an executed notebook keeps of what was said while it ran: plain lines, none of them red, no frames of a bar.

A bar draws itself anew some hundred times; of each line only its last state is kept. Warnings and bars arrive on
standard error, which pages show in red although nothing failed; here they become plain text. What a cell raised stays
as it is. Decision: executed notebooks are tidied once, when they are done, so that nothing that runs has to know.
"""

import logging
import re
from functools import cache
from typing import Any

_WIDGET = "application/vnd.jupyter.widget-view+json"  # of a control or a bar that is gone with its kernel
_STYLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BAR = re.compile(r"^\s*\d+%\|[^|]*\|")  # one that does not say what it counts
_WARNED = re.compile(r"^\S.*\.py:\d+: \w*Warning: (?P<said>.*)\n(?: {2}\S.*\n?)?", re.MULTILINE)  # with a line of code
_NOISE = ("`pretrained` model kwarg is not of type `str`", "Passed an already-initialized model through `pretrained`",
          "Kernel is running over TCP without encryption", "IProgress not found")  # fmt: skip


def settle(text: str) -> str:
    """Return what a terminal would show at the end: of each line what was written over it last.

    Example:
        >>> settle("\\rpairs:  50%|##  | 1/2\\rpairs: 100%|####| 2/2\\n\\r  0%|    | 0/9\\nsaid")
        'pairs: 100%|####| 2/2\\nsaid'
    """
    lines = [_STYLE.sub("", line).rstrip() for line in re.split(r"\r?\n", text)]
    last = [next((part for part in reversed(line.split("\r")) if part.strip()), "") for line in lines]
    kept = [line for line in last if line.strip() and not _BAR.match(line) and not any(n in line for n in _NOISE)]
    return _WARNED.sub("note: \\g<said>\n", "\n".join([*kept, ""])).rstrip("\n")


def tidy_outputs(notebook: Any) -> Any:
    """Make what stands on standard error of a notebook's cells plain text, and take dead controls out, in place.

    Args:
        notebook: of nbformat 4, executed; returned.
    """
    for cell in notebook.cells:
        outputs = list[Any]()
        for output in cell.get("outputs", []):
            if _WIDGET in output.get("data", {}):
                continue
            if output.output_type != "stream" or output.name != "stderr":
                outputs.append(output)
            elif outputs and outputs[-1].output_type == "stream" and outputs[-1].get("metadata", {}).get("settled"):
                outputs[-1].text += output.text
            else:
                outputs.append(output)
                output.metadata = {"settled": True}
        for output in outputs:
            if output.output_type == "stream" and output.pop("metadata", None):
                output.name, output.text = "stdout", settle(output.text) + "\n"
        cell_outputs = [o for o in outputs if o.output_type != "stream" or o.text.strip()]
        if "outputs" in cell:
            cell.outputs = cell_outputs
    return notebook


@cache
def hide_nameless_bars() -> None:
    """Draw no bar that does not say what it counts, and no line of what lm-evaluation-harness says to its developers.

    Once a process; bars with a description, the kit's own among them, are drawn as before.
    """
    from tqdm.std import tqdm

    begin = tqdm.__init__

    def begin_named(self: Any, *args: Any, **options: Any) -> None:
        said = options.get("desc") or (args[1] if len(args) > 1 else None)
        begin(self, *args, **({**options, "disable": True} if not said else options))

    tqdm.__init__ = begin_named
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
