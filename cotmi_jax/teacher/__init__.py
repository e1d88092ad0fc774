"""Annotation with a teacher's rationales: prompts, a client of OpenAI-compatible servers, the journal, the filter."""
