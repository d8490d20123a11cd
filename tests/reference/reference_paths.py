"""The token ids that the tiny models of all families are scored on."""

import make_tiny

# Prompts of about 5, 40 and 150 tokens, each with 16 more along the path.
PATH_LENGTHS = (21, 56, 166)
PATH_SEED = 9


def paths(vocab, seed=PATH_SEED):
    words = [int(word) % vocab for word in make_tiny.Stream(seed).words(sum(PATH_LENGTHS))]
    for length in PATH_LENGTHS:
        yield words[:length]
        words = words[length:]
