"""Which prompts of a file are the base, held-out and fresh ones of a round.

Decision: all are drawn from one file by (seed, text); they never overlap, and a later round's fresh prompts are others
than an earlier one's.
"""

from karma.errors import InputError
from karma.evaluation.prompts import Prompt
from karma.files.reading import compute_digest


def split_prompts(
    prompts: list[Prompt], n_base: int, n_held_out: int, n_fresh: int, round_number: int, seed: int
) -> dict[str, list[Prompt]]:
    """Draw the prompts of one round; the same for every arm and policy.

    Args:
        prompts: a file's. n_base, n_held_out: the same in every round. n_fresh: others in each round.
        round_number: 1, 2, ... seed: of the draw.

    Returns:
        "base", "held_out" and "fresh", without overlap.

    Raises:
        InputError: the file holds too few.

    Example:
        >>> from karma.evaluation.prompts import build_prompt
        >>> parts = split_prompts([build_prompt(f"Count to {n}.") for n in range(9)], 2, 3, 2, round_number=2, seed=0)
        >>> [len(part) for part in parts.values()], len({p.text for part in parts.values() for p in part})
        ([2, 3, 2], 7)
    """
    last = n_base + n_held_out + n_fresh * round_number
    if last > len(prompts):
        raise InputError(
            f"round {round_number} needs {last} prompts ({n_base} base, {n_held_out} held out, {n_fresh} fresh a "
            f"round), and the file has {len(prompts)}: lower them in self_play, or write more"
        )
    drawn = sorted(prompts, key=lambda prompt: compute_digest([seed, prompt.text]))
    return {
        "base": drawn[:n_base],
        "held_out": drawn[n_base : n_base + n_held_out],
        "fresh": drawn[last - n_fresh : last],
    }
