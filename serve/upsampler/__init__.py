"""Prompts rewritten by a chat model into the captions that Cosmos3 is trained on."""
