"""The demo teacher: a seeded corpus, its tokenizer, the training that makes the weights, their accuracy."""
