"""Plays whole rounds of self-play on tiny models, as notebook 08 does."""

from pathlib import Path

from karma.models.load import add_trained
from karma.self_play import rounds
from karma.self_play.rounds import Round
from karma.study.experiment import load_experiment
from karma.study.stages import find_job

STUDY = """
name: tiny_self_play
strategies: []
models:
  tiny: {random: {hidden_size: 32, layers: 2, heads: 2}, seed: 1}
  judge: {random: {hidden_size: 32, layers: 2, heads: 2}, seed: 2}
policies: [tiny]
compute: {dtype: float32}
training: {per_device_batch_size: 4, gradient_accumulation: 1, devices: 1, warmup_steps: 0, learning_rate: 1.0e-3,
           max_length: 256, gradient_checkpointing: false, lora: {rank: 2, alpha: 4, dropout: 0.0, last_layers: 1}}
self_play: {rounds: 2, scorer: judge, scorer_model: judge, base_prompts: 8, held_out_prompts: 5, fresh_prompts: 6, candidate_pairs: 5,
            samples: 3, max_new_tokens: 6, batch_size: 4, base_pairs: 6, added_pairs: 4}
"""


def open_tiny(folder: Path, arm: str, number: int) -> Round:
    """Return a round of the tiny study, with its outputs below `folder`."""
    path = folder / "tiny_self_play.yaml"
    if not path.is_file():
        path.write_text(STUDY)
    experiment = load_experiment(path)
    experiment.outputs = folder / "outputs"
    return rounds.open_round(find_job(experiment, "08_self_play", {"policy": "tiny", "arm": arm, "round": number}))


def play_round(this: Round) -> dict:
    """Play one round and return what self_play.json holds."""
    base = rounds.play(this, this.prompts["base"])
    prompts, attempts = rounds.propose_prompts(this, base)
    more = rounds.play_candidates(this, prompts)
    pairs = rounds.build_training_set(this, base, more)
    held_out = rounds.play(this, this.prompts["held_out"], this.start)
    rounds.train_round(this, pairs, held_out)
    models, trained = add_trained(this.models, this.policy, this.folder / "model")
    before = rounds.evaluate_policy(this, this.start, this.models, held_out)
    after = rounds.evaluate_policy(this, trained, models, held_out)
    return rounds.save_round(this, pairs, attempts, before, after)
