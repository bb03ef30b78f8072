"""Ray-native post-training of language models."""
