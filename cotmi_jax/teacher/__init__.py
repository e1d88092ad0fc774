"""From questions to rationales: prompts, an OpenAI-compatible client, the journal of what was paid for, the filter."""
