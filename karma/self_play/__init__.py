"""Self-play: pairs that a policy makes of its own answers, on prompts that it also helps to write.

One round: the policy answers each prompt several times (`answers`), a scorer rates the
answers (`scorers`), the best is chosen and the worst rejected (`pairing`); the policy writes new prompts out of the old
ones (`evolution`), or, as a control, further prompts are drawn from the file (`prompts`); of the pairs made from these
the ones of largest alignment potential are kept (`selection`); the policy is trained on base and kept pairs and
evaluated on prompts that nothing was made from (`rounds`), and the next round begins with the trained policy. `curves`
reads all finished rounds of a study.

Paper: the self-play data generation of arXiv 2503.01864.
"""
