"""The model card of a tuned policy: what a stranger must know before using it, in the Hub's README format.

Everything in it comes from the training's record and the settings; it carries no date and no path of a machine.
"""

from typing import Any

from huggingface_hub import ModelCardData

from karma.models.made import PACKAGED
from karma.study.escape import escape_markdown
from karma.training.held_out import describe_held_out
from karma.training.rewards import describe_rewards
from karma.vocabulary import find_strategy, makes_policy, title_of

_REWARD_MODEL = (
    "It rates a response to a prompt, both in its chat format, by one number without a unit, higher is better: load it "
    "with `AutoModelForSequenceClassification`. Only differences of ratings of one prompt's responses mean something. "
    "It answers nothing.\n\n"
)


def build_model_card(record: dict[str, Any], spec: dict[str, Any], strategy: str) -> str:
    """Return README.md for a tuned policy, or for a reward model.

    Args:
        record: what training.json holds. spec: the untrained policy's specification.
        strategy: of the pairs it was tuned on.
    """
    answers = makes_policy(record["method"])
    base = spec.get("hub") or (PACKAGED[spec["packaged"]].source if spec.get("packaged") else None)
    metadata = ModelCardData(base_model=base, library_name="peft" if record["adapter"] else "transformers",
                             tags=["karma", "trl", record["method"], strategy],
                             pipeline_tag=None if answers else "text-classification")  # fmt: skip
    settings = {k: v for k, v in record["settings"].items() if v is not None}
    rows = [("policy", record["policy"]), ("method", record["method"]),
            ("pairs", f"{strategy}, {record['n_train_pairs']:,}"), ("data digest", record["data_digest"]),
            ("seed", record["seed"]), ("updates", record["n_updates"]),
            ("computed in", f"{record['dtype']} on {record['device']}"), *settings.items()]  # fmt: skip
    table = "\n".join(f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in rows)
    how = f"tuned with {record['method'].upper()}" if answers else f"a {title_of(record['method'])} trained"
    title = escape_markdown(f"{record['policy']}, {how} on {strategy}")
    held = f"Preference {describe_held_out(record['held_out'])}."
    if not answers:
        held += f" It {describe_rewards(record['held_out'])}."
    alarms = "\n".join(f"- {escape_markdown(alarm)}" for alarm in record["alarms"]) or "none"
    return (
        f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n"
        "Tuned with the KARMA kit (method: arXiv 2502.18744) through TRL. The preferences it was tuned on are "
        f"{find_strategy(strategy).preferences}.\n\n{'' if answers else _REWARD_MODEL}"
        f"## Training\n\n| what | value |\n|---|---|\n{table}\n\n"
        f"## Held-out pairs\n\n{held}\n\n## Alarms\n\n{alarms}\n\n"
        "## Limits\n\nAccuracy on held-out pairs says that a preference was learnt, not that it is a good one. Nothing "
        "was tested for safety. The licence is that of the base model and of the pairs: see their cards.\n"
    )  # fmt: skip
