"""OpenAI's Responses API: requests to what is asked of a model, its answer to items and events, and the store that is its state
(https://platform.openai.com/docs/api-reference/responses)."""
