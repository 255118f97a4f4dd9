"""What a training shows while it runs: a line with the time left, a plot in a notebook, alarms as they come.

A callback of the trainer writes one JSON line an update; whoever shows it reads those lines. So a training in this
process and one in processes of its own (`karma.training.launch`) are shown by the same code.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from karma.training.hacking import KL, LENGTH
from karma.training.health import find_alarms

PLOT_EVERY_S = 5.0


class ProgressFile(TrainerCallback):
    """Append each logged update to a file, as the trainer's main process sees it."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **_: Any) -> None:
        """Start the file with the number of updates, and those done before a resume."""
        if state.is_world_process_zero:
            self._append({"n_updates": state.max_steps, "done": state.global_step}, "w")
            for entry in state.log_history:
                if "loss" in entry:
                    self._append(entry)

    def on_log(self, args, state, control, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Append an update; stop the training where it is no longer one."""
        if state.is_world_process_zero and logs and "loss" in logs:
            self._append({**logs, "step": state.global_step})
        values = [(logs or {}).get(key, 0.0) for key in ("loss", "grad_norm")]
        if not all(math.isfinite(value) for value in values):
            control.should_training_stop = True

    def _append(self, entry: dict[str, Any], mode: str = "a") -> None:
        with self.path.open(mode) as file:
            file.write(json.dumps(entry) + "\n")


class ShowProgress(TrainerCallback):
    """Keep a view up to date from inside the trainer's process."""

    def __init__(self, view: "LiveView"):
        self.view = view

    def on_log(self, args, state, control, **_: Any) -> None:
        """Show the update just logged."""
        self.view.update()


class LiveView:
    """A line (in a terminal) or a line and a plot (in a notebook) of a training, fed from its progress file.

    Args:
        path: the progress file. method: its name. pairs_an_update: pairs.
        rewards: how rewards are scaled: beta and per_token (`Run.rewards`).
    """

    def __init__(self, path: Path, method: str, pairs_an_update: int, rewards: dict[str, Any]):
        self.path, self.method, self.pairs_an_update, self.rewards = path, method, pairs_an_update, rewards
        self.history: list[dict[str, Any]] = []
        self.alarms: list[str] = []
        self.bar: tqdm | None = None
        self._read, self._plotted, self._display = 0, 0.0, None
        self._first: tuple[float, float] | None = None

    def update(self) -> None:
        """Show what was written since the last call."""
        if not self.path.is_file():
            return
        lines = self.path.read_text("utf-8").split("\n")[:-1]
        for line in lines[self._read :]:
            self._add(json.loads(line))
        if len(lines) > self._read:
            self._read = len(lines)
            self._show()

    def close(self) -> None:
        """Show the rest, and end the line."""
        self.update()
        if self.bar is not None:
            self.bar.close()
        if self._display is not None:
            self._plot()

    def _add(self, entry: dict[str, Any]) -> None:
        if "n_updates" in entry:
            self.n_updates = entry["n_updates"]
            self.bar = self.bar or tqdm(total=self.n_updates, initial=entry["done"], unit="update", desc=self.method)
            return
        self.history.append(entry)
        for alarm in find_alarms(self.history, self.n_updates, self.pairs_an_update, **self.rewards):
            if alarm not in self.alarms:
                self.alarms.append(alarm)
                tqdm.write(f"ALARM: {alarm}")

    def _show(self) -> None:
        if self.bar is None or not self.history:
            return
        last = self.history[-1]
        shown = {"loss": f"{last['loss']:.3f}"}
        names = {"rewards/margins": "margin", "rewards/accuracies": "accuracy", "reward": "reward", KL: "KL"}
        shown |= {short: f"{last[key]:.2f}" for key, short in names.items() if last.get(key) is not None}
        if LENGTH in last:
            shown["length"] = f"{last[LENGTH]:.0f}"
        if speed := self._measure_speed(last):
            shown["tokens/s"] = f"{speed:.0f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(last["step"] - self.bar.n)
        if _in_notebook() and time.monotonic() - self._plotted > PLOT_EVERY_S:
            self._plot()

    def _measure_speed(self, last: dict[str, Any]) -> float | None:
        """Return tokens a second since the first update seen."""
        if "num_tokens" not in last:
            return None
        if self._first is None:
            self._first = (time.monotonic(), last["num_tokens"])
            return None
        seconds = time.monotonic() - self._first[0]
        return (last["num_tokens"] - self._first[1]) / seconds if seconds > 0 else None

    def _plot(self) -> None:
        import matplotlib.pyplot as plt
        import pandas as pd
        from IPython.display import display

        from karma.figures.training import plot_training

        figure = plot_training(pd.DataFrame(self.history), self.method)[0].figure
        if self._display is None:
            self._display = display(figure, display_id=True)
        else:
            self._display.update(figure)
        plt.close(figure)
        self._plotted = time.monotonic()


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
